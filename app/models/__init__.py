"""Models: open one from a name or folder (`opening`, `loading`), run it (`model`), describe it (`facts`)."""

from app.catalogue import ModelError
from app.models.facts import ModelFacts
from app.models.loading import DEVICES, ROOT, load, pick_device
from app.models.model import ImageModel
from app.models.opening import Choice, open_model
from solver.diffusion import GuidanceKind

__all__ = [
    "DEVICES",
    "ROOT",
    "Choice",
    "GuidanceKind",
    "ImageModel",
    "ModelError",
    "ModelFacts",
    "load",
    "open_model",
    "pick_device",
]
