"""Compile a network in the background, and run it uncompiled until that is done."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

log = logging.getLogger(__name__)

# Batches are padded to one of these sizes, since each size is compiled separately.
BUCKETS = (1, 2, 4, 8, 16, 32)
# Dynamo's default of 8 counts all blocks of one class together, at any width and resolution.
RECOMPILE_LIMIT = 256
# Compiling is tried so many times for a shape. In CPython 3.11 two threads that build syntax trees at once,
# as tracebacks do, may raise "SystemError: AST constructor recursion depth mismatch".
TRIES = 3


def compile_blocks(network: nn.Module) -> None:
    """Compile the blocks that a diffusers network repeats; another network as a whole."""
    if getattr(network, "_repeated_blocks", None):
        network.compile_repeated_blocks(dynamic=False)  # type: ignore[operator]
    else:
        network.compile(dynamic=False)


class Compiled:
    """Wrapper of a network that is compiled for the shapes it has met, and uncompiled for all others.

    The first call with new shapes runs the network uncompiled, while a thread compiles it for them. Batches
    are padded to the next bucket by repeating the last row; rows must not influence each other. If compiling
    fails TRIES times for a shape, the network stays uncompiled.

    Args:
        network: for inference; its weights are shared, not copied.
        buckets: increasing batch sizes; larger batches are never compiled.
        prepare: compiles a network in place.
    """

    def __init__(
        self,
        network: nn.Module,
        buckets: Sequence[int] = BUCKETS,
        prepare: Callable[[nn.Module], None] = compile_blocks,
    ) -> None:
        self.network = network
        self._buckets = tuple(buckets)
        # A second network with the same weights, so that the first stays uncompiled.
        shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        self._compiled = copy.deepcopy(network, shared)
        self._prepare = prepare
        self._ready: set[Any] = set()
        self._asked: set[Any] = set()
        self._failed = False
        self._wanted: SimpleQueue[tuple[Any, Any, bool]] = SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._lock = threading.Lock()
        self._waiting = 0
        self._thread: threading.Thread | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rows = _rows(args, kwargs)
        bucket = next((size for size in self._buckets if size >= rows), None)
        if bucket is None or self._failed:
            return self.network(*args, **kwargs)
        padded = _padded((args, kwargs), rows, bucket)
        key = _shapes(padded)
        if key not in self._ready:
            self._ask(key, padded)
            return self.network(*args, **kwargs)
        args, kwargs = padded
        return _first_rows(self._compiled(*args, **kwargs), rows, bucket)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is being compiled; return False after `timeout` seconds."""
        return self._idle.wait(timeout)

    @property
    def shapes_ready(self) -> int:
        """Number of shapes that it is compiled for."""
        return len(self._ready)

    def _ask(self, key: Any, inputs: Any) -> None:
        with self._lock:
            if key in self._asked:
                return
            self._asked.add(key)
            self._waiting += 1
            self._idle.clear()
            # The caller may change its own tensors.
            example = pytree.tree_map_only(torch.Tensor, torch.zeros_like, inputs)
            self._wanted.put((key, example, torch.is_inference_mode_enabled()))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="compiling", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
        prepared = False
        while True:
            key, (args, kwargs), inference = self._wanted.get()
            tries = 0 if self._failed else TRIES
            while tries:
                tries -= 1
                try:
                    if not prepared:
                        self._prepare(self._compiled)
                        prepared = True
                    with torch.inference_mode() if inference else torch.no_grad():
                        self._compiled(*args, **kwargs)
                    self._ready.add(key)
                    break
                except Exception as error:
                    if tries:
                        log.warning("Compiling the network failed (%s); trying again", error)
                    else:
                        self._failed = True
                        log.exception("Compiling the network failed; it runs uncompiled")
            with self._lock:
                self._waiting -= 1
                if not self._waiting:
                    self._idle.set()


def _tensors(inputs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]


def _rows(args: Any, kwargs: Any) -> int:
    return _tensors((args, kwargs))[0].shape[0]


def _shapes(inputs: Any) -> Any:
    return tuple((tensor.shape, tensor.dtype) for tensor in _tensors(inputs))


def _padded(inputs: Any, rows: int, bucket: int) -> Any:
    """Pad the tensors that have `rows` rows to `bucket` rows."""

    def pad(tensor: torch.Tensor) -> torch.Tensor:
        if rows == bucket or tensor.dim() == 0 or tensor.shape[0] != rows:
            return tensor
        return torch.cat([tensor, tensor[-1:].expand(bucket - rows, *tensor.shape[1:])])

    return pytree.tree_map_only(torch.Tensor, pad, inputs)


def _first_rows(outputs: Any, rows: int, bucket: int) -> Any:
    if rows == bucket:
        return outputs
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor[:rows], outputs)
