"""Train the UNet: `python -m checkpoints.recipe.train_unet`.

Noise prediction on cached latents with SD's betas, min-SNR weighting (Hang et al. 2023, γ = 5), more samples
from the middle of the schedule, a caption chosen for every sample and dropped for one in ten, so that the
unconditional model is there for guidance. The exponential moving average of the weights is what ships.

With `--layout` a layer on the side, thrown away afterwards, reads from the UNet's way up what is where
(`draw_with_layout`), and the UNet learns to tell it; see the README for what that gave.

`--cool MINUTES` branches off the run as it is: a copy of its state is trained on while the learning rate
falls to zero, and the run itself can be prolonged afterwards.
"""

from __future__ import annotations

import multiprocessing as mp
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedTokenizerBase

from checkpoints.autoencoder import LandscapesAutoencoder
from checkpoints.recipe import data
from checkpoints.recipe.captions import caption
from checkpoints.recipe.drawing.canvas import KINDS
from checkpoints.recipe.fit import branch, fit, pick_device, stage_parser
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
CAPTIONS = 12
"""Captions prepared for every drawing."""


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
    if path.exists() and len(np.load(path, mmap_mode="r")) >= count:
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
        pixels = data.to_pixels(pictures[rows], device)
        with torch.autocast(device.type, torch.bfloat16):
            mean = vae.encoder(pixels)
        latents[rows] = vae.norm(mean.float()).cpu().numpy()
        done[rows] = True
    return latents[:count]


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


def draw_timesteps(count: int, device: torch.device | None = None) -> Tensor:
    """Timesteps (count,), half of them even over the schedule, half logit-normal (Esser et al. 2024).

    Both halves are stratified. Small things take shape in the middle of the schedule.
    """
    u = (torch.arange(count, device=device) + torch.rand(count, device=device)) / count
    even, middle = u[::2], torch.special.ndtri(u[1::2]).sigmoid()
    return (torch.cat([even, middle]) * 1000).long().clamp(0, 999)


def min_snr_weight(alphas_cumprod: Tensor) -> Tensor:
    """Weight of the squared noise error at every timestep: min(SNR, γ) / SNR."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=MIN_SNR_GAMMA) / snr


def _captions_of(labels: np.ndarray) -> list[str]:
    rng = np.random.default_rng(labels.ravel())
    scenes = [Scene.from_labels(row) for row in labels]
    return [with_unknown_words(caption(scene, rng)[0], rng) for scene in scenes for _ in range(CAPTIONS)]


def cache_captions(work: Path, labels: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Token ids of the captions of every drawing, (count, CAPTIONS, 64) int16."""
    path = work / "captions.npy"
    if path.exists() and len(ids := np.load(path)) == len(labels):
        return ids
    chunks = [labels[i : i + data.CHUNK] for i in range(0, len(labels), data.CHUNK)]
    with mp.Pool() as pool:
        told = tqdm(pool.imap(_captions_of, chunks), total=len(chunks), unit="chunk", desc="captions")
        rows = [tokenizer(words, padding="max_length", truncation=True).input_ids for words in told]
    ids = np.array(rows, dtype=np.int16).reshape(len(labels), CAPTIONS, -1)
    np.save(path, ids)
    return ids


class WithLayout(nn.Module):
    """The UNet, and a layer that tells from its features (16 × 16, in the way up) what is where."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet
        width = unet.config.block_out_channels[1]
        self.norm = nn.GroupNorm(16, width)
        self.head = nn.Conv2d(width, 4 * len(KINDS), 1)
        nn.init.zeros_(self.head.weight)
        self._features: list[Tensor] = []
        unet.up_blocks[1].register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: tuple[Tensor, ...], out: Tensor) -> None:
        self._features.append(out)

    def forward(self, noisy: Tensor, t: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the noise (b, 16, 16, 16), and logits (b, kinds, 32, 32) of what is where."""
        noise = self.unet(noisy, t, states).sample
        features = nn.functional.silu(self.norm(self._features.pop()))
        return noise, nn.functional.pixel_shuffle(self.head(features), 2)


