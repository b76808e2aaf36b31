import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from solver import NoiseSchedule
from tests.solver.toys import FLOW, SD, diffusers_scheduler

BETAS: tuple[dict[str, Any], ...] = (
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": np.linspace(0.001, 0.03, 1000).tolist()},
    {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
)


@pytest.mark.parametrize("betas", BETAS, ids=lambda betas: "-".join(map(str, betas))[:40])
def test_levels_are_those_of_the_scheduler(betas: Any) -> None:
    scheduler = diffusers_scheduler("DPMSolverMultistepScheduler", **betas)
    t = np.arange(1000)
    for schedule in map(NoiseSchedule.from_config, (scheduler, scheduler.config, dict(scheduler.config))):
        np.testing.assert_allclose(schedule.alpha(t), scheduler.alpha_t, rtol=1e-5)
        np.testing.assert_allclose(schedule.sigma(t), scheduler.sigma_t, rtol=1e-5)
        np.testing.assert_allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1.0, rtol=1e-12)


@pytest.mark.parametrize("config", [SD, FLOW, {**SD, "beta_schedule": "squaredcos_cap_v2"}])
def test_timestep_is_the_inverse_of_lam(config: dict[str, Any]) -> None:
    schedule = NoiseSchedule.from_config(config)
    t = np.linspace(0.5, 998.7, 217)
    np.testing.assert_allclose(schedule.timestep(schedule.lam(t)), t, rtol=1e-9)
    assert np.all(np.diff(schedule.lam(t)) < 0)
    np.testing.assert_allclose(np.log(schedule.alpha(t) / schedule.sigma(t)), schedule.lam(t), atol=1e-9)


def test_the_clean_end_has_no_noise() -> None:
    for config in (SD, FLOW):
        alpha, sigma = NoiseSchedule.from_config(config).levels(math.inf)
        assert (alpha, sigma) == (1, 0)


def test_flow_is_a_straight_line() -> None:
    schedule = NoiseSchedule.from_config(diffusers_scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0))
    t = np.linspace(1, 999, 50)
    np.testing.assert_allclose(schedule.sigma(t), t / 1000, rtol=1e-9)
    np.testing.assert_allclose(schedule.alpha(t) + schedule.sigma(t), 1, rtol=1e-12)
    assert schedule.shift == 3 and schedule.prediction_type == "flow_prediction" and schedule.is_flow


def test_solvers_configured_for_a_flow_are_recognised() -> None:
    scheduler = diffusers_scheduler(
        "UniPCMultistepScheduler", use_flow_sigmas=True, flow_shift=5.0, prediction_type="flow_prediction"
    )
    assert NoiseSchedule.from_config(scheduler) == NoiseSchedule("flow_prediction", shift=5.0)


def test_resolution_dependent_shift() -> None:
    flux = diffusers_scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0, use_dynamic_shifting=True)
    assert NoiseSchedule.from_config(flux, mu=1.15).shift == pytest.approx(math.exp(1.15))
    with pytest.raises(ValueError, match="pass mu"):
        NoiseSchedule.from_config(flux)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_prediction_type_and_first_timestep(prediction_type: str) -> None:
    for class_name in ("DDIMScheduler", "UniPCMultistepScheduler"):
        schedule = NoiseSchedule.from_config(diffusers_scheduler(class_name, prediction_type=prediction_type))
        assert schedule.prediction_type == prediction_type
        assert schedule.first_timestep == 999


def test_schedule_is_a_value() -> None:
    schedule = NoiseSchedule.from_config(SD)
    assert schedule == NoiseSchedule.from_config(SD) and hash(schedule) == hash(NoiseSchedule.from_config(SD))
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.shift = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sigma_data": 0.5}, "neither betas"),
        ({**FLOW, "invert_sigmas": True}, "invert_sigmas"),
        ({**FLOW, "shift_terminal": 1.0}, "shift_terminal must be from 0"),
        ({**SD, "prediction_type": "noise"}, "Unknown prediction type"),
    ],
)
def test_schedules_that_cannot_be_used_say_why(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.from_config(config)


def test_impossible_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="must fall"):
        NoiseSchedule("epsilon", (0.5, 0.6), 2)
    with pytest.raises(ValueError, match="2 alphas_cumprod for 1000"):
        NoiseSchedule("epsilon", (0.6, 0.5))
    with pytest.raises(ValueError, match="shift"):
        NoiseSchedule("flow_prediction", shift=0.0)


def test_zero_terminal_snr_of_any_betas_falls_to_the_end() -> None:
    """Linear betas come nearer to zero before the end than what stands for zero elsewhere."""
    for betas in ({"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}, SD):
        schedule = NoiseSchedule.from_config({**betas, "rescale_betas_zero_snr": True})
        assert (
            schedule.alphas_cumprod[-1] < 1e-6 and schedule.alphas_cumprod[-2] > schedule.alphas_cumprod[-1]
        )


def test_unknown_time_shift_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown time_shift_type 'cubic'"):
        NoiseSchedule.from_config({**FLOW, "use_dynamic_shifting": True, "time_shift_type": "cubic"}, mu=1.0)
