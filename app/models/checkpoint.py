"""Single-file checkpoints: one safetensors file with the weights of all components of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from app.catalogue import ModelError
from app.catalogue.files import read_header, read_index

# Components that some pipelines declare, and single files never contain.
UNNEEDED = ("safety_checker", "feature_extractor", "image_encoder")


def load_checkpoint(
    path: Path,
    configs: Path,
    pipeline: str,
    needed: Sequence[str],
    precision: Callable[[str], torch.dtype],
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Load the components of a pipeline onto the CPU; those that are given come from elsewhere.

    Args:
        path: the file.
        configs: a folder in the diffusers layout with the configs and tokenizers.
        pipeline: diffusers' class.
        needed: names of the components.
        precision: returns the dtype of a component, given its name.
        given: components that the file lacks.

    Raises:
        ModelError: the file is damaged or lacks a component.
    """
    read_header(path)
    cls = getattr(diffusers, pipeline)
    known, optional = cls._get_signature_keys(cls)
    if not hasattr(cls, "from_single_file"):
        (network,) = (name for name in needed if name not in given)
        kind = getattr(diffusers, read_index(configs)[network][1])
        return {**given, network: _network(kind, path, configs, network).to(precision(network))}
    try:
        pipe = cls.from_single_file(
            str(path),
            config=str(configs),
            local_files_only=True,
            torch_dtype=torch.float32,
            **{name: None for name in UNNEEDED if name in (*known, *optional)},
            **given,
        )
    except NotImplementedError as error:  # raised for weights that are still on the meta device
        raise ModelError(_incomplete(path, configs)) from error
    # A mismatch of file and configs can raise anything.
    except Exception as error:
        raise ModelError(
            f"{path} can't be read with the configs in {configs} ({_line(error)}). Choose another --configs, "
            "or download the file again."
        ) from error
    parts = {name: getattr(pipe, name, None) for name in needed}
    missing = [name for name, part in parts.items() if part is None]
    if missing:
        raise ModelError(f"{path} has no {', '.join(missing)}. Choose a checkpoint of the whole model.")
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module) and name not in given:
            if any(weight.is_meta for weight in part.state_dict().values()):
                raise ModelError(_incomplete(path, configs, name))
            part.to(precision(name))
    return parts


def _network(kind: Any, path: Path, configs: Path, name: str) -> torch.nn.Module:
    """Load a network from a file that holds nothing else."""
    try:
        network = kind.from_single_file(str(path), config=str(configs), subfolder=name, local_files_only=True)
    # A mismatch of file and configs can raise anything.
    except Exception as error:
        raise ModelError(
            f"{path} can't be read as the {name} that {configs} describes ({_line(error)}). Choose another "
            "--configs, or download the file again."
        ) from error
    if any(weight.is_meta for weight in network.state_dict().values()):
        raise ModelError(_incomplete(path, configs, name))
    return network


def _line(error: Exception) -> str:
    """The first 200 characters of an error's first line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")[:200]


def noise_settings(path: Path) -> dict[str, Any]:
    """What a file's marker tensors say about its noise schedule, as entries of a scheduler's config.

    `v_pred` marks finetunes of Stable Diffusion XL that predict v; `ztsnr` beside it, those with zero
    terminal SNR. Nothing else in the file tells.
    """
    names = read_header(path).keys()
    if "v_pred" not in names:
        return {}
    return {"prediction_type": "v_prediction"} | (
        {"rescale_betas_zero_snr": True} if "ztsnr" in names else {}
    )


def _incomplete(path: Path, configs: Path, part: str = "parts") -> str:
    return (
        f"{path} lacks some weights of its {part} that {configs} describes. Download the file again, or "
        "choose another --configs."
    )
