"""The measures of how far generated pictures are from drawings, and the commands that take them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import checkpoints
from checkpoints.readers import READERS, ConvSceneReader
from checkpoints.recipe import evaluate
from checkpoints.recipe.data import picture_of, to_pixels
from checkpoints.recipe.realism import detect, features, kernel_distance

MODEL = Path(checkpoints.__file__).parent / "landscapes"


def test_kernel_distance_is_zero_for_equals_and_grows_with_the_difference() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(400, 20), torch.randn(400, 20)
    same, interval = kernel_distance(one, other)
    assert abs(same) < 2 * interval
    near, far = (kernel_distance(one, other + shift)[0] for shift in (0.5, 1.0))
    assert interval < near < far
    torch.testing.assert_close(
        kernel_distance(9 * one - 5, 9 * other - 4)[0], kernel_distance(one, other + 1 / 9)[0]
    )


def test_the_interval_of_a_kernel_distance_covers_its_spread() -> None:
    torch.manual_seed(0)
    told = np.array([kernel_distance(torch.randn(60, 5), torch.randn(60, 5) + 0.5) for _ in range(100)])
    spread = 1.96 * told[:, 0].std()
    assert 0.7 * spread < told[:, 1].mean() < 1.5 * spread


def test_sets_of_different_size_have_no_kernel_distance() -> None:
    with pytest.raises(ValueError, match="same size"):
        kernel_distance(torch.randn(10, 4), torch.randn(12, 4))


@pytest.fixture(scope="module")
def drawings() -> torch.Tensor:
    return to_pixels(np.stack([picture_of("fresh", 900_000 + i)[0] for i in range(96)]))


@pytest.mark.parametrize("name", READERS)
def test_features_are_one_row_a_picture_and_what_the_heads_read(drawings: torch.Tensor, name: str) -> None:
    reader = READERS[name].from_pretrained(MODEL / "readers" / name).eval()
    rows = features(reader, drawings[:5], batch=2)
    width = reader.features(drawings[:1]).shape[-1]
    assert rows.shape == (5, width * (1 if name == "reward" else len(reader.heads)))
    torch.testing.assert_close(rows[:, :width], reader.features(drawings[:5])[:, 0], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_detector_tells_what_differs_and_guesses_where_nothing_does(drawings: torch.Tensor) -> None:
    reader = ConvSceneReader.from_pretrained(MODEL / "readers" / "reward")
    accuracy, _ = detect(reader, drawings[48:], -drawings[:48], steps=12)
    assert accuracy > 0.8
    accuracy, interval = detect(reader, drawings[:48], drawings[48:], steps=4)
    assert abs(accuracy - 0.5) < 2 * interval


@pytest.mark.slow
def test_the_measures_run_as_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "STEPS", 4)
    monkeypatch.setattr(evaluate, "FINALS", 7)
    monkeypatch.setattr(evaluate, "detect", lambda *sides: detect(*sides, steps=2))
    monkeypatch.setattr(
        sys, "argv",
        ["evaluate", "--model", str(MODEL), "--only", "denoising", "kernel", "detector", "finals",
         "--count", "8", "--batch", "4", "--device", "cpu", "--json", str(tmp_path / "figures.json"),
         "--finals", str(tmp_path / "finals.png")],
    )  # fmt: skip
    evaluate.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["settings"] == {"count": 8, "guidance_scale": 3.0}
    assert 0 < figures["denoising"]["weighted_error"] < 0.3
    assert figures["denoising"]["error_at_50"] > figures["denoising"]["error_at_950"]
    assert figures["kernel"]["kernel_distance_judge_interval"] > 0
    assert 0 <= figures["detector"]["detector_accuracy"] <= 1
    assert Image.open(tmp_path / "finals.png").size == (6 * 512, 2 * 272)
