"""Estimate the memory that a model needs, and compare it with a device's, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from app.catalogue.table import CATALOGUE, CatalogueEntry, ModelError

Offload = Literal["none", "model"]
OFFLOADS: tuple[Offload, ...] = ("none", "model")

# Bytes per weight by device: float32 on a CPU, bfloat16 or float16 on the others.
WEIGHT_BYTES = {"cpu": 4, "cuda": 2, "mps": 2}

# Memory for decoding a picture, which needs most beside the weights: an autoencoder's last stage keeps about
# four maps of 256 channels at the picture's full size.
MAPS, CHANNELS = 4, 256


def memory_needed(
    parts: Mapping[str, int], size: int, device: str = "cuda", offload: Offload = "none"
) -> int:
    """Estimate the bytes that a model needs on a device to make one picture at a time.

    It is the weights of all components, or with offload "model" of the largest, plus decoding one picture.

    Args:
        parts: numbers of weights by component.
        size: edge of the pictures in pixels.
        device: cpu, cuda or mps.
    """
    weights = max(parts.values()) if offload == "model" and device != "cpu" else sum(parts.values())
    return WEIGHT_BYTES[device] * (weights + MAPS * CHANNELS * size**2)


def free_memory(device: str) -> int:
    """Free memory of a device, in bytes."""
    import torch

    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    if device == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    import psutil

    return psutil.virtual_memory().available


def check_fits(
    name: str,
    parts: Mapping[str, int],
    size: int,
    device: str,
    offload: Offload = "none",
    free: int | None = None,
) -> None:
    """Raise ModelError if a model does not fit a device, with the figures and what would fit.

    Args:
        name: of the model, as shown to users.
        free: bytes; by default `free_memory(device)`.
    """
    free = free_memory(device) if free is None else free
    needed = memory_needed(parts, size, device, offload)
    if needed <= free:
        return
    ways = []
    if offload == "none" and device != "cpu" and memory_needed(parts, size, device, "model") <= free:
        offloaded = _gib(memory_needed(parts, size, device, "model"))
        ways.append(f"With --offload model it needs {offloaded} and fits, but is slower.")
    if others := [entry for entry in fitting(device, free) if entry.name != name]:
        ways.append(f"These fit: {', '.join(f'{r.name} ({_gib(entry_memory(r, device))})' for r in others)}.")
    raise ModelError(
        f"{name} needs {_gib(needed)} of memory on this {device} device, and {_gib(free)} are free. "
        + (" ".join(ways) or "Close other programs, or use a larger machine.")
    )


def entry_memory(entry: CatalogueEntry, device: str, offload: Offload = "none") -> int:
    """`memory_needed` for an entry at its default size."""
    return memory_needed(entry_parts(entry), entry.sizes[0], device, offload)


def entry_parts(entry: CatalogueEntry) -> Mapping[str, int]:
    """Numbers of weights by component, counted in the folder if the model is embedded."""
    from app.catalogue.files import check_folder

    return check_folder(entry.folder) if entry.folder else entry.parameters


def fitting(device: str, free: int) -> list[CatalogueEntry]:
    """Return the catalogue entries that fit into `free` bytes."""
    return [entry for entry in CATALOGUE if entry_memory(entry, device) <= free]


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
