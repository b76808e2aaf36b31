"""Train the decoder on latents as the UNet leaves them: `python -m checkpoints.recipe.train_decoder`.

Latents of drawings are noised a little and denoised by the UNet, so that they carry the UNet's kind of error.
From these, and from clean latents as often, the decoder learns to give back the drawings, and a critic that
learns to tell decoded pictures from drawings keeps their edges crisp (Esser et al. 2021, section 3.1). The
encoder stays as it is, so the UNet's latents do too.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from tqdm import tqdm
from transformers import AutoTokenizer, CLIPTextModel

from checkpoints.autoencoder import LandscapesAutoencoder
from checkpoints.recipe import data
from checkpoints.recipe.captions import caption
from checkpoints.recipe.fit import fit, pick_device, stage_parser
from checkpoints.recipe.scenes import Scene
from checkpoints.recipe.train_autoencoder import CROP, reconstruction_loss
from checkpoints.recipe.train_unet import SCHEDULE, cache_latents
from solver.diffusion import LatentDiffusion
from solver.diffusion.loading import assemble
from solver.sampling import sample
from solver.solvers import make_plan

GUIDANCE = 3.0
STEPS = 10
"""Of the whole way from pure noise; a latent that is noised a quarter of the way takes 3."""
STRENGTHS = (0.15, 0.25, 0.35, 0.45, 0.55)
ADVERSARIAL = 0.5
"""The critic's share of the gradient at the decoder's last layer, relative to the reconstruction's."""


