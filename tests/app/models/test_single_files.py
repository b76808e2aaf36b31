"""Checkpoints in one file, with their authors' names in it, make the pictures of the folders behind them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from app.catalogue import find
from app.jobs.job import Done
from app.models import Choice, ImageModel, ModelError, open_model
from app.worker import Worker
from app.worker.costs import Costs
from solver import NoiseSchedule
from tests import tiny_models
from tests.conftest import make_job
from tests.single_files import write_ldm

COSTS = Costs(rows=(1, 8), seconds=(0.01, 0.02), decode_s=0.01)
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = "cond_stage_model.transformer.text_model."


def build(family: str, place: Path) -> tuple[Path, Path, Path]:
    """A tiny model in a folder, as one file of the same weights, and the folder without its weights."""
    folder = tiny_models.build(family, place / "tiny")
    for path in folder.rglob("*.safetensors"):
        halves = {name: tensor.half().float() for name, tensor in load_file(path).items()}
        save_file(halves, path, metadata={"format": "pt"})
    file = write_ldm(DiffusionPipeline.from_pretrained(folder), place / "mine.safetensors")
    configs = shutil.copytree(folder, place / "configs", ignore=shutil.ignore_patterns("*.safetensors"))
    return folder, file, configs


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return build("stable_diffusion", tmp_path_factory.mktemp("sd15"))


@pytest.fixture(scope="module")
def checkpoint(sd15: tuple[Path, Path, Path]) -> Path:
    return sd15[1]


@pytest.fixture(scope="module")
def configs(sd15: tuple[Path, Path, Path]) -> Path:
    return sd15[2]


def preview(model: ImageModel) -> np.ndarray:
    worker = Worker(model, costs=COSTS)
    try:
        job = make_job(model, prompt="a boat", negative_prompt="rain", steps=4, seed=3)
        done = list(worker.submit(job).events())[-1]
    finally:
        worker.close()
    assert isinstance(done, Done)
    return np.asarray(done.picture)


def check_same(folder: Path, file: Path, configs: Path) -> ImageModel:
    """That the file's previews are the folder's, to the last level; the file's model."""
    one = open_model(Choice(str(file), "cpu", configs=configs))
    expected = preview(open_model(Choice(str(folder), "cpu")))
    assert one.facts.name == "mine" and expected.std() > 0
    assert np.array_equal(preview(one), expected)
    return one


def test_previews_are_those_of_the_folder(sd15: tuple[Path, Path, Path]) -> None:
    (warning,) = check_same(*sd15).facts.warnings
    assert warning == "mine.safetensors comes without a safety checker: its pictures are shown unchecked."


def test_previews_are_those_of_the_folder_with_two_text_encoders(tmp_path: Path) -> None:
    assert check_same(*build("stable_diffusion_xl", tmp_path)).facts.guidance == 5.0


@pytest.mark.parametrize("markers", [(), ("v_pred",), ("v_pred", "ztsnr"), ("ztsnr",)], ids="+".join)
def test_marker_tensors_tell_the_prediction_and_the_noise_schedule(
    markers: tuple[str, ...], tmp_path: Path
) -> None:
    """As finetunes of Stable Diffusion XL such as NoobAI have them; their configs say nothing."""
    folder, file, configs = build("stable_diffusion_xl", tmp_path)
    save_file(load_file(file) | {marker: torch.zeros(0) for marker in markers}, file)
    model = open_model(Choice(str(file), "cpu", configs=configs))
    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    if "v_pred" in markers:
        config |= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": "ztsnr" in markers}
    assert model.facts.schedule == NoiseSchedule.from_config(config)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    assert np.array_equal(preview(model), preview(open_model(Choice(str(folder), "cpu"))))


def test_a_denoiser_alone_takes_the_rest_from_its_base(sd15: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folder, file, configs = sd15
    alone = tmp_path / "mine.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if name.startswith(UNET)}, alone)
    check_same(folder, alone, folder)
    found = find(str(alone), configs=folder)
    assert found.rest == ("vae", "text_encoder") or set(found.rest) == {"vae", "text_encoder"}
    assert sum(found.parts.values()) == sum(find(str(folder)).parts.values())
    with pytest.raises(ModelError, match=r"has no .*vae.*, and .*configs does not have them complete"):
        find(str(alone), configs=configs)


def test_what_is_not_whole_is_refused_in_words(checkpoint: Path, configs: Path, tmp_path: Path) -> None:
    whole = load_file(checkpoint)
    path = tmp_path / "damaged.safetensors"
    for lacking, words in (
        (f"{UNET}out.2.bias", "lacks some weights of its parts.*Download the file again"),
        (f"{VAE}encoder.", "lacks some weights of its parts"),
        (f"{TEXT}encoder.", "lacks some weights of its text_encoder"),
        (f"{TEXT}embeddings.", "can't be read with the configs"),
        (VAE, "has no vae, and .* does not have them complete"),
        ("cond_stage_model.", "has no text_encoder, and .* does not have them complete"),
        (UNET, "is not a checkpoint of a known model"),
    ):
        save_file({name: tensor for name, tensor in whole.items() if not name.startswith(lacking)}, path)
        with pytest.raises(ModelError, match=words):
            open_model(Choice(str(path), "cpu", configs=configs))
    save_file(whole | {f"{VAE}decoder.conv_out.bias": torch.full((3,), torch.nan)}, path)
    with pytest.raises(ModelError, match=r"1 of \d+ weights of the vae in .*damaged.safetensors are damaged"):
        open_model(Choice(str(path), "cpu", configs=configs))
    save_file(whole | {f"{UNET}out.2.bias": torch.zeros(7)}, path)
    with pytest.raises(ModelError, match=r"can't be read with the configs .*Choose another --configs"):
        open_model(Choice(str(path), "cpu", configs=configs))


def test_configs_without_words_are_refused_in_words(checkpoint: Path, configs: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(configs, tmp_path / "configs", ignore=shutil.ignore_patterns("tokenizer*.json"))
    with pytest.raises(ModelError, match="tokenizer has no vocabulary"):
        open_model(Choice(str(checkpoint), "cpu", configs=copy))


def test_damaged_files_and_pickles_are_refused_in_words(
    checkpoint: Path, configs: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"is cut off: it has .* Download it again"):
        open_model(Choice(str(path), "cpu", configs=configs))
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ModelError, match="is a PyTorch pickle under another name"):
        open_model(Choice(str(path), "cpu", configs=configs))
    path.rename(tmp_path / "mine.ckpt")
    with pytest.raises(ModelError, match=r"can run code.*StableDiffusionPipeline.from_single_file\(OLD\)"):
        open_model(Choice(str(tmp_path / "mine.ckpt"), "cpu", configs=configs))
