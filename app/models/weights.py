"""Reject NaN or infinite weights."""

from __future__ import annotations

import torch

from app.catalogue import ModelError


@torch.inference_mode()
def check_finite(network: torch.nn.Module, name: str, advice: str = "Get it again.") -> None:
    """Raise ModelError if a weight is NaN or infinite: every picture would be black.

    Each weight is read once, which takes less time than reading its file.

    Args:
        name: what to call the network, such as "the vae in FOLDER".
        advice: the next step.
    """
    weights = [(key, each) for key, each in network.named_parameters() if each.is_floating_point()]
    # A sum is not finite if one of its terms is not, and takes no memory.
    sums = [each.sum(dtype=torch.float32) for _, each in weights]
    if not sums or torch.stack(sums).isfinite().all():
        return
    if broken := [key for key, each in weights if not each.isfinite().all()]:
        raise ModelError(
            f"{len(broken)} of {len(weights)} weights of {name} are damaged: {broken[0]}, for example, "
            f"contains NaN or infinity. {advice}"
        )
