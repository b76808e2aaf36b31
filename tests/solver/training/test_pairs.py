"""Pairs are the app's refinements: of these prompts, seeds and scales, once each, whatever interrupts."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from PIL import Image

import checkpoints  # noqa: F401  registers the embedded model's classes
from solver import sample
from solver.diffusion import LatentDiffusion, load_diffusion
from solver.diffusion.flux import pack, unpack
from solver.training import pairs as module
from solver.training.pairs import Prompt, Target, load_pairs, make_pairs, read_prompts
from tests import tiny_models

LANDSCAPES = "checkpoints/landscapes"
PROMPTS = [Prompt("a lake at dusk"), Prompt("snowy mountains", {"weather": "snow"}), Prompt("a desert")]
TARGET = Target("dpm++2m", 3)
OPTIONS: dict[str, Any] = {"count": 5, "guidance": (1.0, 3.0), "first_seed": 7, "target": TARGET, "batch": 2}


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return load_diffusion(LANDSCAPES)


@pytest.fixture(scope="module")
def made(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    make_pairs(model, PROMPTS, folder, **OPTIONS)
    return folder


def test_pairs_are_the_stock_pipelines_pictures(made: Any) -> None:
    """Prompt, noise of the seed, guidance, solver: as diffusers' own pipeline makes them."""
    pairs = load_pairs(made)
    pipe = DiffusionPipeline.from_pretrained(LANDSCAPES, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, DPMSolverMultistepScheduler)
    assert [p.prompt for p in pairs.prompts] == [PROMPTS[i].prompt for i in (0, 1, 2, 0, 1)]
    assert pairs.prompts[1].attributes == {"weather": "snow"}
    assert pairs.seeds == [7, 8, 9, 10, 11] and pairs.guidance.tolist() == [1, 3, 1, 3, 1]
    for i in (1, 2):
        theirs = pipe(
            pairs.prompts[i].prompt,
            num_inference_steps=3,
            guidance_scale=float(pairs.guidance[i]),
            generator=torch.Generator().manual_seed(pairs.seeds[i]),
            output_type="latent",
        ).images
        torch.testing.assert_close(pairs.latents[i : i + 1], theirs, rtol=1e-4, atol=1e-4)


def test_interrupted_and_shared_work_gives_the_same_pairs(model: Any, made: Any, tmp_path: Path) -> None:
    for process in (1, 0):
        make_pairs(model, PROMPTS, tmp_path, **OPTIONS, process=process, processes=2)
        if process:
            with pytest.raises(FileNotFoundError, match="2 of 3 shards are missing"):
                load_pairs(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    make_pairs(model, PROMPTS, tmp_path, **OPTIONS)  # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")} == before
    assert torch.equal(load_pairs(tmp_path).latents, load_pairs(made).latents)


def test_other_pairs_are_not_overwritten(model: Any, made: Any) -> None:
    with pytest.raises(ValueError, match="pairs made with other options"):
        make_pairs(model, PROMPTS, made, **OPTIONS | {"first_seed": 8})


def test_taking_pairs_keeps_them_together(made: Any) -> None:
    pairs = load_pairs(made)
    some = pairs.take([3, 0, 3])
    assert some.seeds == [10, 7, 10] and some.guidance.tolist() == [3, 1, 3]
    assert torch.equal(some.latents, pairs.latents[[3, 0, 3]])
    assert [p.prompt for p in some.prompts] == [pairs.prompts[i].prompt for i in (3, 0, 3)]


def test_batch_is_its_samples_alone(model: Any) -> None:
    """Each with its own timestep and guidance, one of them without guidance."""
    x, t = model.noise([1, 2, 3]), torch.tensor([900.0, 500.5, 20.0])
    guidance, embeddings = torch.tensor([3.0, 1.0, 7.5]), model.encode([p.prompt for p in PROMPTS])
    negatives = model.encode([""] * 3)
    with torch.no_grad():
        together = model.denoise(x, t, embeddings, negatives, guidance)
        for i in range(3):
            one = slice(i, i + 1)
            alone = model.denoise(x[one], t[one], embeddings[one], negatives[one], guidance[one])
            torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-4)


def test_models_are_told_apart(model: Any) -> None:
    fingerprint = model.fingerprint
    weight = next(model.network.parameters())
    weight.data += 1
    changed = model.fingerprint
    weight.data -= 1
    assert changed != fingerprint


def test_prompts_are_read_from_lines_and_objects(tmp_path: Path) -> None:
    text, lines = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    text.write_text("a lake\n\n  a desert \n", encoding="utf-8")
    assert read_prompts(text) == [Prompt("a lake"), Prompt("a desert")]
    lines.write_text(
        json.dumps({"prompt": "snow", "attributes": {"weather": "snow"}}) + "\n", encoding="utf-8"
    )
    assert read_prompts(lines) == [Prompt("snow", {"weather": "snow"})]
    lines.write_text('{"prompt": "a"}\n{"text": "b"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: expected"):
        read_prompts(lines)
    text.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="contains no prompts"):
        read_prompts(text)


