"""How far generated pictures are from drawings; see `evaluate --only kernel detector`.

Both sides are whole pictures at full size: finals of fresh captions, and fresh drawings of other scenes given
back by the autoencoder, so that its blur tells nobody which is which.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from checkpoints.readers import ConvSceneReader, prepare


def kernel_distance(one: Tensor, other: Tensor) -> tuple[float, float]:
    """The kernel distance (KID, Bińkowski et al. 2018) of `other` from the reference `one`, (n, width) each.

    The unbiased estimate of the squared maximum mean discrepancy with the kernel (x·y / width + 1)³. Features
    are first shifted and scaled as a whole so that those of `one` have mean zero and mean square one: the
    scale of a reader's features means nothing, and a large one lets a few pictures decide.

    Returns:
        The distance, and the half-width of its 95 % interval (from the U-statistic's asymptotic variance).
    """
    n, width = one.shape
    if other.shape != one.shape or n < 3:
        raise ValueError("a kernel distance needs two sets of the same size, at least 3 of each")
    one, other = one.double(), other.double()
    mean = one.mean(0)
    scale = (one - mean).square().mean().sqrt()
    one, other = (one - mean) / scale, (other - mean) / scale
    within_one, within_other, across = (
        ((x @ y.T) / width + 1) ** 3 for x, y in ((one, one), (other, other), (one, other))
    )
    h = within_one + within_other - across - across.T
    rows = (h.sum(1) - h.diagonal()) / (n - 1)
    return rows.mean().item(), 1.96 * 2 * rows.std().item() / math.sqrt(n)


@torch.inference_mode()
def features(reader: Any, pictures: Tensor, batch: int = 64) -> Tensor:
    """The features (n, width) from which a reader tells the scenes of pictures (n, 3, 256, 256) in -1..1.

    All attributes of a reader without queries of their own read the same features, which count once.
    """
    rows = [reader.features(pictures[i : i + batch]) for i in range(0, len(pictures), batch)]
    if isinstance(reader, ConvSceneReader):
        rows = [row[:, 0] for row in rows]
    return torch.cat([row.flatten(1) for row in rows])


def detect(
    reader: ConvSceneReader, drawings: Tensor, finals: Tensor, *, steps: int | None = None, seed: int = 0
) -> tuple[float, float]:
    """Teach the body of `reader` to tell finals from drawings, on three quarters of both.

    Args:
        drawings, finals: (n, 3, 256, 256) in -1..1, on the device of `reader`.

    Returns:
        Accuracy on unseen pictures (0.5 = cannot tell), and the half-width of its 95 % interval.
    """
    torch.manual_seed(seed)
    device = next(reader.parameters()).device
    detector = ConvSceneReader([("origin", ["drawing", "generated"])], reader.config.widths).to(device)
    detector.body.load_state_dict(reader.body.state_dict())
    detector.to(memory_format=torch.channels_last).eval()  # the body knows its statistics already
    pictures = prepare(torch.cat([drawings, finals]))
    truth = torch.arange(len(pictures), device=device) // len(drawings)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(pictures))).to(device)
    train, test = order[: 3 * len(order) // 4], order[3 * len(order) // 4 :]
    optimizer = torch.optim.AdamW(detector.parameters(), weight_decay=0.05)
    steps = steps or max(100, len(train) // 4)  # each picture is seen about eight times
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in tqdm(range(steps), desc="detector", unit="step"):
        rows = train[torch.randint(len(train), (32,), device=device)]
        seen = pictures[rows]
        flipped = torch.where(torch.rand(len(rows), 1, 1, 1, device=device) < 0.5, seen.flip(3), seen)
        with torch.autocast(device.type, torch.bfloat16):
            logits = detector(flipped)[0]
        nn.functional.cross_entropy(logits.float(), truth[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.inference_mode():
        right = torch.cat([detector(pictures[rows])[0].argmax(1) == truth[rows] for rows in test.split(64)])
    accuracy = right.float().mean().item()
    return accuracy, 1.96 * math.sqrt(accuracy * (1 - accuracy) / len(test))
