"""Previews are drawn by a small decoder in the format of the published ones, and finals never are."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline
from huggingface_hub import constants
from PIL import Image

from app.catalogue import CATALOGUE, Found, entry_for, find
from app.catalogue.decoders import FILES, FOLDER, decoder_folder
from app.jobs.job import Done, Event, Step
from app.models import Choice, ImageModel, ModelError, load, open_model
from app.models.preview_decoder import LEAST_AGREEMENT, agreement, with_preview_decoder
from app.page.views import status_view
from app.worker import Worker
from app.worker.costs import Costs
from tests import tiny_models
from tests.app.catalogue.test_catalogue import put_in_cache
from tests.conftest import make_job

CPU = torch.device("cpu")
COSTS = Costs(rows=(1, 8), seconds=(0.01, 0.02), decode_s=0.01)
# By family: the entry whose published decoder it is.
ROW = {
    "stable_diffusion": "sd15",
    "stable_diffusion_v": "sd21",
    "stable_diffusion_xl": "sdxl",
    "stable_diffusion_3": "sd35-medium",
    "flux": "flux-dev",
    "flux_kontext": "flux-kontext",
}


def save_decoder(folder: Path, stages: int = 2, channels: int = 4) -> Path:
    """A random AutoencoderTiny in the published format, with 2^(stages - 1) pixels to a latent."""
    torch.manual_seed(1)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8,) * stages,
        decoder_block_out_channels=(8,) * stages,
        num_encoder_blocks=(1,) * stages,
        num_decoder_blocks=(1,) * stages,
        latent_channels=channels,
    )
    tiny.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model of 8 pixels to a latent, with a preview decoder of its own."""
    copy = shutil.copytree(tiny_folder, tmp_path / "tiny")
    save_decoder(copy / FOLDER, stages=4)
    return copy


@pytest.mark.parametrize("family", ROW)
def test_previews_are_what_the_stock_pipeline_makes_with_that_decoder(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solver.diffusion.flux.NATIVE", 8)
    entry = entry_for(ROW[family])
    assert entry and entry.decoder
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    folder = put_in_cache(cache, entry.source, tiny_models.build(family, tmp_path / family))
    decoder = put_in_cache(cache, entry.decoder, save_decoder(tmp_path / "decoder"))
    assert sorted(path.name for path in decoder.iterdir()) == sorted(FILES)
    model = open_model(Choice(entry.name, "cpu"))
    assert model.facts.preview_decoder == entry.decoder

    worker = Worker(model, costs=COSTS)
    try:
        jobs = [
            make_job(model, solver="euler" if model.facts.schedule.is_flow else "ddim", seed=s)
            for s in (1, 2)
        ]
        final = replace(jobs[0], kind="refine")
        *previews, refined = (list(handle.events())[-1] for handle in worker.submit_all([*jobs, final]))
    finally:
        worker.close()
    assert isinstance(refined, Done) and refined.record.decoder == ""
    pipe = DiffusionPipeline.from_pretrained(folder)
    latents = stock_latents(pipe, model, final)
    assert difference(refined.picture, decode(pipe.vae, latents)) <= 1
    small = AutoencoderTiny.from_pretrained(decoder)
    for job, preview in zip(jobs, previews, strict=True):
        assert isinstance(preview, Done) and preview.record.decoder == entry.decoder
        assert difference(preview.picture, decode(small, stock_latents(pipe, model, job))) <= 1
    assert difference(previews[0].picture, refined.picture) > 10  # type: ignore[union-attr]


def stock_latents(pipe: Any, model: ImageModel, job: Any) -> torch.Tensor:
    """The latents that the stock pipeline keeps at its end [1, C, H, W]."""
    from solver.diffusion.flux import pack, unpack

    flux = "Flux" in type(pipe).__name__
    noise = model.diffusion.noise([job.seed])
    options: dict[str, Any] = {"height": job.height, "width": job.width}
    if "Kontext" in type(pipe).__name__:
        options["max_area"] = job.height * job.width
    if model.facts.schedule.is_flow:
        options["sigmas"] = list(np.linspace(1, 1 / job.steps, job.steps))
    else:
        pipe.scheduler = diffusers.DDIMScheduler.from_config(
            pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
        )
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        prompt=job.prompt,
        guidance_scale=job.guidance,
        num_inference_steps=job.steps,
        latents=pack(noise) if flux else noise,
        output_type="latent",
        **options,
    ).images
    return unpack(made, noise.shape) if flux else made


@torch.no_grad()
def decode(vae: Any, latents: torch.Tensor) -> Image.Image:
    """As the stock pipelines write it: the decoder's own factor and shift, and nothing else of the model."""
    z = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0)
    picture = diffusers.image_processor.VaeImageProcessor().postprocess(vae.decode(z).sample)[0]
    assert isinstance(picture, Image.Image)
    return picture


def difference(one: Image.Image | None, other: Image.Image) -> int:
    """The largest of all levels."""
    assert one and one.size == other.size
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


def events(worker: Worker, **changes: object) -> list[Event]:
    return list(worker.submit(make_job(worker.model, **changes)).events())


