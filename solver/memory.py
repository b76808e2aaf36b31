"""Tell when a device's memory has run out."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; for the CPU's PyTorch raises a plain RuntimeError."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in words or "not enough memory" in words)
    )
