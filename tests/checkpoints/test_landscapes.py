"""The embedded model as it ships: its files, the stock pipeline, the promise of preview and refinement."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open

import checkpoints
from checkpoints.recipe.data import picture_of, to_pixels
from solver import (
    ConsistencySolverScheduler,
    LearnedSolver,
    Plan,
    SampleState,
    guided,
    make_plan,
    noise_for_seed,
    psnr,
    sample,
)
from solver.diffusion import load_diffusion

FOLDER = Path(checkpoints.__file__).parent / "landscapes"
GUIDANCE = 3.0


@pytest.fixture(scope="module")
def pipe() -> DiffusionPipeline:
    pipe = DiffusionPipeline.from_pretrained(FOLDER)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe: DiffusionPipeline, prompt: str, seeds: list[int], steps: int, solver: str) -> torch.Tensor:
    """Pictures in 0..1, (seeds, 3, 256, 256), by our own loop; `consistency` is the shipped one."""
    learned = LearnedSolver.load(FOLDER / "solver")
    plan = make_plan(solver, steps, pipe.scheduler, learned=learned, guidance=GUIDANCE)
    noise = torch.stack([noise_for_seed(seed, (16, 16, 16)) for seed in seeds])
    with torch.inference_mode():
        states = torch.cat([pipe.encode_prompt(p, "cpu", 1, False)[0] for p in ("", prompt)])
        states = states.repeat_interleave(len(seeds), dim=0)
        denoise = guided(lambda x, t: pipe.unet(x, t, states).sample, GUIDANCE)
        latents = sample(plan, denoise, noise)
        return (pipe.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)


def test_files_are_half_precision_and_small() -> None:
    files = [file for file in FOLDER.rglob("*.safetensors") if file.parent.name not in ("prompts", "solver")]
    assert {file.parent.name for file in files} >= {"unet", "vae", "text_encoder"}
    assert max(file.stat().st_size for file in files) < 10e6
    assert sum(file.stat().st_size for file in FOLDER.rglob("*.safetensors")) < 60e6
    for file in files:
        with safe_open(file, "pt") as tensors:
            kinds = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        wide = [name for name, kind in kinds.items() if kind != "F16" and "num_batches" not in name]
        assert not wide


def test_the_stock_pipeline_draws_and_repeats_itself(pipe: DiffusionPipeline) -> None:
    first, again, other = (
        np.asarray(
            pipe(
                "a lake at night",
                num_inference_steps=4,
                guidance_scale=GUIDANCE,
                generator=torch.Generator().manual_seed(seed),
            ).images[0]
        ).astype(int)
        for seed in (1, 1, 2)
    )
    assert first.shape == (256, 256, 3)
    assert np.array_equal(first, again)
    assert np.abs(first - other).mean() > 5


def test_our_loop_is_the_stock_pipeline(pipe: DiffusionPipeline) -> None:
    prompt, noise = "green hills with a windmill", noise_for_seed(3, (16, 16, 16))[None]
    stock = pipe(
        prompt, num_inference_steps=8, guidance_scale=GUIDANCE, latents=noise, output_type="pt"
    ).images
    ours = paint(pipe, prompt, [3], 8, "dpm++2m")
    torch.testing.assert_close(ours, stock, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_a_preview_is_its_own_final_and_nobody_elses(pipe: DiffusionPipeline) -> None:
    seeds = [1, 2, 3]
    previews = paint(pipe, "snowy mountains at sunset with a lake", seeds, 6, "consistency")
    finals = paint(pipe, "snowy mountains at sunset with a lake", seeds, 40, "dpm++2m")
    likeness = torch.stack([psnr(previews[i].expand_as(finals), finals) for i in range(len(seeds))])
    assert likeness.argmax(dim=1).tolist() == [0, 1, 2]
    own = likeness.diagonal().mean()
    assert own > likeness[~torch.eye(3, dtype=torch.bool)].mean() + 6


def test_prompts_steer_and_unknown_words_do_not(pipe: DiffusionPipeline) -> None:
    plain, odd, other = (
        paint(pipe, prompt, [5], 10, "unipc")[0]
        for prompt in ("a volcano at night", "a blorpy volcano at night", "green hills by day")
    )
    assert plain.mean() < other.mean() - 0.1  # night is darker than day
    assert psnr(plain, odd) > psnr(plain, other) + 3


def test_a_sample_does_not_depend_on_its_company(pipe: DiffusionPipeline) -> None:
    states = pipe.encode_prompt("a castle at dawn", "cpu", 1, False)[0]
    plans = [make_plan("dpm++2m", 5, pipe.scheduler), make_plan("unipc", 3, pipe.scheduler)]

    def run(chosen: list[int]) -> dict[int, torch.Tensor]:
        running = {i: SampleState.start(plans[i], noise_for_seed(i, (16, 16, 16))) for i in chosen}
        with torch.inference_mode():
            while todo := [s for s in running.values() if not s.done]:
                outputs = pipe.unet(
                    torch.stack([s.model_input() for s in todo]),
                    torch.tensor([s.timestep for s in todo]),
                    states.expand(len(todo), -1, -1),
                ).sample
                for state, output in zip(todo, outputs, strict=True):
                    state.step(output)
        return {i: state.x for i, state in running.items()}

    together = run([0, 1])
    for i in (0, 1):
        alone = run([i])[i]
        assert (together[i] - alone).norm() < 1e-4 * alone.norm()


def test_reconstructions_are_true(pipe: DiffusionPipeline) -> None:
    drawn = np.stack([picture_of("fresh", 900_000 + i)[0] for i in range(8)])
    pixels = to_pixels(drawn)
    with torch.inference_mode():
        latents = pipe.vae.encode(pixels).latent_dist.mode()
        decoded = pipe.vae.decode(latents).sample.clamp(-1, 1)
    assert psnr(decoded / 2 + 0.5, pixels / 2 + 0.5).mean() > 28
    assert 0.8 < latents.std() < 1.2


@pytest.mark.slow
def test_shipped_solver_is_nearer_to_the_full_picture_than_unipc() -> None:
    """What was learned belongs to these weights: its previews agree better with 40 steps, seed for seed."""
    model = load_diffusion(FOLDER)
    scheduler = ConsistencySolverScheduler.from_pretrained(FOLDER, subfolder="solver")
    prompts = ["a castle by the sea at dawn", "desert with cacti at night, full moon", "snowy hills in fog"]
    denoise, noise = model.denoiser(prompts, torch.full((3,), 3.0)), model.noise([11, 12, 13])

    def pictures(plan: Plan) -> torch.Tensor:
        with torch.no_grad():
            return model.decode(sample(plan, denoise, noise)).clamp(0, 1)

    final = pictures(make_plan("dpm++2m", 40, model.schedule))
    for steps in (4, 6, 8):
        scheduler.set_timesteps(steps)
        learned, classical = pictures(scheduler.plan), pictures(make_plan("unipc", steps, model.schedule))
        assert float((psnr(learned, final) - psnr(classical, final)).mean()) > 0.5
