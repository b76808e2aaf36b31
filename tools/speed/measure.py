"""Time four previews from prompt embeddings to pictures: the stock pipeline, then each switch of the app."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from app.models.compiled import Compiled
from app.page.prompts import EXAMPLES
from solver import NoiseSchedule, classifier_free_guidance, make_plan, noise_for_seed, sample
from tools.latency import synchronize, timed
from tools.speed.shapes import Shape

log = logging.getLogger(__name__)

PREVIEWS, STEPS, GUIDANCE = 4, 6, 3.0
COMPILE_LIMIT_S = 1800


@dataclass(eq=False)
class Case:
    """The networks of a model on a device, with inputs for PREVIEWS pictures of `size` pixels.

    Attributes:
        denoiser: the network, or a `Compiled` around it.
        stream: CUDA stream of the decoder; None for the denoiser's own.
        times: seconds of each part, one for each run of `own`.
    """

    shape: Shape
    size: int
    pipe: Any
    inputs: dict[str, Tensor]
    device: torch.device
    denoiser: Any
    preview_decoder: Any = None
    stream: Any = None
    dtype: torch.dtype = torch.float32
    times: dict[str, list[float]] = field(default_factory=dict)

    @property
    def latent_edge(self) -> int:
        return self.size // self.pipe.vae_scale_factor


def build(shape: Shape, size: int, device: torch.device, dtype: torch.dtype) -> Case:
    """Build a model with random weights from a fixed seed, on the device itself."""
    torch.manual_seed(0)
    with torch.device(device):
        network = getattr(diffusers, shape.denoiser)(**shape.config)
        vae = diffusers.AutoencoderKL(**shape.autoencoder)
    network, vae = (part.to(dtype).eval().requires_grad_(False) for part in (network, vae))
    scheduler = getattr(diffusers, shape.scheduler)(**shape.schedule)
    name = "transformer" if shape.is_flux else "unet"
    parts: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    if shape.pipeline == "StableDiffusionPipeline":
        parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
        parts |= {"requires_safety_checker": False}
    elif not shape.is_flux:
        parts |= {"add_watermarker": False}
    pipe = getattr(diffusers, shape.pipeline)(**parts, vae=vae, scheduler=scheduler, **{name: network})
    pipe.set_progress_bar_config(disable=True)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=torch.Generator().manual_seed(1)).to(device, dtype)

    inputs = {"prompt_embeds": draw(1, shape.tokens, shape.width)}
    if not shape.is_flux:
        inputs["negative_prompt_embeds"] = draw(1, shape.tokens, shape.width)
    if shape.pooled:
        inputs["pooled_prompt_embeds"] = draw(1, shape.pooled)
        if not shape.is_flux:
            inputs["negative_pooled_prompt_embeds"] = draw(1, shape.pooled)
    return Case(shape, size, pipe, inputs, device, network, dtype=dtype)


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> Case:
    """Load the Stable Diffusion model in a folder, with its weights, and encode a prompt."""
    import checkpoints  # noqa: F401  the embedded model's autoencoder

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=dtype)
    pipe.to(device).set_progress_bar_config(disable=True)
    with torch.inference_mode():
        prompt, negative = pipe.encode_prompt(EXAMPLES[0], device, 1, True)
    config = {key: value for key, value in pipe.unet.config.items() if not key.startswith("_")}
    shape = Shape(
        pipeline="StableDiffusionPipeline",
        denoiser="UNet2DConditionModel",
        config=config,
        autoencoder={},
        scheduler="DPMSolverMultistepScheduler",
        schedule={},
        tokens=prompt.shape[1],
        width=prompt.shape[2],
        preview_decoder=None,
    )
    inputs = {"prompt_embeds": prompt, "negative_prompt_embeds": negative}
    size = config["sample_size"] * pipe.vae_scale_factor
    return Case(shape, size, pipe, inputs, device, pipe.unet, dtype=dtype)


def stock(case: Case) -> list[Image.Image]:
    """Make the previews with the stock pipeline."""
    return case.pipe(
        **case.inputs,
        num_images_per_prompt=PREVIEWS,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        height=case.size,
        width=case.size,
        generator=torch.Generator().manual_seed(0),
    ).images


def denoiser_inputs(case: Case, rows: int) -> dict[str, Any]:
    """Return the network's inputs besides latents and timesteps, for `rows` pictures with guidance."""
    given = {name: tensor.repeat_interleave(rows, dim=0) for name, tensor in case.inputs.items()}
    if case.shape.is_flux:
        edge = case.latent_edge // 2
        return {
            "encoder_hidden_states": given["prompt_embeds"],
            "pooled_projections": given["pooled_prompt_embeds"],
            "guidance": torch.full((rows,), GUIDANCE, device=case.device),
            "txt_ids": torch.zeros(case.shape.tokens, 3, device=case.device, dtype=case.dtype),
            "img_ids": case.pipe._prepare_latent_image_ids(1, edge, edge, case.device, case.dtype),
        }
    inputs: dict[str, Any] = {
        "encoder_hidden_states": torch.cat([given["negative_prompt_embeds"], given["prompt_embeds"]])
    }
    if case.shape.pooled:
        sizes = torch.tensor([case.size, case.size, 0, 0, case.size, case.size])
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.cat([given["negative_pooled_prompt_embeds"], given["pooled_prompt_embeds"]]),
            "time_ids": sizes.repeat(2 * rows, 1).to(case.device, case.dtype),
        }
    return inputs


