"""Register ConsistencySolver as a sampler, with its schedule, in A1111 and Forge."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import gradio
import torch
from lib_consistency_solver.sampling import Plan, get_sigmas, read_plans, sample_consistency
from modules import (
    script_callbacks,
    sd_samplers,
    sd_samplers_common,
    sd_samplers_kdiffusion,
    sd_schedulers,
    shared,
)

NAME, KEY, OPTION, UNIPC = (
    "ConsistencySolver",
    "consistency_solver",
    "consistency_solver_plans",
    "none (UniPC)",
)
PLANS = Path(__file__).resolve().parents[1] / "plans"


def is_flow() -> bool:
    """Whether the loaded model is a flow: Forge says so in its predictor, A1111 knows Stable Diffusion 3."""
    model = shared.sd_model
    unet = getattr(getattr(model, "forge_objects", None), "unet", None)
    if unet is not None:
        return getattr(unet.model.predictor, "prediction_type", "") == "const"
    return bool(getattr(model, "is_sd3", False))


def chosen_plans() -> tuple[Plan, ...]:
    """The plans of the file chosen in the settings."""
    name = getattr(shared.opts, OPTION, UNIPC)
    return () if name == UNIPC else read_plans(PLANS / f"{name}.json").plans


def schedule(n: int, sigma_min: float, sigma_max: float, inner_model: Any, device: Any) -> torch.Tensor:
    """The noise levels: a plan's for n steps, else timesteps spaced trailing."""
    return get_sigmas(n, inner_model.sigmas.tolist(), flow=is_flow(), plans=chosen_plans(), device=device)


@functools.wraps(sample_consistency)
def sample(model: Any, x: torch.Tensor, sigmas: torch.Tensor, **given: Any) -> torch.Tensor:
    return sample_consistency(model, x, sigmas, plans=chosen_plans(), flow=is_flow(), **given)


def register() -> None:
    """Add the schedule and the sampler, once."""
    if KEY not in sd_schedulers.schedulers_map:
        entry = sd_schedulers.Scheduler(KEY, NAME, schedule, need_inner_model=True)
        sd_schedulers.schedulers.append(entry)
        sd_schedulers.schedulers_map.update({KEY: entry, NAME: entry})
    if NAME not in sd_samplers.all_samplers_map:
        made = sd_samplers_common.SamplerData(
            NAME,
            lambda model: sd_samplers_kdiffusion.KDiffusionSampler(sample, model),
            [KEY],
            {"scheduler": KEY},
        )
        sd_samplers.all_samplers.append(made)
        sd_samplers.all_samplers_map[NAME] = made
        sd_samplers.set_samplers()


def on_ui_settings() -> None:
    choices = [UNIPC, *sorted(path.stem for path in PLANS.glob("*.json"))]
    shared.opts.add_option(
        OPTION,
        shared.OptionInfo(
            UNIPC, "Plans of ConsistencySolver", gradio.Dropdown, {"choices": choices}, section=(KEY, NAME)
        ),
    )


register()
script_callbacks.on_ui_settings(on_ui_settings)
