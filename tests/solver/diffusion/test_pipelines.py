"""ConsistencySolverScheduler inside stock diffusers pipelines with tiny random networks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from solver import (
    ConsistencySolverScheduler,
    LearnedSolver,
    NoiseSchedule,
    Plan,
    SampleState,
    guided,
    make_plan,
    sample,
)
from solver.grids import TimeGrid
from solver.sampling import Denoiser
from tests.solver.toys import FLOW, SD, relative_error

EMBEDDINGS = torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(1))
POOLED = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(6))
NOISE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
PICTURE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
LATENTS = torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))

LATENT = {"clip_sample": False, "steps_offset": 1}


def tiny_unet(**options: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **options,
    ).eval()


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4, 4),
        norm_num_groups=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()


@pytest.fixture(scope="module")
def parts(vae: Any) -> dict[str, Any]:
    parts = {"unet": tiny_unet(), "vae": vae, "scheduler": DDIMScheduler(**SD, **LATENT)}
    names = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    return parts | dict.fromkeys(names) | {"requires_safety_checker": False}


@pytest.fixture(scope="module")
def xl(vae: Any) -> dict[str, Any]:
    unet = tiny_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + POOLED.shape[-1],
    )
    parts = {"unet": unet, "vae": vae, "scheduler": DDIMScheduler(**SD, **LATENT)}
    return parts | dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))


@pytest.fixture(scope="module")
def sd3(vae: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    )
    parts = {
        "transformer": transformer.eval(),
        "vae": vae,
        "scheduler": FlowMatchEulerDiscreteScheduler(**FLOW),
    }
    names = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    return parts | dict.fromkeys(names)


MODELS = {
    "parts": (StableDiffusionPipeline, StableDiffusionImg2ImgPipeline),
    "xl": (StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline),
    "sd3": (StableDiffusion3Pipeline, StableDiffusion3Img2ImgPipeline),
}


@pytest.fixture(params=MODELS, ids=["sd", "sdxl", "sd3"])
def model(request: pytest.FixtureRequest) -> tuple[dict[str, Any], type, type]:
    """Parts of a model, and its pipelines from text and from a picture."""
    return request.getfixturevalue(request.param), *MODELS[request.param]


def pipeline(kind: type, parts: dict[str, Any], **learned: Any) -> Any:
    pipe = kind(**parts)
    pipe.scheduler = ConsistencySolverScheduler.from_config(pipe.scheduler.config, **learned)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, **options: Any) -> torch.Tensor:
    prompts = dict(zip(("negative_prompt_embeds", "prompt_embeds"), EMBEDDINGS, strict=True))
    if hasattr(pipe, "text_encoder_2"):
        prompts |= zip(("negative_pooled_prompt_embeds", "pooled_prompt_embeds"), POOLED, strict=True)
    prompts = {name: value.to(pipe.dtype) for name, value in prompts.items()}
    generator = torch.Generator().manual_seed(4)
    options |= {"guidance_scale": 3.0, "output_type": "latent", "return_dict": False}
    return pipe(**prompts, generator=generator, **options)[0]


def network(pipe: Any) -> Denoiser:
    """The pipeline's network as `run` has it called."""
    prompts, pooled = EMBEDDINGS.flatten(0, 1), POOLED.flatten(0, 1)
    sizes = torch.tensor([[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]] * 2)  # original, crop and target, for SDXL

    @torch.no_grad()
    def both(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if hasattr(pipe, "transformer"):
            return pipe.transformer(x, prompts, pooled, t, return_dict=False)[0]
        added = {"text_embeds": pooled, "time_ids": sizes}
        return pipe.unet(x, t, prompts, added_cond_kwargs=added, return_dict=False)[0]

    return guided(both, 3.0)


def remaining(plan: Plan, i: int, schedule: Any) -> Plan:
    """A plan from level i of another one on, without outputs from before."""
    t, alpha, sigma = (
        torch.tensor(numbers[i:]).double() for numbers in (plan.timestep, plan.alpha, plan.sigma)
    )
    grid = TimeGrid(t, torch.log(alpha / sigma))
    return LearnedSolver().plan_on(grid, NoiseSchedule.from_config(schedule))


def table(steps: int) -> dict[str, Any]:
    return make_plan("ddim", steps, SD, grid="linspace").to_dict()


def test_pipeline_makes_the_picture_of_the_plan(model: Any) -> None:
    parts, kind, _ = model
    pipe = pipeline(kind, parts)
    result = run(pipe, latents=NOISE, num_inference_steps=6)
    expected = sample(make_plan("consistency", 6, parts["scheduler"]), network(pipe), NOISE)
    assert relative_error(result, expected) < 1e-5
    assert torch.equal(result, run(pipe, latents=NOISE, num_inference_steps=6))


def test_image_to_image_makes_the_picture_of_the_remaining_levels(model: Any) -> None:
    parts, _, kind = model
    pipe = pipeline(kind, parts)
    result = run(pipe, image=LATENTS, strength=0.5, num_inference_steps=6)
    assert pipe.scheduler.begin_index == 3 and pipe.scheduler.step_index == 6
    plan = make_plan("consistency", 6, parts["scheduler"])
    noise = torch.randn(LATENTS.shape, generator=torch.Generator().manual_seed(4))
    noisy = plan.alpha[3] * LATENTS + plan.sigma[3] * noise
    expected = sample(remaining(plan, 3, parts["scheduler"]), network(pipe), noisy)
    assert relative_error(result, expected) < 1e-5


def test_a_refiner_goes_on_where_the_base_model_stops(xl: Any) -> None:
    base, refiner = (pipeline(kind, xl) for kind in MODELS["xl"])
    halfway = run(base, latents=NOISE, num_inference_steps=6, denoising_end=0.5)
    result = run(refiner, image=halfway, num_inference_steps=6, denoising_start=0.5)
    plan = make_plan("consistency", 6, SD)
    state = SampleState.start(plan, NOISE)
    while state.timestep >= 500:
        state.step(network(base)(state.x, torch.tensor([state.timestep])))
    assert relative_error(halfway, state.x) < 1e-5
    expected = sample(remaining(plan, state.index, SD), network(refiner), state.x)
    assert relative_error(result, expected) < 1e-5


def test_timesteps_or_sigmas_of_ones_own(parts: Any) -> None:
    pipe = pipeline(StableDiffusionPipeline, parts)
    result = run(pipe, latents=NOISE, num_inference_steps=6)
    custom = run(pipe, latents=NOISE, timesteps=pipe.scheduler.timesteps.tolist())
    assert relative_error(custom, result) < 1e-5
    assert run(pipe, latents=NOISE, sigmas=[14.0, 3.0, 0.5, 0.0]).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pipeline_in_half_precision(parts: Any, dtype: Any) -> None:
    exact = run(pipeline(StableDiffusionPipeline, parts), latents=NOISE, num_inference_steps=6)
    pipe = pipeline(StableDiffusionPipeline, parts).to(dtype)
    result = run(pipe, latents=NOISE.to(dtype), num_inference_steps=6)
    pipe.to(torch.float32)
    assert result.dtype == dtype
    assert relative_error(result.float(), exact) < 100 * torch.finfo(dtype).eps


def test_what_was_learned_survives_in_a_whole_pipeline(parts: Any, tmp_path: Path) -> None:
    pipe = pipeline(StableDiffusionPipeline, parts, tables=[table(6)])
    result = run(pipe, latents=NOISE, num_inference_steps=6)
    assert (
        relative_error(
            result, run(pipeline(StableDiffusionPipeline, parts), latents=NOISE, num_inference_steps=6)
        )
        > 1e-3
    )
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is ConsistencySolverScheduler
    assert torch.equal(run(loaded, latents=NOISE, num_inference_steps=6), result)


def test_image_to_image(parts: Any) -> None:
    pipe = pipeline(StableDiffusionImg2ImgPipeline, parts)
    faint, strong = (
        run(pipe, image=PICTURE, strength=strength, num_inference_steps=10) for strength in (0.1, 0.9)
    )
    assert pipe.scheduler.begin_index == 1 and pipe.scheduler.step_index == 10
    latents = pipe.vae.encode(2 * PICTURE - 1).latent_dist.mean * pipe.vae.config.scaling_factor
    assert (faint - latents).square().mean() < (strong - latents).square().mean()


def test_inpainting_keeps_what_it_should(parts: Any) -> None:
    pipe = pipeline(StableDiffusionInpaintPipeline, parts)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    result = run(
        pipe, image=PICTURE, mask_image=mask, num_inference_steps=5, height=16, width=16, strength=1.0
    )
    again = run(
        pipe, image=PICTURE, mask_image=mask, num_inference_steps=5, height=16, width=16, strength=1.0
    )
    assert result.isfinite().all() and torch.equal(result, again)


@pytest.fixture(scope="module")
def flux() -> dict[str, Any]:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    vae = AutoencoderKL(
        block_out_channels=(4,),
        norm_num_groups=2,
        latent_channels=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    parts = {"transformer": transformer.eval(), "vae": vae.eval(), "scheduler": scheduler}
    return parts | dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))


@pytest.mark.parametrize("kind", [FluxPipeline, FluxImg2ImgPipeline])
def test_flow_pipeline_shifts_with_the_resolution(flux: Any, kind: Any) -> None:
    pipe = pipeline(kind, flux)
    generator = torch.Generator().manual_seed(5)
    options = {"image": PICTURE, "strength": 0.6} if kind is FluxImg2ImgPipeline else {}
    result = pipe(
        prompt_embeds=torch.randn(1, 4, 32, generator=generator),
        pooled_prompt_embeds=torch.randn(1, 32, generator=generator),
        height=16,
        width=16,
        num_inference_steps=5,
        generator=generator,
        output_type="latent",
        return_dict=False,
        **options,
    )[0]
    assert result.isfinite().all()
    shift = pipe.scheduler.schedule.shift
    assert 1 < shift < 2 and pipe.scheduler.plan.nfe == 5
    u = np.arange(5, 0, -1) / 5
    np.testing.assert_allclose(pipe.scheduler.sigmas[:5], shift * u / (1 + (shift - 1) * u), rtol=1e-5)