def test_edits_are_the_stock_pipelines_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture of each prompt is beside the noise, cut to the model's size, and its latents are kept."""
    monkeypatch.setattr("solver.diffusion.flux.NATIVE", 8)
    folder = tiny_models.build("flux_kontext", tmp_path / "kontext")
    model = load_diffusion(folder)
    lines = tmp_path / "edits.jsonl"
    for i, size in enumerate(((40, 16), (16, 16))):
        Image.effect_noise(size, 200).convert("RGB").save(tmp_path / f"{i}.png")
    entries = [{"prompt": "make it snow", "image": "0.png"}, {"prompt": "add a boat", "image": "1.png"}]
    lines.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    prompts = read_prompts(lines)
    assert [prompt.image for prompt in prompts] == [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    options: dict[str, Any] = {"count": 3, "guidance": (2.5,), "target": Target("euler", 3), "batch": 2}
    make_pairs(model, prompts, tmp_path / "pairs", **options)
    pairs = load_pairs(tmp_path / "pairs")
    assert pairs.reference is not None and pairs.reference.shape == pairs.latents.shape
    torch.testing.assert_close(pairs.reference[0], pairs.reference[2])  # the same prompt again
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    for i in range(3):
        one = pairs.take([i])
        theirs = pipe(
            prompt=one.prompts[0].prompt,
            image=one.reference,
            guidance_scale=2.5,
            num_inference_steps=3,
            sigmas=[1, 2 / 3, 1 / 3],
            height=16,
            width=16,
            max_area=256,
            latents=pack(model.noise(one.seeds)),
            output_type="latent",
        ).images
        torch.testing.assert_close(one.latents, unpack(theirs, one.latents.shape), rtol=1e-4, atol=1e-4)
    pixels = torch.from_numpy(np.array(Image.open(tmp_path / "1.png"))).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(pairs.reference[1:2], model.encode_pictures(pixels))


def test_pictures_that_cannot_be_edited_are_answered_with_a_message(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solver.diffusion.flux.NATIVE", 8)
    picture, text = tmp_path / "0.png", tmp_path / "1.png"
    Image.new("RGB", (20, 20)).save(picture)
    text.write_text("no picture")
    edits = [Prompt("make it snow", image=str(picture)), Prompt("add a boat", image=str(text))]
    with pytest.raises(ValueError, match=r"does not edit pictures: remove .*0\.png.*editing model"):
        make_pairs(model, edits, tmp_path / "pairs", **OPTIONS)
    editor = load_diffusion(tiny_models.build("flux_kontext", tmp_path / "kontext"))
    for prompts, words in (
        (edits, r"Cannot read .*1\.png as a picture"),
        ([*edits, Prompt("a lake")], "1 of 3 prompts have no image: give one to all or none"),
        (
            [edits[0], Prompt("a lake", image="nowhere.png")],
            r"1 of 2 images are missing; the first is .*nowhere\.png",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            make_pairs(editor, prompts, tmp_path / words[:3], **OPTIONS | {"guidance": (2.5,)})


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["solver.training.pairs", *arguments])
    module.main()


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "pairs"
    prompts.write_text("a lake at dusk\n", encoding="utf-8")
    command(
        monkeypatch, "--prompts", str(prompts), "--out", str(out), "--count", "2", "--steps", "2", "--cpu"
    )
    pairs = load_pairs(out)
    assert len(pairs) == 2 and pairs.target == Target(steps=2)
    for arguments, message in (
        (("--prompts", str(tmp_path / "none.txt"), "--out", str(out)), "none.txt"),
        (("--prompts", str(prompts), "--out", str(out), "--count", "3", "--cpu"), "made with other options"),
        (("--prompts", str(prompts), "--out", str(tmp_path), "--steps", "0"), "steps must be"),
        (("--prompts", str(prompts), "--out", str(tmp_path), "--count", "0"), "must be at least 1"),
        (("--prompts", str(prompts), "--out", str(tmp_path), "--guidance", "0.5"), "must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            command(monkeypatch, *arguments)
        assert message in capsys.readouterr().err


def test_no_pairs_are_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"make them with `python -m solver pairs`"):
        load_pairs(tmp_path)


def test_the_plan_of_the_target_is_what_made_them(model: Any, made: Any) -> None:
    from solver import make_plan

    pairs = load_pairs(made)
    denoise = model.denoiser([p.prompt for p in pairs.prompts], pairs.guidance)
    again = sample(make_plan("dpm++2m", 3, model.schedule), denoise, model.noise(pairs.seeds))
    assert torch.linalg.norm(again - pairs.latents) < 1e-4 * torch.linalg.norm(pairs.latents)


def test_targets_can_end_at_the_lowest_level_and_old_files_still_compare(
    model: Any, made: Any, tmp_path: Path
) -> None:
    lowest = Target("dpm2m", 3, "linspace", to_zero=False)
    assert lowest.plan(model.schedule).sigma[-1] == pytest.approx(float(model.schedule.sigma(0.0)))
    make_pairs(model, [Prompt("a lake")], tmp_path, count=1, target=lowest)
    assert load_pairs(tmp_path).target == lowest
    settings = json.loads((tmp_path / "pairs.json").read_text())
    assert settings["target"]["to_zero"] is False
    make_pairs(model, [Prompt("a lake")], tmp_path / "usual", count=1, target=Target("euler", 2))
    usual = json.loads((tmp_path / "usual" / "pairs.json").read_text())
    assert "to_zero" not in usual["target"], "files from before compare equal"
    assert load_pairs(tmp_path / "usual").target.to_zero
