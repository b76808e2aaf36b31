"""Models larger than the GPU: one part at a time is there, and the others wait in the machine's memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device


def offload(parts: Mapping[str, Any], device: torch.device) -> None:
    """Have each network among the parts come to the device when it is called, and the one before it leave."""
    turns = _Turns()
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.to("cpu")
            add_hook_to_module(part, OneAtATime(part, device, turns))


class _Turns:
    """Whose turn it is. lock: held while somebody comes or goes."""

    def __init__(self) -> None:
        self.there: torch.nn.Module | None = None
        self.lock = threading.Lock()


class OneAtATime(ModelHook):
    """Moves a network to `execution_device` before it is called, with what it is called with."""

    def __init__(self, part: torch.nn.Module, device: torch.device, turns: _Turns) -> None:
        self.execution_device = device
        self._part = part
        self._turns = turns

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """See accelerate."""
        with self._turns.lock:
            if self._turns.there is not self._part:
                if self._turns.there is not None:
                    self._turns.there.to("cpu")
                    if torch.accelerator.is_available():
                        torch.accelerator.memory.empty_cache()
                self._part.to(self.execution_device)
                self._turns.there = self._part
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)