def compiled(model: nn.Module, batch: int, device: torch.device, **options: Any) -> Callable[..., Any]:
    """`model` made faster on a GPU by torch.compile; `model` itself where that fails, which is said."""
    if device.type != "cuda" and not options:
        return model
    started = time.monotonic()
    noisy = torch.zeros(batch, 16, 16, 16, device=device).contiguous(memory_format=torch.channels_last)
    t = torch.zeros(batch, dtype=torch.long, device=device)
    example = (noisy, t, torch.zeros(batch, 64, 128, device=device))
    try:
        fast = torch.compile(model, **options)
        with torch.autocast(device.type, torch.bfloat16):
            sum(out.float().mean() for out in fast(*example)).backward()
        print(f"compiled the UNet in {time.monotonic() - started:.0f} s", flush=True)
        return fast
    except Exception as error:  # whatever a compiler stumbles over
        print(f"torch.compile failed ({error!r:.300}); training without it", flush=True)
        return model
    finally:
        model.zero_grad(set_to_none=True)


def main(argv: list[str] | None = None) -> None:
    parser = stage_parser(__doc__, steps=4000, batch=64)
    parser.add_argument("--pictures", type=int, default=28_672, help="how many of the drawings to train on")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--layout", type=float, default=0.0, help="weight of the layout loss (%(default)s)")
    parser.add_argument("--init", type=Path, help="start from this UNet, e.g. checkpoints/landscapes/unet")
    parser.add_argument(
        "--cool", type=float, metavar="MINUTES", help="branch off and let the learning rate fall to zero"
    )
    args = parser.parse_args(argv)
    started = time.monotonic()
    device = pick_device(args.device)
    pipeline, folder = args.work / "pipeline", args.work / "unet"
    if args.cool:
        branch(folder, args.work / "unet-cooled")
        folder = args.work / "unet-cooled"
    labels = data.load(args.work / "drawings")[1][: args.pictures]
    tokenizer = AutoTokenizer.from_pretrained(pipeline / "tokenizer")
    ids = torch.from_numpy(cache_captions(args.work, labels, tokenizer)).to(device)
    unsaid = tokenizer("", padding="max_length", return_tensors="pt").input_ids[0].to(ids)
    latents = torch.from_numpy(np.array(cache_latents(args.work, args.pictures, device))).to(device)
    layouts = torch.from_numpy(np.array(data.load_layouts(args.work / "drawings")[: len(labels)])).to(device)
    share = torch.bincount(layouts.flatten().int(), minlength=len(KINDS)) / layouts.numel()
    balance = share**-0.5 / (share**0.5).sum()  # birds and stars cover little
    text_encoder = CLIPTextModel.from_pretrained(pipeline / "text_encoder").eval().to(device)
    text_encoder.requires_grad_(False)
    alphas_cumprod = DDPMScheduler(**SCHEDULE).alphas_cumprod.to(device)
    weights = min_snr_weight(alphas_cumprod)
    torch.manual_seed(0)
    unet = start_from(args.init) if args.init else make_unet()
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # for so few tokens faster than the fused one
    unet.to(memory_format=torch.channels_last)
    model = WithLayout(unet).to(device).train()  # as `fit` will have it, or it is compiled twice
    predict = compiled(model, args.batch, device)

    def loss_fn(model: nn.Module, rng: np.random.Generator) -> tuple[Tensor, dict[str, Any]]:
        which = torch.randint(len(latents), (args.batch,), device=device)
        words = ids[which, torch.randint(CAPTIONS, (args.batch,), device=device)].long()
        dropped = torch.rand(args.batch, 1, device=device) < CAPTION_DROPOUT
        states = text_encoder(torch.where(dropped, unsaid.long(), words)).last_hidden_state
        x0, t = latents[which].float(), draw_timesteps(args.batch, device)
        noise = torch.randn_like(x0)
        a = alphas_cumprod[t][:, None, None, None]
        noisy = (a.sqrt() * x0 + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            predicted, layout = predict(noisy, t, states)
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        # The more signal, the more of the layout can be known.
        unlike = nn.functional.cross_entropy(layout.float(), layouts[which].long(), balance, reduction="none")
        misplaced = (a.flatten().sqrt() * unlike.mean((1, 2))).mean()
        figures = {"error": error.detach().mean(), "layout": misplaced.detach()}
        return (weights[t] * error).mean() + args.layout * misplaced, figures

    minutes = args.cool or args.minutes
    trained = fit(
        folder,
        model,
        loss_fn,
        steps=args.steps,
        minutes=minutes and minutes - (time.monotonic() - started) / 60,  # what was prepared counts
        learning_rate=args.learning_rate,
        device=device,
        warmup=50 if args.init else 200,
        decay=1.0 if args.cool else 0.3,
        ema_decay=0.98 if args.cool else 0.995,
    )
    trained.unet.save_pretrained(args.work / "cooled" if args.cool else pipeline / "unet")


if __name__ == "__main__":
    main()