def load_parts(pipeline: Path, device: torch.device) -> LatentDiffusion:
    """The model of the parts that the other stages left."""
    parts = {
        "unet": UNet2DConditionModel.from_pretrained(pipeline / "unet"),
        "vae": LandscapesAutoencoder.from_pretrained(pipeline / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(pipeline / "text_encoder", dtype=torch.float32),
    }
    for part in parts.values():
        part.float().to(device).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(pipeline / "tokenizer")
    return assemble("StableDiffusionPipeline", parts | {"tokenizer": tokenizer}, SCHEDULE, {})


@torch.inference_mode()
def denoised_again(
    model: LatentDiffusion, latents: Tensor, prompts: list[str], seeds: list[int], strength: float
) -> Tensor:
    """Noise latents as far as image-to-image of this strength does, and denoise them by the UNet."""
    plan = make_plan("dpm++2m", STEPS, model.schedule, strength=strength)
    noisy = plan.alpha[0] * latents + plan.sigma[0] * model.noise(seeds).to(latents)
    guidance = torch.full((len(latents),), GUIDANCE, device=latents.device)
    with torch.autocast(latents.device.type, torch.bfloat16):
        return sample(plan, model.denoiser(prompts, guidance), noisy)


def cache_denoised(
    work: Path, latents: np.ndarray, batch: int, device: torch.device, minutes: float | None = None
) -> np.ndarray:
    """`latents` of the first drawings after noising and denoising, (n, 16, 16, 16) float16; resumable.

    Batches take turns with the strengths of `STRENGTHS`. n is that of `latents`, or less if `minutes` are
    over before.
    """
    started = time.monotonic()
    path, done_path = work / "denoised.npy", work / "denoised-done.npy"
    count = len(latents)
    if path.exists() and len(np.load(path, mmap_mode="r")) == count:
        denoised = np.lib.format.open_memmap(path, mode="r+")
        done = np.lib.format.open_memmap(done_path, mode="r+")
    else:
        denoised = np.lib.format.open_memmap(path, mode="w+", dtype="float16", shape=latents.shape)
        done = np.lib.format.open_memmap(done_path, mode="w+", dtype="bool", shape=(count,))
    _, labels = data.load(work / "drawings")
    model = load_parts(work / "pipeline", device)
    for number, start in enumerate(tqdm(range(0, count, batch), unit="batch", desc="denoised latents")):
        if start and minutes is not None and time.monotonic() - started > 60 * minutes:
            return denoised[:start]
        rows = range(start, min(start + batch, count))
        if done[rows.start : rows.stop].all():
            continue
        words = [caption(Scene.from_labels(labels[i]), np.random.default_rng(i))[0] for i in rows]
        strength = STRENGTHS[number % len(STRENGTHS)]
        given = torch.from_numpy(latents[rows.start : rows.stop]).float().to(device)
        denoised[rows.start : rows.stop] = denoised_again(model, given, words, list(rows), strength).cpu()
        done[rows.start : rows.stop] = True
    return denoised


def make_critic() -> nn.Sequential:
    """A network that says for every patch of pixels (b, 3, h, w) whether it is drawn (> 0) or decoded."""

    def conv(channels: int, width: int, stride: int = 1) -> list[nn.Module]:
        return [spectral_norm(nn.Conv2d(channels, width, 3, stride, 1)), nn.LeakyReLU(0.2)]

    return nn.Sequential(
        nn.PixelUnshuffle(2),
        *conv(12, 48), *conv(48, 96, 2), *conv(96, 128), *conv(128, 128, 2), *conv(128, 128),
        nn.Conv2d(128, 1, 1),
    )  # fmt: skip


class DecoderWithCritic(nn.Module):
    """The decoder, and the critic that is thrown away afterwards."""

    def __init__(self, decoder: nn.Sequential) -> None:
        super().__init__()
        self.decoder = decoder
        self.critic = make_critic()


def adversarial_losses(model: DecoderWithCritic, drawn: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
    """Return the critic's hinge loss and the decoder's; each has gradients for its own network alone."""
    real, fake = model.critic(drawn), model.critic(decoded.detach())
    critic = nn.functional.relu(1 - real.float()).mean() + nn.functional.relu(1 + fake.float()).mean()
    model.critic.requires_grad_(False)
    fooled = -model.critic(decoded).float().mean()
    model.critic.requires_grad_(True)
    return critic, fooled


def balance(reconstruction: Tensor, fooled: Tensor, last: Tensor) -> Tensor:
    """How much larger the reconstruction's gradient is at the weights `last` (Esser et al. 2021, eq. 7)."""
    norms = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (reconstruction, fooled)]
    return (norms[0] / (norms[1] + 1e-6)).clamp(max=10)


def main(argv: list[str] | None = None) -> None:
    parser = stage_parser(__doc__, steps=600, batch=6)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--pictures", type=int, default=2048, help="drawings to train on (%(default)s)")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    started = time.monotonic()
    clean = cache_latents(args.work, args.pictures, device)
    at_once = 32 if device.type == "cpu" else 256
    denoised = cache_denoised(args.work, clean, at_once, device, args.minutes and args.minutes / 2)
    pictures, _ = data.load(args.work / "drawings")
    folder = args.work / "pipeline" / "vae"
    vae = LandscapesAutoencoder.from_pretrained(folder).float()
    model: Any = DecoderWithCritic(vae.decoder)
    model.to(memory_format=torch.channels_last)

    def loss_fn(model: Any, rng: np.random.Generator) -> tuple[Tensor, dict[str, Any]]:
        which = rng.choice(len(denoised), args.batch, replace=len(denoised) < args.batch)
        half = args.batch // 2
        noise = torch.randn(args.batch - half, *clean.shape[1:]) * vae.config.latent_noise
        latents = torch.cat(
            [
                torch.from_numpy(denoised[which[:half]]).float(),
                torch.from_numpy(clean[which[half:]]).float() + noise,
            ]
        )
        pixels = data.to_pixels(pictures[which], device)
        y, x = 2 * rng.integers((pixels.shape[-1] - CROP) // 2 + 1, size=2)
        with torch.autocast(device.type, torch.bfloat16):
            decoded = model.decoder(latents.to(device, memory_format=torch.channels_last)).float()
            crops = [t[..., y : y + CROP, x : x + CROP] for t in (pixels, decoded)]
            critic, fooled = adversarial_losses(model, *crops)
        reconstruction = reconstruction_loss(decoded, pixels)
        weight = ADVERSARIAL * balance(reconstruction, fooled, model.decoder[-2].weight)
        psnr = data.psnr_db(decoded.detach(), pixels)
        figures = {
            "critic": critic.detach(),
            "reconstruction": reconstruction.detach(),
            "psnr_denoised_db": psnr[:half].mean(),
            "psnr_clean_db": psnr[half:].mean(),
        }
        return reconstruction + weight * fooled + critic, figures

    trained = fit(
        args.work / "decoder",
        model,
        loss_fn,
        steps=args.steps,
        minutes=args.minutes and args.minutes - (time.monotonic() - started) / 60,  # preparing counts
        learning_rate=args.learning_rate,
        device=device,
        warmup=50,
        ema_decay=0.98,
    )
    vae.decoder = trained.decoder
    vae.save_pretrained(folder, variant=None)


if __name__ == "__main__":
    main()
