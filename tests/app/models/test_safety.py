"""The safety checker in its real format: what it flags is told in words, and never shown."""

import json
import math
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from app.catalogue import ModelError, find
from app.jobs.handle import Handle
from app.jobs.job import Done, Failed, Job, Record, Step
from app.models import Choice, load, open_model
from app.models.safety import HELD_BACK, SafetyChecker, load_safety_checker
from app.page.views import status_view
from app.worker import Worker
from app.worker.decoder import FAILED, Decoder, DecodeRequest
from tests.conftest import make_job

BLUE, GREEN, RED = (Image.new("RGB", (64, 64), colour) for colour in ("blue", "green", "red"))


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a tiny checker that flags red pictures, saved as the real one is."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("safety") / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=64)).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    with torch.no_grad():
        checker.visual_projection.weight.normal_()
        seen = processor([RED], return_tensors="pt").pixel_values
        embedding = checker.visual_projection(checker.vision_model(seen)[1])
        checker.concept_embeds.copy_(embedding.expand(17, -1))
        checker.concept_embeds_weights.fill_(0.999)
        checker.special_care_embeds_weights.fill_(2.0)  # never
    checker.save_pretrained(folder / "safety_checker")
    processor.save_pretrained(folder / "feature_extractor")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPFeatureExtractor"]  # as in older models
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def checker(folder: Path) -> SafetyChecker:
    loaded = load_safety_checker(folder)
    assert loaded
    return loaded


def test_it_flags_as_the_stock_pipeline_does(folder: Path, checker: SafetyChecker) -> None:
    from diffusers import StableDiffusionPipeline

    stock = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pictures = [BLUE, RED, GREEN]
    pixels = np.stack([np.asarray(picture) / 255 for picture in pictures])
    _, expected = stock.run_safety_checker(pixels, "cpu", torch.float32)
    assert checker.flagged(pictures) == [bool(flag) for flag in expected] == [False, True, False]
    assert RED.getpixel((0, 0)) == (255, 0, 0)  # nothing is painted black
    assert checker.flagged([]) == []


def post(checker: Any, colours: list[Image.Image | None]) -> list[Any]:
    """What the decoder delivers for these pictures: a picture, a step without one, or a failure."""
    model = SimpleNamespace(
        device=torch.device("cpu"),
        pictures=lambda latents, preview: [colours[int(i)] for i in latents[:, 0]],
        safety=checker,
    )
    return delivered(model, [None if c is None else torch.tensor([float(i)]) for i, c in enumerate(colours)])


def delivered(model: Any, latents: Sequence[torch.Tensor | None]) -> list[Any]:
    """The outcome of each request to decode: finished pictures, and None for a step that has none."""
    told: list[Any] = []
    job = Job("preview", "a lake", 1, 6, "m", 64, 64)
    handles = [Handle(Mock(), job) for _ in latents]
    Decoder(model).submit(
        [
            DecodeRequest(handle, Step(1, 6, 0.0) if x is None else Record(job, "0" * 64, 6, 1.0), x)
            for handle, x in zip(handles, latents, strict=True)
        ]
    )
    for handle in handles:
        handle.listen(SimpleNamespace(put=lambda each: told.append(each[1])))
    return [event if isinstance(event, Failed) else event.picture for event in told]


def test_flagged_pictures_are_held_back_and_all_others_told(checker: SafetyChecker) -> None:
    assert post(checker, [BLUE, RED, None, GREEN]) == [BLUE, HELD_BACK, None, GREEN]
    assert post(None, [BLUE, RED]) == [BLUE, RED]  # switched off
    assert "Try another seed" in HELD_BACK.message


def test_a_checker_that_fails_shows_nothing() -> None:
    """Rather no picture than one that nobody has looked at."""

    class Broken:
        def flagged(self, pictures: Any) -> Any:
            raise RuntimeError("out of order")

    assert post(Broken(), [BLUE, None]) == [FAILED, None]


def test_models_without_one_have_none(tiny_folder: Path, folder: Path, tmp_path: Path) -> None:
    assert load_safety_checker(tiny_folder) is None
    copy = shutil.copytree(folder, tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"safety_checker": [None, None]}))
    assert load_safety_checker(copy) is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def spoil(path: Path) -> None:
    """One weight becomes NaN."""
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", math.nan))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: shutil.rmtree(folder / "safety_checker"), "no folder safety_checker"),
        (lambda folder: shutil.rmtree(folder / "feature_extractor"), "no folder feature_extractor"),
        (lambda folder: cut(folder / "safety_checker" / "model.safetensors"), "is cut off"),
        (lambda folder: spoil(folder / "safety_checker" / "model.safetensors"), "contains NaN"),
        (lambda folder: (folder / "safety_checker" / "config.json").write_text("{"), "can't be read"),
    ],
)
def test_a_damaged_checker_is_told_in_words(damage: Any, words: str, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)
    with pytest.raises(ModelError, match=words):
        load_safety_checker(copy)


def test_the_catalogue_counts_it(folder: Path) -> None:
    assert find(str(folder)).parts["safety_checker"] > 0


def test_the_worker_says_what_is_held_back(folder: Path) -> None:
    model = load(folder, torch.device("cpu"))
    assert model.safety and load(folder, torch.device("cpu"), safety_checker=False).safety is None
    worker = Worker(model)
    try:
        shown = list(worker.submit(make_job(model, steps=3)).events())[-1]
        assert isinstance(shown, Done)
        model.safety.checker.concept_embeds_weights.fill_(-2)  # everything
        *before, last = worker.submit(make_job(model, steps=3, seed=5)).events()
        assert last == HELD_BACK
        assert not any(isinstance(event, Step) and event.picture for event in before)
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("wanted", "index", "words"),
    [
        (False, {}, "is switched off: its pictures are shown unchecked"),
        (
            True,
            {"safety_checker": [None, None], "requires_safety_checker": True},
            "lacks the safety checker that its pipeline requires: its pictures are shown unchecked",
        ),
        (True, {"safety_checker": [None, None], "requires_safety_checker": False}, ""),
        (False, {"safety_checker": [None, None]}, ""),
        (True, {}, ""),
    ],
)
def test_whoever_runs_it_and_whoever_uses_it_are_told_that_nothing_is_checked(
    wanted: bool, index: dict[str, Any], words: str, folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | index))
    model = open_model(Choice(str(copy), "cpu", safety_checker=wanted))
    assert len(model.facts.warnings) == bool(words) and words in "".join(model.facts.warnings)
    assert (model.safety is not None) == (wanted and not index)
    backend: Any = SimpleNamespace(facts=model.facts, healthy=True)
    assert status_view(backend)["warnings"] == list(model.facts.warnings)


def test_without_a_checker_its_folder_is_not_needed(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / "safety_checker")
    with pytest.raises(ModelError, match="no-safety-checker"):
        open_model(Choice(str(copy), "cpu"))
    assert open_model(Choice(str(copy), "cpu", safety_checker=False)).safety is None


def test_what_overflows_is_told_and_never_a_black_picture(folder: Path) -> None:
    model = load(folder, torch.device("cpu"))
    good, bad = torch.zeros(2, *model.diffusion.latent_shape)
    bad[0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError):
        model.pictures(bad[None])
    told = delivered(model, (good, bad, good))
    assert told[1] == FAILED and all(isinstance(told[i], Image.Image) for i in (0, 2))