def test_pictures_on_the_way_are_drawn_by_it_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(Choice(str(folder), "cpu"))
    drawn: list[bool] = []
    pictures = ImageModel.pictures

    def noted(self: ImageModel, latents: torch.Tensor, *, preview: bool = False) -> Any:
        drawn.append(preview)
        return pictures(self, latents, preview=preview)

    worker = Worker(model, costs=COSTS)
    try:
        worker._decoder.seconds = 0.0  # there is always time for one
        monkeypatch.setattr(ImageModel, "pictures", noted)
        made = events(worker, kind="refine", steps=4)
    finally:
        worker.close()
    assert sum(isinstance(event, Step) and event.picture is not None for event in made) >= 1
    assert drawn == [True] * (len(drawn) - 1) + [False]


def test_previews_of_as_many_steps_as_finals_are_drawn_like_finals(folder: Path) -> None:
    facts = open_model(Choice(str(folder), "cpu")).facts
    job = make_job(load(folder, CPU), steps=6)
    assert facts.decoder_of(job) == FOLDER
    assert facts.decoder_of(replace(job, kind="refine")) == ""
    assert facts.decoder_of(replace(job, kind="speculative")) == ""
    assert facts.decoder_of(replace(job, steps=facts.full_steps // 2)) == ""


def test_records_say_which_decoder_it_was(folder: Path) -> None:
    worker = Worker(open_model(Choice(str(folder), "cpu")))
    try:
        preview = events(worker)[-1]
        final = events(worker, kind="refine")[-1]
        assert f"previews drawn by {FOLDER}" in status_view(worker)["model"]
    finally:
        worker.close()
    assert isinstance(preview, Done) and isinstance(final, Done)
    assert preview.record.parameters().settings["Preview decoder"] == FOLDER
    assert "Preview decoder" not in final.record.parameters().settings


def test_it_changes_nothing_about_the_model_itself(folder: Path, tiny_folder: Path) -> None:
    assert load(folder, CPU).facts.revision == load(tiny_folder, CPU).facts.revision


def test_it_can_be_chosen_and_turned_off(folder: Path, tmp_path: Path) -> None:
    own = open_model(Choice(str(folder), "cpu"))
    none = open_model(Choice(str(folder), "cpu", preview_decoder="off"))
    chosen = save_decoder(tmp_path / "mine", stages=4)
    other = open_model(Choice(str(folder), "cpu", preview_decoder=str(chosen)))
    names = [model.facts.preview_decoder for model in (own, none, other)]
    assert names == [FOLDER, "", "mine"] and none.preview_decoder is None


def test_what_is_not_in_the_cache_is_done_without(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for entry in CATALOGUE:
        assert decoder_folder(Found(entry.name, tiny_folder, entry.pipeline, {}, entry)) is None
    folder = put_in_cache(cache, "madebyollin/taesd", save_decoder(tmp_path / "decoder", stages=4))
    sd15 = replace(find(str(tiny_folder)), entry=entry_for("sd15"))
    assert decoder_folder(sd15) == folder
    (folder / FILES[1]).unlink()  # of which only a part is there
    assert decoder_folder(sd15) is None
    assert decoder_folder(find(str(tiny_folder))) is None  # nobody knows which would fit


def test_one_of_another_model_is_told_by_its_colours(folder: Path) -> None:
    model = open_model(Choice(str(folder), "cpu"))
    (warning,) = model.facts.warnings  # a random one
    assert (
        "made for another model: its colours correlate by" in warning and "--preview-decoder off" in warning
    )
    diffusion = model.diffusion

    class Drawn:
        """A preview decoder whose pictures are made of the model's own."""

        def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
            self.decode = lambda latents: change(diffusion.decode(latents))

    def softer(picture: torch.Tensor) -> torch.Tensor:
        return 0.1 + 0.8 * torch.nn.functional.avg_pool2d(picture, 5, 1, 2)

    assert agreement(Drawn(softer), diffusion) > LEAST_AGREEMENT  # type: ignore[arg-type]
    assert agreement(Drawn(lambda picture: 1 - picture), diffusion) < -0.99  # type: ignore[arg-type]
    assert agreement(Drawn(lambda picture: picture.flip(1, 2)), diffusion) < LEAST_AGREEMENT  # type: ignore[arg-type]


def cut(folder: Path) -> None:
    weights = folder / FILES[1]
    weights.write_bytes(weights.read_bytes()[:-10])


def as_full_autoencoder(folder: Path) -> None:
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(folder)


def without_class(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["_class_name"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "is cut off"),
        (lambda folder: (folder / FILES[0]).unlink(), "it has no config.json"),
        (lambda folder: (folder / FILES[0]).write_text("{"), "can't be read"),
        (lambda folder: (folder / FILES[1]).rename(folder / "diffusion_pytorch_model.bin"), "pickles"),
        (without_class, "can't be read"),
        (as_full_autoencoder, "holds an AutoencoderKL, but a preview decoder is an AutoencoderTiny"),
        (lambda folder: save_decoder(folder, 4, 16), "reads 16 latent channels, but the model has 4"),
        (lambda folder: save_decoder(folder, 2), "makes 2 pixels per latent, the model 8"),
    ],
)
def test_one_that_cannot_be_used_is_told_in_words(damage: Any, words: str, folder: Path) -> None:
    decoder = folder / FOLDER
    damage(decoder)
    with pytest.raises(ModelError) as error:
        open_model(Choice(str(folder), "cpu", preview_decoder=str(decoder)))
    assert words in str(error.value) and "--preview-decoder off" in str(error.value)
    model = with_preview_decoder(load(folder, CPU), "auto", find(str(folder)))
    (warning,) = model.facts.warnings
    assert model.preview_decoder is None and model.facts.preview_decoder == ""
    assert "Previews are decoded like finals" in warning and words in warning
