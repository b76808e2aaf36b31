"""Single-file checkpoints: one safetensors file with the weights of all components of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from app.catalogue import ModelError
from app.catalogue.files import read_header

# Components that some pipelines declare, and single files never contain.
UNNEEDED = ("safety_checker", "feature_extractor", "image_encoder")


def load_checkpoint(
    path: Path,
    configs: Path,
    pipeline: str,
    needed: Sequence[str],
    precision: Callable[[str], torch.dtype],
) -> dict[str, Any]:
    """Load the components of a pipeline onto the CPU.

    Args:
        path: the file.
        configs: a folder in the diffusers layout with the configs and tokenizers.
        pipeline: diffusers' class.
        needed: names of the components.
        precision: returns the dtype of a component, given its name.

    Raises:
        ModelError: the file is damaged or lacks a component.
    """
    read_header(path)
    cls = getattr(diffusers, pipeline)
    known, optional = cls._get_signature_keys(cls)
    try:
        pipe = cls.from_single_file(
            str(path),
            config=str(configs),
            local_files_only=True,
            torch_dtype=torch.float32,
            **{name: None for name in UNNEEDED if name in (*known, *optional)},
        )
    except NotImplementedError as error:  # raised for weights that are still on the meta device
        raise ModelError(_incomplete(path, configs)) from error
    # A mismatch of file and configs can raise anything.
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise ModelError(
            f"{path} can't be read with the configs in {configs} ({line[:200]}). Choose another --configs, "
            "or download the file again."
        ) from error
    parts = {name: getattr(pipe, name, None) for name in needed}
    missing = [name for name, part in parts.items() if part is None]
    if missing:
        raise ModelError(f"{path} has no {', '.join(missing)}. Choose a checkpoint of the whole model.")
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            if any(weight.is_meta for weight in part.state_dict().values()):
                raise ModelError(_incomplete(path, configs, name))
            part.to(precision(name))
    return parts


def _incomplete(path: Path, configs: Path, part: str = "parts") -> str:
    return (
        f"{path} lacks some weights of its {part} that {configs} describes. Download the file again, or "
        "choose another --configs."
    )
