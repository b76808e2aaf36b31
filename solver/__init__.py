"""Solvers of diffusion's probability-flow ODE as tables; see `solver.plan`."""

from solver.grids import GRIDS
from solver.plan import Plan
from solver.probe import read_plan
from solver.sampling import (
    SampleState,
    advance,
    classifier_free_guidance,
    guided,
    noise_for_seed,
    sample,
)
from solver.schedule import NoiseSchedule
from solver.similarity import psnr, ssim
from solver.solvers import SOLVERS, make_plan

__all__ = [
    "GRIDS",
    "SOLVERS",
    "NoiseSchedule",
    "Plan",
    "SampleState",
    "advance",
    "classifier_free_guidance",
    "guided",
    "make_plan",
    "noise_for_seed",
    "psnr",
    "read_plan",
    "sample",
    "ssim",
]