def evaluate(case: Case, inputs: dict[str, Any], x: Tensor, t: Tensor) -> Tensor:
    """Evaluate the network with guidance for latents [n, …], as the worker does."""
    if case.shape.is_flux:
        return case.denoiser(x.to(case.dtype), timestep=t / 1000, **inputs, return_dict=False)[0]
    both = torch.cat([x, x]).to(case.dtype)
    output = case.denoiser(both, torch.cat([t, t]), **inputs, return_dict=False)[0]
    unconditional, conditional = output.float().chunk(2)
    return classifier_free_guidance(unconditional, conditional, GUIDANCE)


def noise(case: Case) -> Tensor:
    """Draw noise from one seed per picture, as the worker does; packed for networks of tokens."""
    edge, channels = case.latent_edge, case.pipe.vae.config.latent_channels
    latents = torch.stack([noise_for_seed(seed, (channels, edge, edge)) for seed in range(PREVIEWS)])
    if case.shape.is_flux:
        latents = case.pipe._pack_latents(latents, PREVIEWS, channels, edge, edge)
    return latents.to(case.device)


def decode(case: Case, latents: Tensor) -> list[Image.Image]:
    """Decode latents to pictures in the CPU's memory, with the preview decoder if there is one."""
    if case.shape.is_flux:
        latents = case.pipe._unpack_latents(latents, case.size, case.size, case.pipe.vae_scale_factor)
    config = case.pipe.vae.config
    if case.preview_decoder is None:
        z = latents.to(case.dtype) / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        pixels = case.pipe.vae.decode(z, return_dict=False)[0]
    else:
        pixels = case.preview_decoder.decode(latents.to(case.dtype), return_dict=False)[0]
    levels = ((pixels.float() / 2 + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).cpu().numpy()]


@torch.inference_mode()
def own(case: Case) -> list[Image.Image]:
    """Make the previews as the app does: one batch; the first picture is decoded before the others."""
    inputs = denoiser_inputs(case, PREVIEWS)
    schedule = NoiseSchedule.from_config(case.pipe.scheduler.config)
    plan = make_plan("dpm++2m", STEPS, schedule)
    began = time.perf_counter()
    latents = sample(plan, lambda x, t: evaluate(case, inputs, x, t), noise(case))
    synchronize(case.device)
    denoised = time.perf_counter()
    with torch.cuda.stream(case.stream) if case.stream else nullcontext():
        pictures = decode(case, latents[:1])
        first = time.perf_counter()
        pictures += decode(case, latents[1:])
    for name, seconds in (
        ("denoiser_s", denoised - began),
        ("decoder_s", time.perf_counter() - denoised),
        ("first_preview_s", first - began),
    ):
        case.times.setdefault(name, []).append(seconds)
    return pictures


# The switches, in the order in which they are added; each changes the case in place.


def as_it_is(case: Case) -> None:
    """Change nothing: the app's own sampling loop."""


def channels_last(case: Case) -> None:
    for network in (case.denoiser, case.pipe.vae):
        network.to(memory_format=torch.channels_last)


def fused_qkv(case: Case) -> None:
    case.denoiser.fuse_qkv_projections()
    if hasattr(case.pipe.vae, "fuse_qkv_projections"):
        case.pipe.vae.fuse_qkv_projections()


def compiled_blocks(case: Case) -> None:
    case.denoiser = Compiled(case.denoiser)


