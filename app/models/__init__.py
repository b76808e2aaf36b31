"""Models that make pictures: how a folder becomes one (`loading`), and what is known of it (`facts`)."""

from app.catalogue import ModelError
from app.models.facts import ModelFacts
from app.models.loading import DEVICES, ROOT, load, pick_device, resolve
from app.models.model import ImageModel
from solver.diffusion import GuidanceKind

__all__ = [
    "DEVICES",
    "ROOT",
    "GuidanceKind",
    "ImageModel",
    "ModelError",
    "ModelFacts",
    "load",
    "pick_device",
    "resolve",
]
