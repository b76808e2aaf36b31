"""Solvers of diffusion's probability-flow ODE as tables; see `solver.plan`."""

from typing import TYPE_CHECKING, Any

from solver.consistency import LearnedSolver
from solver.grids import GRIDS
from solver.plan import Plan
from solver.policy import Policy
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

if TYPE_CHECKING:
    from solver.scheduler import ConsistencySolverScheduler, FlowConsistencySolverScheduler

__all__ = [
    "GRIDS",
    "SOLVERS",
    "ConsistencySolverScheduler",
    "FlowConsistencySolverScheduler",
    "LearnedSolver",
    "NoiseSchedule",
    "Plan",
    "Policy",
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


def __getattr__(name: str) -> Any:
    if name in ("ConsistencySolverScheduler", "FlowConsistencySolverScheduler"):
        from solver import scheduler  # it brings diffusers, which takes seconds to import

        return getattr(scheduler, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