def preview_decoder(case: Case) -> None:
    assert case.shape.preview_decoder is not None
    with torch.device(case.device):
        tiny = diffusers.AutoencoderTiny(**case.shape.preview_decoder)
    case.preview_decoder = tiny.to(case.dtype).eval().requires_grad_(False)
    if case.device.type == "cuda":
        case.stream = torch.cuda.Stream(case.device)


SWITCHES: dict[str, Callable[[Case], None]] = {
    "own loop": as_it_is,
    "channels last": channels_last,
    "fused QKV": fused_qkv,
    "compiled blocks": compiled_blocks,
    "preview decoder": preview_decoder,
}


def matmul_rate(device: torch.device, dtype: torch.dtype, edge: int) -> float:
    """Measure the TFLOP/s of products of two random [edge, edge] matrices."""
    a, b = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))

    def run() -> None:
        a @ b
        synchronize(device)

    return 2 * edge**3 / timed(run, 10) / 1e12


@torch.inference_mode()
def work(case: Case) -> float:
    """Count the TFLOP of all evaluations of the denoiser for the previews."""
    inputs, x = denoiser_inputs(case, PREVIEWS), noise(case)
    with FlopCounterMode(display=False) as denoising:
        evaluate(case, inputs, x, torch.full((PREVIEWS,), 500.0, device=case.device))
    return STEPS * denoising.get_total_flops() / 1e12


def without_sdpa() -> Any:
    """Compute attention by plain matrix products."""
    return torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)


def rows(
    make: Callable[[torch.dtype], Case], dtype: torch.dtype, repeats: int, rate: float
) -> Iterator[dict[str, Any]]:
    """Yield a row for the stock pipeline, then for each added switch; seconds are medians for all previews.

    Args:
        make: returns a fresh case of a precision.
        rate: TFLOP/s of matrix products in `dtype`, as `matmul_rate` measures it.
    """
    precisions = [torch.float32, dtype] if dtype != torch.float32 else [dtype]
    for precision in precisions:
        case = make(precision)
        words = str(precision).removeprefix("torch.")
        yield stock_row(f"stock, {words}", case, repeats)
        if precision != dtype:
            yield measured(f"own loop, {words}", case, repeats, rate, work(case))
            del case
    try:
        with compiled(case.denoiser):
            yield stock_row(f"stock, {words}, compiled", case, repeats)
    # The compiler may raise anything.
    except Exception:
        log.exception("The stock pipeline's network can't be compiled here")
    tflop = work(case)
    with without_sdpa():
        yield measured("own loop, without SDPA", case, repeats, rate, tflop)
    for name, switch in SWITCHES.items():
        if switch is preview_decoder and case.shape.preview_decoder is None:
            continue
        switch(case)
        extra = {}
        if isinstance(case.denoiser, Compiled) and not case.denoiser.shapes_ready:
            began = time.perf_counter()
            own(case)  # answered by the network as it is
            extra["first_while_compiling_s"] = case.times["first_preview_s"][-1]
            case.denoiser.wait(COMPILE_LIMIT_S)
            extra["compiling_s"] = time.perf_counter() - began
            extra["compiled"] = case.denoiser.shapes_ready > 0
        yield measured(f"+ {name}" if switch is not as_it_is else name, case, repeats, rate, tflop) | extra


def stock_row(name: str, case: Case, repeats: int) -> dict[str, Any]:
    """Time the stock pipeline; its pictures come all at once, so the first takes as long as all."""
    seconds = timed(lambda: stock(case), repeats)
    return {"name": name, "seconds": seconds, "first_preview_s": seconds}


@contextmanager
def compiled(network: torch.nn.Module) -> Iterator[None]:
    """Compile the whole network in place, as the libraries' guides do, and undo it afterwards."""
    network.compile(dynamic=False)
    try:
        yield
    finally:
        network._compiled_call_impl = None


def measured(name: str, case: Case, repeats: int, rate: float, tflop: float) -> dict[str, Any]:
    """Return a row: seconds to all previews and to the first, and the networks' shares."""
    case.times.clear()
    seconds = timed(lambda: own(case), repeats)
    parts = {part: median(times[1:]) for part, times in case.times.items()}
    return {
        "name": name,
        "seconds": seconds,
        **parts,
        "denoiser_share": parts["denoiser_s"] / seconds,
        "decoder_share": parts["decoder_s"] / seconds,
        "denoiser_tflop_per_s": tflop / parts["denoiser_s"],
        "of_matmul_rate": tflop / parts["denoiser_s"] / rate,
    }
