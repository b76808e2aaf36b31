"""Single-file checkpoints: the weights of all parts in one safetensors file, under their makers' names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from app.catalogue import ModelError
from app.catalogue.files import read_header

# Parts that some pipelines ask for, and no such file has.
UNNEEDED = ("safety_checker", "feature_extractor", "image_encoder")


def load_checkpoint(
    path: Path,
    configs: Path,
    pipeline: str,
    needed: Sequence[str],
    precision: Callable[[str], torch.dtype],
) -> dict[str, Any]:
    """The parts of a pipeline, on the CPU.

    Args:
        path: the file.
        configs: a folder in the diffusers layout, whose configs and tokenizers go with it.
        pipeline: diffusers' class.
        needed: the names of its parts.
        precision: of a part, by its name.

    Raises ModelError, in words, where the file is damaged, or does not have all parts.
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
    except NotImplementedError as error:  # of weights that nobody has filled in
        raise ModelError(_incomplete(path, configs)) from error
    # What does not go together shows wherever the library stumbles over it.
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise ModelError(
            f"{path} can't be read with the configs in {configs} ({line[:200]}). Choose another --configs, "
            "or get the file again."
        ) from error
    parts = {name: getattr(pipe, name, None) for name in needed}
    missing = [name for name, part in parts.items() if part is None]
    if missing:
        raise ModelError(f"{path} has no {', '.join(missing)}. Take a checkpoint of the whole model.")
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            if any(weight.is_meta for weight in part.state_dict().values()):
                raise ModelError(_incomplete(path, configs, name))
            part.to(precision(name))
    return parts


def _incomplete(path: Path, configs: Path, part: str = "parts") -> str:
    return (
        f"{path} lacks some of the weights of its {part}, as {configs} describes them. Get the file again, "
        "or choose another --configs."
    )
