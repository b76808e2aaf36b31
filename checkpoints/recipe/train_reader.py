"""Train a scene reader on the drawings: `python -m checkpoints.recipe.train_reader judge` (or `reward`).

A little noise and blur keep it from leaning on perfect edges that no generated picture has.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from checkpoints.readers import READERS, prepare
from checkpoints.recipe import data
from checkpoints.recipe.fit import fit, pick_device, stage_parser
from checkpoints.recipe.scenes import ATTRIBUTES


def roughened(pixels: Tensor) -> Tensor:
    """Half of the batch slightly blurred, then some noise on everything."""
    half = len(pixels) // 2
    blurred = nn.functional.avg_pool2d(pixels[:half], 3, 1, 1, count_include_pad=False)
    strength = torch.rand(half, 1, 1, 1, device=pixels.device)
    pixels = torch.cat([torch.lerp(pixels[:half], blurred, strength), pixels[half:]])
    return pixels + 0.06 * torch.rand(len(pixels), 1, 1, 1, device=pixels.device) * torch.randn_like(pixels)


def main(argv: list[str] | None = None) -> None:
    parser = stage_parser(__doc__, steps=900, batch=32)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--init", type=Path, help="start from readers of this folder, such as the shipped")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    pictures, labels = data.load(args.work / "drawings")
    torch.manual_seed(list(READERS).index(args.reader))
    attributes = [(name, list(values)) for name, values in ATTRIBUTES.items()]
    kind = READERS[args.reader]
    model = kind.from_pretrained(args.init / args.reader) if args.init else kind(attributes=attributes)
    model = model.to(memory_format=torch.channels_last)
    # Rare values count as much as frequent ones: the readers are held to balanced accuracy.
    balance = []
    for column, values in enumerate(ATTRIBUTES.values()):
        share = np.bincount(labels[:, column], minlength=len(values)) / len(labels)
        balance.append(torch.tensor(share**-0.5 / (share**0.5).sum(), dtype=torch.float32, device=device))

    def loss_fn(model: nn.Module, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        which = rng.integers(len(pictures), size=args.batch)
        drawn = data.to_pixels(np.stack([pictures[i] for i in which]), device)
        pixels = roughened(prepare(drawn)).contiguous(memory_format=torch.channels_last)
        wanted = torch.from_numpy(labels[which]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(pixels)
        loss, right = torch.zeros((), device=device), []
        for column, scores in enumerate(logits):
            loss = loss + nn.functional.cross_entropy(scores.float(), wanted[:, column], balance[column])
            right.append((scores.detach().argmax(1) == wanted[:, column]).float().mean())
        return loss, {"accuracy": torch.stack(right).mean(), "worst": torch.stack(right).min()}

    trained = fit(
        args.work / f"reader-{args.reader}",
        model,
        loss_fn,
        steps=args.steps,
        minutes=args.minutes,
        learning_rate=1e-3,
        device=device,
        warmup=100,
        decay=0.4,
        seed=1 + list(READERS).index(args.reader),
    )
    trained.save_pretrained(args.work / "readers" / args.reader)


if __name__ == "__main__":
    main()
