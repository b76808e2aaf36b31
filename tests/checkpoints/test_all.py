"""Everything from drawings to a pipeline, in one command within a budget of minutes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from checkpoints.recipe import all as recipe

QUICK = ["--pictures", "64", "--device", "cpu"]


def test_stages_share_the_time_that_is_left() -> None:
    left = ["judge", "reward", "unet", "decoder"]
    minutes = [recipe.share_of(stage, left[i:], 10) for i, stage in enumerate(left)]
    assert minutes[-1] == 10 and minutes[0] < 1 < 8 < minutes[2]  # what comes last takes all that is left
    assert recipe.share_of("unet", left, -3) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes must be above 0"),
        (["--minutes", "1", "--init", "nowhere"], "use --from-scratch"),
    ],
)
def test_what_cannot_work_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        recipe.main([*arguments, "--work", str(tmp_path)])
    assert message in capsys.readouterr().err


def _paint(folder: Path) -> torch.Tensor:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("hills by day", num_inference_steps=4, generator=generator, output_type="pt").images


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_makes_a_model_that_paints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--minutes", "0.7", "--work", str(tmp_path), "--batch", "8", *QUICK]
    command = [sys.executable, "-m", "checkpoints.recipe.all", *arguments]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "unet" / "log.jsonl"
    deadline = time.monotonic() + 240
    while not (log.exists() and log.stat().st_size) and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert run.poll() is None, "it ended before it could be killed"
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    rendered = (tmp_path / "drawings" / "pictures.npy").stat().st_mtime_ns
    recipe.main(arguments)
    told = capsys.readouterr().out
    assert "drawings: done before" in told and "judge: done before" in told and "is ready" in told
    assert (tmp_path / "drawings" / "pictures.npy").stat().st_mtime_ns == rendered
    out = tmp_path / "model"
    weights = list(out.rglob("*.safetensors"))
    assert len(weights) > 5 and max(file.stat().st_size for file in weights) < 16_000_000
    assert (out / "readers" / "judge" / "config.json").exists()
    pictures = _paint(out)
    assert pictures.shape == (1, 3, 256, 256) and 0.02 < pictures.std() < 0.5
    recipe.main(arguments)
    assert capsys.readouterr().out.count("done before") == 6


@pytest.mark.slow
def test_everything_can_be_trained_from_scratch(tmp_path: Path) -> None:
    recipe.main(["--minutes", "0.5", "--work", str(tmp_path), "--batch", "8", "--from-scratch", *QUICK])
    assert _paint(tmp_path / "model").isfinite().all()
    minutes = recipe.Progress(tmp_path / "all.json").minutes
    assert list(minutes) == list(recipe.SHARES)
    assert all(value > 0 for value in minutes.values())
