"""What a network is told beside its input: prompts, as text encoders say them, and perhaps a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Conditions:
    """Of B samples, one row each, to be taken apart and put together as batches are.

    Attributes:
        tensors: by name, [B, ...] each, or lists of B; which there are the family decides.
    """

    tensors: Mapping[str, Any]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: slice | Tensor) -> Conditions:
        """Those of some rows: a slice, or an index or mask on the tensors' device."""
        return Conditions({name: _some(each, rows) for name, each in self.tensors.items()})

    def with_reference(self, latents: Tensor) -> Conditions:
        """The same with the pictures to be edited, as latents [B, C, H, W]."""
        return Conditions({**self.tensors, "reference": latents})

    @staticmethod
    def cat(several: Sequence[Conditions]) -> Conditions:
        """All rows, one after the other; all must have the same names."""
        if len(several) == 1:
            return several[0]
        names = several[0].tensors
        return Conditions({name: _all([each.tensors[name] for each in several]) for name in names})


def _some(each: Any, rows: slice | Tensor) -> Any:
    if isinstance(each, Tensor) or isinstance(rows, slice):
        return each[rows]
    return [each[i] for i in torch.arange(len(each), device=rows.device)[rows].tolist()]


def _all(several: Sequence[Any]) -> Any:
    if isinstance(several[0], Tensor):
        return torch.cat(list(several))
    return [row for each in several for row in each]
