"""Open the model that `--model` and its related options choose: find, check and load it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.catalogue import Found, ModelError, check_fits, find
from app.catalogue.files import SAFETY, read_json
from app.catalogue.fitting import Offload
from app.catalogue.solvers import solver_folder
from app.models.loading import load, pick_device
from app.models.model import ImageModel
from app.models.preview_decoder import AUTO, with_preview_decoder
from solver.diffusion import family_of

# Assumed edge of the pictures, in pixels, if no config states it.
USUAL_EDGE = 1024


@dataclass(frozen=True)
class Choice:
    """Which model to run, and how; can be pickled.

    Attributes:
        model: an entry's name, a folder, a single-file checkpoint or a hub id, see `app.catalogue.find`.
        device: one of `DEVICES`.
        solver: a folder with solver weights, in place of the model's own or those published for it.
        safety_checker: whether to use the model's safety checker, if it has one.
        offload: "model" keeps only one component at a time on the GPU.
        configs: for a single-file checkpoint, the folder with the configs that go with it.
        compiled: whether the network is compiled in the background, on a CUDA device.
        preview_decoder: "auto", "off" or a folder, see `with_preview_decoder`.
    """

    model: str
    device: str = "auto"
    solver: Path | None = None
    safety_checker: bool = True
    offload: Offload = "none"
    configs: Path | None = None
    compiled: bool = True
    preview_decoder: str = AUTO


def find_chosen(choice: Choice) -> Found:
    """Find the chosen model, see `app.catalogue.find`."""
    return find(choice.model, configs=choice.configs, without=() if choice.safety_checker else SAFETY)


def open_model(choice: Choice) -> ImageModel:
    """Find a model, download it if allowed, check that it fits into memory, and load it.

    Raises:
        ModelError: any of these failed; the message gives the next step.
    """
    device = pick_device(choice.device)
    if choice.offload == "model" and device.type == "cpu":
        raise ModelError("--offload model needs a GPU. Leave it out on the CPU.")
    found = find_chosen(choice)
    check_fits(found.name, found.parts, _edge(found), device.type, choice.offload)
    model = load(
        found.configs or found.path,
        device,
        name=found.name,
        entry=found.entry,
        checkpoint=found.path if found.configs else None,
        rest=found.rest,
        solver=choice.solver or solver_folder(found),
        safety_checker=choice.safety_checker,
        offload=choice.offload,
        compiled=choice.compiled,
    )
    return with_preview_decoder(model, choice.preview_decoder, found)


def _edge(found: Found) -> int:
    """Edge of the model's pictures in pixels, as far as it is known before loading."""
    if found.entry:
        return found.entry.sizes[0]
    config = found.path / family_of(found.pipeline).network_name / "config.json"
    try:
        return 8 * int(read_json(config)["sample_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return USUAL_EDGE
