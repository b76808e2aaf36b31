"""From a pipeline in the diffusers layout to a `LatentDiffusion` of its family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from solver.diffusion.flux import Flux, FluxKontext
from solver.diffusion.model import LatentDiffusion
from solver.diffusion.pipeline import PipelineAsItIs, as_it_is
from solver.diffusion.stable_diffusion import StableDiffusion
from solver.diffusion.stable_diffusion_3 import StableDiffusion3
from solver.diffusion.stable_diffusion_xl import StableDiffusionXL

FAMILIES: Mapping[str, type[LatentDiffusion]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "FluxKontextPipeline": FluxKontext,
}
"""By what model_index.json calls the pipeline."""


def family_of(pipeline: Any) -> type[LatentDiffusion]:
    """The family of a pipeline's class, by its name: of `FAMILIES`, or the pipeline as it is.

    Raises:
        ValueError: one that is not for text to image or editing; names those of `FAMILIES`.
    """
    family = FAMILIES.get(pipeline) or as_it_is(str(pipeline))
    if family is None:
        raise ValueError(
            f"a {pipeline} is not one of the pipelines known here: {', '.join(FAMILIES)}, and others of "
            "diffusers for text to image or editing"
        )
    return family


def assemble(
    pipeline: str, parts: Mapping[str, Any], scheduler_config: Mapping[str, Any], settings: Mapping[str, Any]
) -> LatentDiffusion:
    """The model of a pipeline's parts, which must be on one device.

    Raises:
        ValueError: a pipeline that is not known here, or a network that can't be guided as its family is.
    """
    family = family_of(pipeline)
    if issubclass(family, PipelineAsItIs):
        return family.build(parts, scheduler_config, settings)
    network = parts[family.network_name].config
    if network.get("time_cond_proj_dim") is not None:
        raise ValueError(
            "the network was distilled to few steps and is told its guidance in a way of its own"
        )
    written = network.get("out_channels") or network.in_channels
    if network.in_channels != written:
        raise ValueError(
            f"the network reads {network.in_channels} channels and writes {written}: it is made for another "
            "task, such as filling in"
        )
    return family(family.native_shape(parts), scheduler_config, parts, settings)


def load_diffusion(
    model: str | Path, device: torch.device | str = "cpu", *, size: int | None = None
) -> LatentDiffusion:
    """A pipeline from a folder or the Hub, in float32.

    Args:
        size: edge of its square pictures in pixels; by default those that it was trained for.

    Raises:
        ValueError: a pipeline of a family that is not known here, or a size that it can't have.
        OSError: no such folder or repository.
    """
    from diffusers import DiffusionPipeline

    config = DiffusionPipeline.load_config(model)
    try:
        family = family_of(config.get("_class_name"))
        lacking = {name: None for name in family.may_lack if config.get(name, [None])[0] is None}
        pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32, **lacking)
        parts = {name: getattr(pipe, name, None) for name in family.needs}
        for part in parts.values():
            if isinstance(part, torch.nn.Module):
                part.to(device).eval().requires_grad_(False)
        loaded = assemble(type(pipe).__name__, parts, pipe.scheduler.config, pipe.config)
    except ValueError as error:
        raise ValueError(f"{model} can't be used: {error}.") from error
    return loaded if size is None else replace(loaded, latent_shape=loaded.shape_of(size, size))
