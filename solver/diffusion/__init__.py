"""The families of diffusion models, each behind the same few calls (see `LatentDiffusion`)."""

from solver.diffusion.conditions import Conditions
from solver.diffusion.loading import FAMILIES, assemble, family_of, load_diffusion
from solver.diffusion.model import GuidanceKind, LatentDiffusion, decode
from solver.diffusion.pipeline import PipelineAsItIs, SampleError
from solver.diffusion.text import TOKENIZING, tokenize

__all__ = [
    "FAMILIES",
    "TOKENIZING",
    "Conditions",
    "GuidanceKind",
    "LatentDiffusion",
    "PipelineAsItIs",
    "SampleError",
    "assemble",
    "decode",
    "family_of",
    "load_diffusion",
    "tokenize",
]
