"""Run models larger than the GPU: one component at a time is on it, the others in the machine's memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device


def offload(parts: Mapping[str, Any], device: torch.device) -> None:
    """Move each network among the parts to the device when it is called, and the one before it back."""
    occupant = _Occupant()
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.to("cpu")
            add_hook_to_module(part, OneAtATime(part, device, occupant))


class _Occupant:
    """The network that is on the device; hold `lock` to change it."""

    def __init__(self) -> None:
        self.network: torch.nn.Module | None = None
        self.lock = threading.Lock()


class OneAtATime(ModelHook):
    """Hook that moves a network and its inputs to `execution_device` before it is called."""

    def __init__(self, part: torch.nn.Module, device: torch.device, occupant: _Occupant) -> None:
        self.execution_device = device
        self._part = part
        self._occupant = occupant

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """See accelerate."""
        with self._occupant.lock:
            if self._occupant.network is not self._part:
                if self._occupant.network is not None:
                    self._occupant.network.to("cpu")
                    if torch.accelerator.is_available():
                        torch.accelerator.memory.empty_cache()
                self._part.to(self.execution_device)
                self._occupant.network = self._part
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)
