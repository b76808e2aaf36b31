"""Split work into smaller batches when a device's memory runs out."""

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; for the CPU's PyTorch raises a plain RuntimeError."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in words or "not enough memory" in words)
    )


def split_on_oom(work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]) -> list[Result]:
    """Return work(items), one result per item; in halves, recursively, if memory runs out.

    Raises what `work` raises; an out-of-memory error only for a single item.
    """
    if not items:
        return []
    try:
        return list(work(items))
    except RuntimeError as error:
        if len(items) == 1 or not is_out_of_memory(error):
            raise
    # After the handler, since its traceback keeps tensors alive.
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.memory.empty_cache()
    middle = len(items) // 2
    return split_on_oom(work, items[:middle]) + split_on_oom(work, items[middle:])
