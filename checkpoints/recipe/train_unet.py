"""Train the UNet: `python -m checkpoints.recipe.train_unet`.

Noise prediction on cached latents with SD's betas, min-SNR weighting (Hang et al. 2023, γ = 5), more samples
from the middle of the schedule, captions drawn anew for every sample and dropped for one in ten, so that the
unconditional model is there for guidance. The exponential moving average of the weights is what ships.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoTokenizer, CLIPTextModel

from checkpoints.autoencoder import LandscapesAutoencoder
from checkpoints.recipe import data
from checkpoints.recipe.captions import caption
from checkpoints.recipe.fit import fit, pick_device, stage_parser
from checkpoints.recipe.scenes import Scene
from checkpoints.recipe.train_text import with_unknown_words

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
"""Stable Diffusion's noise schedule."""
MIN_SNR_GAMMA = 5.0
CAPTION_DROPOUT = 0.1


def make_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=16,
        out_channels=16,
        block_out_channels=(96, 192, 256),
        layers_per_block=(2, 1, 1),  # what is small in the picture is drawn at full resolution
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,  # the number of heads, for historical reasons
        norm_num_groups=16,
    )


@torch.inference_mode()
def cache_latents(work: Path, count: int, device: torch.device, batch: int = 32) -> np.ndarray:
    """Posterior means of the first `count` drawings, (count, 16, 16, 16) float16; resumable."""
    pictures, _ = data.load(work / "drawings")
    count = min(count, len(pictures))
    path, done_path = work / "latents.npy", work / "latents-done.npy"
    if path.exists() and len(np.load(path, mmap_mode="r")) == count:
        latents, done = (
            np.lib.format.open_memmap(path, mode="r+"),
            np.lib.format.open_memmap(done_path, mode="r+"),
        )
    else:
        latents = np.lib.format.open_memmap(path, mode="w+", dtype="float16", shape=(count, 16, 16, 16))
        done = np.lib.format.open_memmap(done_path, mode="w+", dtype="bool", shape=(count,))
    vae = LandscapesAutoencoder.from_pretrained(work / "pipeline" / "vae").eval().to(device)
    vae.to(memory_format=torch.channels_last)
    for start in tqdm(range(0, count, batch), unit="batch", desc="latents"):
        rows = slice(start, min(start + batch, count))
        if done[rows].all():
            continue
        pixels = data.to_pixels(pictures[rows]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            mean = vae.encoder(pixels)
        latents[rows] = vae.norm(mean.float()).cpu().numpy()
        done[rows] = True
    return latents


def deepened(shallow: UNet2DConditionModel) -> UNet2DConditionModel:
    """`make_unet()` that computes what `shallow` does, which lacks the second layer at full resolution.

    A new residual block adds nothing at first: its last convolution is zero, and where it narrows (in the way
    up, where it is shown a skip connection too) its shortcut passes on the state and not the skip. The last
    block of the way up moves one place on, since each has its own skip connection to read.
    """
    unet = make_unet()
    first, middle, last = "down_blocks.0.resnets.1.", "up_blocks.2.resnets.1.", "up_blocks.2.resnets.2."
    old = {
        last + name.removeprefix(middle) if name.startswith(middle) else name: value
        for name, value in shallow.state_dict().items()
    }
    missing, unexpected = unet.load_state_dict(old, strict=False)
    if unexpected or not all(name.startswith((first, middle)) for name in missing):
        raise ValueError("this UNet is not one that a layer at full resolution was added to; train from anew")
    for block in (unet.down_blocks[0].resnets[1], unet.up_blocks[2].resnets[1]):
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
        if block.conv_shortcut is not None:
            nn.init.dirac_(block.conv_shortcut.weight)
            nn.init.zeros_(block.conv_shortcut.bias)
    return unet


def start_from(folder: Path) -> UNet2DConditionModel:
    """The network of `folder`, made as deep as `make_unet()`."""
    unet = UNet2DConditionModel.from_pretrained(folder).float()
    return deepened(unet) if unet.config.layers_per_block == 1 else unet


def draw_timesteps(count: int) -> Tensor:
    """Timesteps (count,), half of them even over the schedule, half logit-normal (Esser et al. 2024).

    Both halves are stratified. Small things take shape in the middle of the schedule.
    """
    u = (torch.arange(count) + torch.rand(count)) / count
    even, middle = u[::2], torch.special.ndtri(u[1::2]).sigmoid()
    return (torch.cat([even, middle]) * 1000).long().clamp(0, 999)


def min_snr_weight(alphas_cumprod: Tensor) -> Tensor:
    """Weight of the squared noise error at every timestep: min(SNR, γ) / SNR."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=MIN_SNR_GAMMA) / snr


def main() -> None:
    parser = stage_parser(__doc__, steps=4000, batch=64)
    parser.add_argument("--pictures", type=int, default=28_672, help="how many of the drawings to train on")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--init", type=Path, help="start from this UNet, e.g. checkpoints/landscapes/unet")
    args = parser.parse_args()
    device = pick_device(args.device)
    pipeline = args.work / "pipeline"
    latents = cache_latents(args.work, args.pictures, device)
    _, labels = data.load(args.work / "drawings")
    tokenizer = AutoTokenizer.from_pretrained(pipeline / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(pipeline / "text_encoder").eval().to(device)
    text_encoder.requires_grad_(False)
    scheduler = DDPMScheduler(**SCHEDULE)
    alphas_cumprod = scheduler.alphas_cumprod.to(device)
    weights = min_snr_weight(alphas_cumprod)
    torch.manual_seed(0)
    unet = start_from(args.init) if args.init else make_unet()
    unet.to(memory_format=torch.channels_last)

    def loss_fn(model: nn.Module, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        which = rng.integers(len(latents), size=args.batch)
        x0 = torch.from_numpy(np.stack([latents[i] for i in which])).to(device).float()
        texts = [with_unknown_words(caption(Scene.from_labels(labels[i]), rng)[0], rng) for i in which]
        texts = ["" if rng.random() < CAPTION_DROPOUT else text for text in texts]
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            states = text_encoder(ids.to(device)).last_hidden_state
        t = draw_timesteps(args.batch).to(device)
        noise = torch.randn(x0.shape).to(device)
        a = alphas_cumprod[t][:, None, None, None]
        noisy = (a.sqrt() * x0 + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            predicted = model(noisy, t, states).sample
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        return (weights[t] * error).mean(), {"error": error.mean().item()}

    trained = fit(
        args.work / "unet",
        unet,
        loss_fn,
        steps=args.steps,
        learning_rate=args.learning_rate,
        device=device,
        ema_decay=0.995,
    )
    trained.save_pretrained(pipeline / "unet")


if __name__ == "__main__":
    main()
