"""Every family makes the pictures of the stock pipeline, in whatever company."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from solver import ConsistencySolverScheduler, SampleState, make_plan
from solver.diffusion import Conditions, LatentDiffusion, load_diffusion
from solver.diffusion.flux import pack, unpack
from tests import tiny_models
from tests.solver.toys import relative_error
from tests.tiny_models import EDGE

PROMPTS = ("a lake at night", "snowy hills", "a boat")
NEGATIVES = ("", "cloudy sky", "rain")
STEPS = (4, 6, 5)
GUIDANCE = (1.0, 3.0, 5.5)


@pytest.fixture(scope="module", params=tiny_models.FAMILIES)
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> LatentDiffusion:
    return load_diffusion(folder, size=EDGE)


@pytest.fixture(scope="module")
def stock(folder: Path) -> Any:
    lacking = {"text_encoder_3": None, "tokenizer_3": None} if "without_t5" in folder.name else {}
    pipe = DiffusionPipeline.from_pretrained(folder, **lacking)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drop_in(stock: Any) -> Any:
    """The pipeline with our scheduler for its own."""
    pipe = type(stock)(**stock.components, **_settings(stock))
    pipe.scheduler = ConsistencySolverScheduler.from_config(stock.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _settings(stock: Any) -> dict[str, Any]:
    return {"requires_safety_checker": False} if "safety_checker" in stock.components else {}


def ask(pipe: Any, i: int, noise: torch.Tensor, **options: Any) -> torch.Tensor:
    """The latents [1, C, H, W] that a pipeline makes of request i."""
    flux = type(pipe).__name__.startswith("Flux")
    if "Kontext" in type(pipe).__name__:
        options["max_area"] = EDGE**2
    if not flux and NEGATIVES[i]:
        options["negative_prompt"] = NEGATIVES[i]
    made = pipe(
        prompt=PROMPTS[i],
        guidance_scale=GUIDANCE[i],
        num_inference_steps=STEPS[i],
        latents=pack(noise) if flux else noise,
        output_type="latent",
        return_dict=False,
        **{"height": EDGE, "width": EDGE, **options},
    )[0]
    return unpack(made, noise.shape) if flux else made


@torch.no_grad()
def together(model: LatentDiffusion, states: list[SampleState], conditions: Conditions) -> list[torch.Tensor]:
    """Follow all plans at once, one call of the network for all that are not done."""
    negatives = model.encode(NEGATIVES, negative=True)
    while unfinished := [i for i, state in enumerate(states) if not state.done]:
        rows = torch.tensor(unfinished)
        outputs = model.denoise(
            torch.stack([states[i].model_input() for i in unfinished]),
            torch.tensor([states[i].timestep for i in unfinished]),
            conditions[rows],
            negatives[rows],
            torch.tensor(GUIDANCE)[rows],
        )
        for i, output in zip(unfinished, outputs, strict=True):
            states[i].step(output)
    return [state.x for state in states]


def test_pictures_are_those_of_the_stock_pipeline(model: LatentDiffusion, stock: Any) -> None:
    noise = model.noise([1, 2, 3])
    plans = [make_plan("consistency", steps, model.schedule) for steps in STEPS]
    states = [SampleState.start(plan, x) for plan, x in zip(plans, noise, strict=True)]
    made = together(model, states, model.encode(PROMPTS))
    pipe = drop_in(stock)
    for i, latents in enumerate(made):
        assert relative_error(latents[None], ask(pipe, i, noise[i : i + 1])) < 1e-4
    assert relative_error(made[0], made[1]) > 1e-2


def test_prompts_guidance_and_negative_prompts_matter(model: LatentDiffusion) -> None:
    x, t = model.noise([1]), torch.tensor([700.0])
    prompts, negatives = model.encode(PROMPTS), model.encode(NEGATIVES, negative=True)

    @torch.no_grad()
    def output(prompt: int, negative: int, guidance: float) -> torch.Tensor:
        rows = slice(prompt, prompt + 1), slice(negative, negative + 1)
        return model.denoise(x, t, prompts[rows[0]], negatives[rows[1]], torch.tensor([guidance]))

    first = output(0, 0, 3.0)
    assert relative_error(output(1, 0, 3.0), first) > 1e-4
    assert (relative_error(output(0, 1, 3.0), first) > 1e-4) == (model.guidance_kind == "classifier-free")
    assert (relative_error(output(0, 0, 4.0), first) > 1e-4) == (model.guidance_kind != "none")


def test_the_models_own_scheduler_is_followed_too(model: LatentDiffusion, stock: Any) -> None:
    noise = model.noise([4])
    solver, options = "ddim", {}
    if model.schedule.is_flow:
        solver, options = "euler", {"sigmas": np.linspace(1, 1 / STEPS[2], STEPS[2])}
        pipe = stock
    else:
        from diffusers import DDIMScheduler

        pipe = drop_in(stock)
        pipe.scheduler = DDIMScheduler.from_config(
            stock.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
        )
    expected = ask(pipe, 2, noise, **options)
    states = [SampleState.start(make_plan(solver, STEPS[2], model.schedule), noise[0]) for _ in PROMPTS]
    assert relative_error(together(model, states, model.encode(PROMPTS))[2][None], expected) < 1e-4


@torch.no_grad()
def test_latents_are_decoded_and_pictures_encoded_as_in_the_pipeline(
    model: LatentDiffusion, stock: Any
) -> None:
    pictures = torch.rand(2, 3, EDGE, 2 * EDGE, generator=torch.Generator().manual_seed(1))
    latents = model.encode_pictures(pictures)
    assert latents.shape == (2, *model.shape_of(2 * EDGE, EDGE))
    config = stock.vae.config
    shift = config.shift_factor or 0.0
    expected = (stock.vae.encode(2 * pictures - 1).latent_dist.mean - shift) * config.scaling_factor
    assert relative_error(latents, expected) < 1e-5
    decoded = stock.vae.decode(latents / config.scaling_factor + shift).sample
    assert relative_error(model.decode(latents), decoded / 2 + 0.5) < 1e-5


def test_sizes_that_do_not_divide_are_refused_with_a_message(model: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match=f"multiples of {model.multiple} pixels"):
        model.shape_of(EDGE + 1, EDGE)
    assert model.shape_of(3 * EDGE, EDGE) == (4, EDGE // 2, 3 * EDGE // 2)


def test_flows_refuse_solvers_that_combine_noise(model: LatentDiffusion) -> None:
    if model.schedule.is_flow:
        for solver in ("dpm2m", "deis"):
            with pytest.raises(ValueError, match="a flow does not know"):
                make_plan(solver, 6, model.schedule)
    else:
        assert make_plan("deis", 6, model.schedule).nfe == 6
