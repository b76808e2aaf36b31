import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor

from app.catalogue import find
from app.jobs.job import RequestError
from app.models import ImageModel, ModelError, load, pick_device
from app.models.loading import load_component
from app.worker import Worker
from solver import ConsistencySolverScheduler, Policy, make_plan, noise_for_seed, sample
from tests.conftest import make_job

CPU = torch.device("cpu")
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model folder to be damaged."""
    return shutil.copytree(tiny_folder, tmp_path / "copy")


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_pictures_are_those_of_the_stock_pipeline(tiny_folder: Path, worker: Worker, guidance: float) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    stock = StableDiffusionPipeline.from_pretrained(tiny_folder, local_files_only=True)
    stock.scheduler = DDIMScheduler.from_config(
        stock.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True
    )
    stock.set_progress_bar_config(disable=True)
    job = make_job(
        worker.model,
        prompt="snowy mountains at night",
        negative_prompt="lake",
        solver="ddim",
        steps=5,
        guidance=guidance,
    )
    expected = stock(
        job.prompt,
        negative_prompt=job.negative_prompt,
        num_inference_steps=job.steps,
        guidance_scale=guidance,
        latents=noise_for_seed(job.seed, worker.model.diffusion.latent_shape)[None],
    ).images[0]
    done: Any = list(worker.submit(job).events())[-1]
    assert np.abs(np.asarray(expected).astype(int) - np.asarray(done.picture)).max() <= 1


def test_what_is_known_of_a_model(model: ImageModel, tiny_folder: Path, copy: Path) -> None:
    assert (model.facts.name, model.facts.width, model.facts.height) == ("tiny", 64, 64)
    assert model.diffusion.latent_shape == (4, 8, 8)
    assert load(copy, CPU).facts.revision == model.facts.revision
    other = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(other.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    assert load(copy, CPU).facts.revision != model.facts.revision


def test_sizes_that_do_not_divide_are_refused_with_the_nearest(model: ImageModel) -> None:
    facts = replace(model.facts, smallest=64, largest=128, multiple=8)
    facts.check_size(128, 72)
    with pytest.raises(RequestError, match="The width must be a multiple of 8 with tiny: for example 96"):
        facts.check_size(99, 64)
    with pytest.raises(RequestError, match="The height must be 64 to 128 pixels with tiny, not 136"):
        facts.check_size(64, 136)
    with pytest.raises(ValueError, match="multiples of 8 pixels, not 60 × 64"):
        model.diffusion.shape_of(60, 64)


def test_unknown_words_are_found_as_they_were_typed(model: ImageModel) -> None:
    assert model.facts.unknown_words("A Snowy zeppelin, Über dunes! zeppelin") == [
        "zeppelin",
        "Über",
        "dunes",
    ]
    assert model.facts.unknown_words("snowy mountains at night!") == []
    assert model.facts.unknown_words("🏔️ snowy ❤️, mountains → night 👨‍👩‍👧🏔️ … ❤️") == ["🏔️", "❤️", "→", "👨‍👩‍👧🏔️"]
    assert model.facts.unknown_words("") == []


def test_a_tokenizer_of_word_pieces_knows_every_word(copy: Path) -> None:
    # CLIP's own tokenizer says that its end token stands for the unknown.
    edit_json(copy / "tokenizer" / "tokenizer_config.json", unk_token="[end]")
    assert load(copy, CPU).facts.unknown_words("zeppelin") == []


def test_tokens_are_counted_without_their_frame(model: ImageModel) -> None:
    assert model.facts.count_tokens("") == 0
    assert model.facts.count_tokens("snowy lake") == 2
    assert model.facts.max_prompt_tokens == 22


def test_tokenizing_from_many_threads_at_once(model: ImageModel) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def both(i: int) -> int:
        model.encode_each([f"snowy lake {i}"])
        return model.facts.count_tokens("snowy lake")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(both, range(60))) == {2}


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model folder .*--model"):
        load(tmp_path / "nowhere", CPU)
    with pytest.raises(ModelError, match=r"not a model in the diffusers layout: it has no model_index\.json"):
        load(tmp_path, CPU)


def test_the_shipped_model_says_how_to_get_it_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("app.models.loading.ROOT", tmp_path)
    with pytest.raises(ModelError, match="git checkout -- checkpoints/landscapes"):
        load(tmp_path / "checkpoints/landscapes", CPU)


def test_other_kinds_of_models(copy: Path) -> None:
    edit_json(copy / "model_index.json", _class_name="WanPipeline")
    with pytest.raises(ModelError, match="a WanPipeline is not one of the pipelines known here: StableDiff"):
        load(copy, CPU)


def test_code_is_never_taken_from_elsewhere(copy: Path) -> None:
    edit_json(copy / "model_index.json", unet=["subprocess", "Popen"])
    with pytest.raises(ModelError, match="takes its unet from subprocess; only"):
        load(copy, CPU)
    edit_json(copy / "model_index.json", unet=["diffusers", "NoSuchModel"])
    with pytest.raises(ModelError, match="no NoSuchModel"):
        load(copy, CPU)


def test_a_processor_needs_no_weights_and_a_family_no_row(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_json(copy / "model_index.json", processor=["transformers", "CLIPImageProcessor"])
    (copy / "processor").mkdir()
    assert "processor" not in find(str(copy)).parts
    CLIPImageProcessor().save_pretrained(copy / "processor")
    source = ["transformers", "CLIPImageProcessor"]
    assert load_component(copy, "processor", source, torch.float32, CPU).size
    with pytest.raises(ModelError, match="processor can't be read"):
        load_component(copy, "processor", ["transformers", "Qwen2VLProcessor"], torch.float32, CPU)
    monkeypatch.setattr("app.models.loading.CATALOGUE", ())
    facts = load(copy, CPU).facts
    assert (facts.guidance, facts.full_steps) == (7.5, 50)  # the pipeline's own


@pytest.mark.parametrize("index", [{"unet": None}, {"vae": "AutoencoderKL"}])
def test_incomplete_indexes(copy: Path, index: dict) -> None:
    edit_json(copy / "model_index.json", **index)
    with pytest.raises(ModelError, match=f"names no {next(iter(index))}"):
        load(copy, CPU)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_damaged_weights(copy: Path, part: str) -> None:
    weights = next((copy / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=f"{part} can't be read"):
        load(copy, CPU)
    weights.unlink()
    with pytest.raises(ModelError, match=f"{part} can't be read"):
        load(copy, CPU)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_not_all_there(copy: Path, part: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = next((copy / part).glob("*.safetensors"))
    tensors = load_file(weights)
    tensors.pop(next(reversed(tensors)))
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{part} lacks 1 weights"):
        load(copy, CPU)


@pytest.fixture
def learned(copy: Path) -> Path:
    """The copy with a solver that has learned something for 5 steps."""
    torch.manual_seed(0)
    policy = Policy(3, hidden=8, steps=(5, 5))
    policy.mlp[-1].get_parameter("bias").data.normal_(std=0.1)
    scheduler = ConsistencySolverScheduler.from_config(json.loads((copy / SCHEDULER).read_text()))
    scheduler.policy = policy
    scheduler.save_pretrained(copy / "solver")
    return copy


def test_previews_follow_what_was_learned(learned: Path) -> None:
    model = load(learned, CPU)
    worker = Worker(model)
    try:
        for steps, same in ((5, False), (6, True)):
            job = make_job(model, model="copy", solver="consistency", steps=steps, guidance=4.0)
            done: Any = list(worker.submit(job).events())[-1]
            plan = make_plan(
                "consistency", steps, model.facts.schedule, learned=model.facts.learned, guidance=4.0
            )
            denoise = model.diffusion.denoiser([job.prompt], torch.tensor([4.0]))
            latents = sample(plan, denoise, model.diffusion.noise([job.seed]))
            expected = np.asarray(model.pictures(latents)[0]).astype(int)
            assert np.abs(expected - np.asarray(done.picture)).max() <= 1
            assert (plan == make_plan("consistency", steps, model.facts.schedule)) == same
    finally:
        worker.close()


def test_damaged_solvers(learned: Path) -> None:
    policy = learned / "solver" / "policy.safetensors"
    policy.write_bytes(policy.read_bytes()[:100])
    with pytest.raises(ModelError, match="solver can't be used"):
        load(learned, CPU)
    policy.unlink()
    with pytest.raises(ModelError, match="solver can't be used"):
        load(learned, CPU)
    (learned / "solver" / "scheduler_config.json").write_text("[")
    with pytest.raises(ModelError, match="solver can't be used"):
        load(learned, CPU)


def test_damaged_texts(copy: Path) -> None:
    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer can't be read"):
        load(copy, CPU)
    (copy / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match=r"model_index\.json can't be read"):
        load(copy, CPU)
    (copy / "model_index.json").write_text("[]")
    with pytest.raises(ModelError, match=r"model_index\.json must hold"):
        load(copy, CPU)


def test_schedulers_that_no_solver_can_follow(copy: Path) -> None:
    edit_json(copy / "scheduler" / "scheduler_config.json", clip_sample=True)
    with pytest.raises(ModelError, match=r"scheduler can't be used: .*clip_sample"):
        load(copy, CPU)
    (copy / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ModelError, match="has no scheduler"):
        load(copy, CPU)


def test_parts_that_do_not_fit_together(copy: Path) -> None:
    from diffusers import AutoencoderKL

    misfit: Any = AutoencoderKL(latent_channels=8, block_out_channels=(8,), norm_num_groups=4)
    misfit.save_pretrained(copy / "vae")
    with pytest.raises(ModelError, match="do not fit together"):
        load(copy, CPU)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(ModelError, match=r"no cuda device .* Available: cpu"):
        pick_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert pick_device("auto").type == "cuda"
