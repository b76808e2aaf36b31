"""What to do when a device's memory runs out: the same work in smaller pieces."""

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: a GPU's or, as PyTorch says it in a plain RuntimeError, the machine's."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in words or "not enough memory" in words)
    )


def split_on_oom(work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]) -> list[Result]:
    """work(items), one result for each; in halves, and halves of these, where memory is too short for all.

    Raises what `work` raises, and that memory ran out only when it did for a single item.
    """
    if not items:
        return []
    try:
        return list(work(items))
    except RuntimeError as error:
        if len(items) == 1 or not is_out_of_memory(error):
            raise
    # Outside the handler, so that its traceback no longer holds on to what did not fit.
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.memory.empty_cache()
    middle = len(items) // 2
    return split_on_oom(work, items[:middle]) + split_on_oom(work, items[middle:])
