"""Train the autoencoder: `python -m checkpoints.recipe.train_autoencoder`.

Crops are enough, since the network is convolutional. The loss asks for the right colours (L1 and L2) and for
the right edges (L1 on neighbouring differences), which is what flat illustrations consist of.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from checkpoints.autoencoder import LandscapesAutoencoder
from checkpoints.recipe import data
from checkpoints.recipe.fit import fit, pick_device, stage_parser

CROP = 128


def random_crops(pictures: np.ndarray, count: int, rng: np.random.Generator, device: torch.device) -> Tensor:
    """(count, 3, CROP, CROP) in -1..1, channels last, aligned to the latents' 16-pixel grid."""
    which = rng.integers(len(pictures), size=count)
    corners = 16 * rng.integers((pictures.shape[1] - CROP) // 16 + 1, size=(count, 2))
    crops = [pictures[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(which, corners, strict=True)]
    return data.to_pixels(np.stack(crops), device)


def reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    error = decoded - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + edges


def main(argv: list[str] | None = None) -> None:
    parser = stage_parser(__doc__, steps=2600, batch=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    pictures, _ = data.load(args.work / "drawings")
    model = LandscapesAutoencoder().to(memory_format=torch.channels_last)

    def loss_fn(model: nn.Module, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = random_crops(pictures, args.batch, rng, device)
        with torch.autocast(device.type, torch.bfloat16):
            decoded = model(pixels)
        decoded = decoded.float()
        with torch.no_grad():
            psnr = data.psnr_db(decoded, pixels).mean()
        return reconstruction_loss(decoded, pixels), {"psnr_db": psnr}

    trained = fit(
        args.work / "autoencoder",
        model,
        loss_fn,
        steps=args.steps,
        minutes=args.minutes,
        learning_rate=args.learning_rate,
        device=device,
    )
    trained.save_pretrained(args.work / "pipeline" / "vae", variant=None)


if __name__ == "__main__":
    main()
