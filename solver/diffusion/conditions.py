"""What a network is told beside its input: prompts, as text encoders say them, and perhaps a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Conditions:
    """Of B samples, one row each, to be taken apart and put together as batches are.

    Attributes:
        tensors: by name, [B, ...] each; which there are the family decides.
    """

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: slice | Tensor) -> Conditions:
        """Those of some rows: a slice, or an index or mask on the tensors' device."""
        return Conditions({name: tensor[rows] for name, tensor in self.tensors.items()})

    def with_reference(self, latents: Tensor) -> Conditions:
        """The same with the pictures to be edited, as latents [B, C, H, W]."""
        return Conditions({**self.tensors, "reference": latents})

    @staticmethod
    def cat(several: Sequence[Conditions]) -> Conditions:
        """All rows, one after the other; all must have the same names."""
        if len(several) == 1:
            return several[0]
        names = several[0].tensors
        return Conditions({name: torch.cat([each.tensors[name] for each in several]) for name in names})
