import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from solver import SOLVERS, NoiseSchedule, Plan, make_plan, read_plan, sample
from tests.solver.toys import FLOW, NOISE, SD, diffusers_scheduler, network, relative_error, run_scheduler

# diffusers' schedulers speak to NumPy as before 2.0, and call DPM-Solver dated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]

# Name, scheduler, its options, what its rows combine, and how many outputs.
DPM = "DPMSolverMultistepScheduler"
SCHEDULERS: list[tuple[str, str, dict[str, Any], str, int]] = [
    ("ddim", "DDIMScheduler", {"clip_sample": False}, "epsilon", 1),
    ("dpm2m", DPM, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, "epsilon", 2),
    ("dpm++2m", DPM, {}, "sample", 2),
    ("dpm++3m", DPM, {"solver_order": 3}, "sample", 3),
    ("unipc", "UniPCMultistepScheduler", {}, "sample", 3),
    ("deis", "DEISMultistepScheduler", {}, "epsilon", 2),
    ("heun", "HeunDiscreteScheduler", {}, "epsilon", 2),
    ("euler", "EulerDiscreteScheduler", {}, "epsilon", 1),
    ("lms", "LMSDiscreteScheduler", {}, "epsilon", 4),
]
STEPS = (1, 4, 5, 6, 7, 8, 40, 50)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("case", SCHEDULERS, ids=lambda case: case[0])
def test_plan_read_off_a_scheduler_does_what_it_does(case: Any, prediction_type: str) -> None:
    _, class_name, options, read_as, columns = case
    scheduler = diffusers_scheduler(class_name, **SD | options | {"prediction_type": prediction_type})
    for steps in STEPS:
        expected = run_scheduler(scheduler, NOISE, num_inference_steps=steps)
        plan = read_plan(scheduler, steps, read_as=read_as)
        assert plan.columns == columns or steps < 5
        assert relative_error(sample(plan, network, NOISE), expected) < 1e-5, steps


@pytest.mark.parametrize("read_as", ["flow_prediction", "sample"])
@pytest.mark.parametrize("class_name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_plan_read_off_a_flow_scheduler_does_what_it_does(class_name: Any, read_as: Any) -> None:
    scheduler = diffusers_scheduler(class_name, **FLOW)
    for steps in STEPS:
        expected = run_scheduler(scheduler, NOISE, num_inference_steps=steps)
        plan = read_plan(scheduler, steps, read_as=read_as)
        assert relative_error(sample(plan, network, NOISE), expected) < 1e-5, steps


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("case", SCHEDULERS[:-1], ids=lambda case: case[0])
def test_named_plan_is_that_scheduler_ending_at_zero(case: Any, prediction_type: str) -> None:
    name, class_name, options, read_as, _ = case
    scheduler = diffusers_scheduler(class_name, **SD | options | {"prediction_type": prediction_type})
    for steps in STEPS:
        if name == "ddim" and 1000 % steps:
            continue  # DDIMScheduler leaves the grid there; tested against DDIM's formula below
        plan = make_plan(name, steps, scheduler)
        theirs = read_plan(scheduler, steps, read_as=read_as)
        if theirs.sigma[-1] > 0:  # of theirs all but the step that stops early, then x̂0
            theirs = landed(theirs)
        # Schedulers that keep x / α start a little lower than the others; what counts is the network's input.
        start = 1 / (theirs.init_noise_scale * theirs.input_scale[0])
        # DEIS's integrals lose digits in diffusers' float32; our sigmas are float64.
        tolerance = 3e-5 if name == "deis" else 1e-5
        error = relative_error(sample(plan, network, NOISE), sample(theirs, network, start * NOISE))
        assert error < tolerance, steps


def landed(plan: Plan) -> Plan:
    """A plan in ε whose last step is replaced by DDIM's step to σ = 0."""
    alpha, sigma = plan.alpha[-2], plan.sigma[-2]
    return dataclasses.replace(
        plan,
        alpha=(*plan.alpha[:-1], 1.0),
        sigma=(*plan.sigma[:-1], 0.0),
        a=(*plan.a[:-1], 1 / alpha),
        b=(*plan.b[:-1], (-sigma / alpha,)),
    )


@pytest.mark.parametrize("steps", [3, 6, 7, 9, 23])
def test_ddim_is_its_formula_on_any_number_of_steps(steps: int) -> None:
    schedule = NoiseSchedule.from_config(SD)
    t = [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]
    alpha, sigma = [*schedule.alpha(t), 1.0], [*schedule.sigma(t), 0.0]
    x = NOISE.double()
    for i in range(steps):
        epsilon = network(x, torch.full((len(x),), float(t[i])))
        x = alpha[i + 1] * (x - sigma[i] * epsilon) / alpha[i] + sigma[i + 1] * epsilon
    assert relative_error(sample(make_plan("ddim", steps, SD), network, NOISE), x) < 1e-5


@pytest.mark.parametrize("steps", STEPS)
def test_flow_euler_is_flow_match_euler(steps: int) -> None:
    scheduler = diffusers_scheduler("FlowMatchEulerDiscreteScheduler", **FLOW)
    expected = run_scheduler(scheduler, NOISE, sigmas=np.linspace(1, 1 / steps, steps))
    for solver in ("euler", "ddim"):  # the same on a straight path
        plan = make_plan(solver, steps, scheduler)
        assert relative_error(sample(plan, network, NOISE), expected) < 1e-5


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("name", "class_name", "options"),
    [
        ("dpm++2m", DPM, {}),
        ("dpm++3m", DPM, {"solver_order": 3}),
        ("unipc", "UniPCMultistepScheduler", {}),
        ("heun", "FlowMatchHeunDiscreteScheduler", None),
    ],
)
def test_flow_plans_are_their_schedulers_on_our_sigmas(
    name: str, class_name: Any, options: Any, steps: int
) -> None:
    plan = make_plan(name, steps, FLOW)
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    scheduler = diffusers_scheduler(class_name, **{} if options is None else flow | options)
    scheduler.set_timesteps(steps)
    scheduler.timesteps = torch.tensor(plan.timestep, dtype=torch.float32)
    scheduler.sigmas = torch.tensor(plan.sigma, dtype=torch.float32)
    scheduler.set_begin_index(0)
    x = NOISE
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(len(x))), t, x, return_dict=False)[0]
    assert relative_error(sample(plan, network, NOISE), x) < 1e-5


@pytest.mark.parametrize("name", ["dpm2m", "deis"])
def test_solvers_in_noise_are_refused_on_a_flow(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} combines noise, which a flow does not know .* use ddim"):
        make_plan(name, 6, FLOW)


@pytest.mark.parametrize("config", [SD, {**SD, "prediction_type": "v_prediction"}, FLOW])
def test_one_noise_starts_every_plan_and_all_end_clean(config: dict[str, Any]) -> None:
    first = NoiseSchedule.from_config(config)
    starts, ends = set(), set()
    for solver in SOLVERS:
        if config is FLOW and solver in ("dpm2m", "deis"):
            continue
        for steps in (1, 4, 6, 7, 40):
            plan = make_plan(solver, steps, config)
            scale = plan.input_scale[0]
            starts.add((plan.timestep[0], f"{scale * plan.alpha[0]:.9f}", f"{scale * plan.sigma[0]:.9f}"))
            assert plan.init_noise_scale * scale == pytest.approx(1, rel=1e-12)  # the network sees the noise
            ends.add((plan.alpha[-1], plan.sigma[-1]))
            assert np.all(np.diff(plan.timestep) <= 0)
    assert len(starts) == 1 and starts.pop()[0] == pytest.approx(first.first_timestep)
    assert ends == {(1.0, 0.0)}


@pytest.mark.parametrize("steps", [1, 2, 999, 1000])
def test_any_number_of_steps_up_to_a_thousand(steps: int) -> None:
    for solver in ("ab4", "dpm++2m"):
        plan = make_plan(solver, steps, SD)
        assert plan.nfe == steps and plan.timestep[0] == 999


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_bashforth_rows_sum_to_the_step(order: int) -> None:
    plan = make_plan("ab4", 9, SD)
    n = np.array(plan.sigma) / plan.alpha
    row = plan.b[order - 1]
    assert len(row) == order
    assert sum(row) == pytest.approx(plan.alpha[order] * (n[order] - n[order - 1]), rel=1e-12)


def test_consistency_starts_from_the_best_classical_rows() -> None:
    consistency, unipc = make_plan("consistency", 6, SD), make_plan("unipc", 6, SD)
    assert consistency.solver == "consistency"
    assert dataclasses.replace(consistency, solver="unipc") == unipc


def test_plans_are_made_once() -> None:
    assert make_plan("unipc", 6, dict(SD)) is make_plan("unipc", 6, NoiseSchedule.from_config(SD))


@pytest.mark.parametrize(
    ("class_name", "options", "step_options"),
    [
        ("DDIMScheduler", {"clip_sample": True}, {}),
        ("DDIMScheduler", {"clip_sample": True, "clip_sample_range": 100.0}, {}),
        ("DDIMScheduler", {"clip_sample": False, "thresholding": True}, {}),
        ("DDIMScheduler", {"clip_sample": False}, {"eta": 0.5}),
        (DPM, {"thresholding": True}, {}),
        (DPM, {"algorithm_type": "sde-dpmsolver++"}, {}),
        ("EulerAncestralDiscreteScheduler", {}, {}),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, {}),
    ],
)
def test_what_is_not_linear_or_draws_noise_is_found_out(
    class_name: Any, options: Any, step_options: Any
) -> None:
    scheduler = diffusers_scheduler(class_name, **(FLOW if "Flow" in class_name else SD) | options)
    with pytest.raises(ValueError, match=r"not a linear function .* switch off clipping"):
        read_plan(scheduler, 6, **step_options)


@pytest.mark.parametrize("setting", ["clip_sample", "thresholding"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_config_that_no_plan_can_follow_is_refused(solver: str, setting: Any) -> None:
    with pytest.raises(ValueError, match=rf"{setting}=True.*set {setting}=False"):
        make_plan(solver, 6, {**SD, setting: True})


@pytest.mark.parametrize(
    ("solver", "steps", "grid", "message"),
    [
        ("dpmpp", 6, "trailing", "Unknown solver 'dpmpp'; choose one of consistency, ddim"),
        ("ddim", 0, "trailing", "whole number from 1 to 1000, not 0"),
        ("ddim", 1001, "trailing", "whole number from 1 to 1000, not 1001"),
        ("ddim", 6.0, "trailing", "whole number from 1 to 1000, not 6.0"),
        ("ddim", True, "trailing", "whole number from 1 to 1000, not True"),
        ("ddim", 6, "uniform", "Unknown grid 'uniform'; choose one of trailing, linspace"),
    ],
)
def test_bad_requests_are_refused_with_a_message(solver: str, steps: int, grid: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(solver, steps, SD, grid=grid)


def test_reading_leaves_the_scheduler_alone() -> None:
    scheduler = diffusers_scheduler(DPM, **SD)
    scheduler.set_timesteps(9)
    before = scheduler.timesteps.clone()
    read_plan(scheduler, 4)
    assert torch.equal(scheduler.timesteps, before) and scheduler.step_index is None


@pytest.mark.parametrize(
    "betas",
    [
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ],
    ids=["linear", "cosine", "zero-snr"],
)
@pytest.mark.parametrize(("solver", "class_name"), [("dpm++2m", DPM), ("unipc", "UniPCMultistepScheduler")])
def test_other_noise_schedules(solver: str, class_name: Any, betas: Any) -> None:
    scheduler = diffusers_scheduler(class_name, **SD | betas)
    for steps in (1, 4, 7, 40):
        expected = run_scheduler(scheduler, NOISE, num_inference_steps=steps)
        for plan in (make_plan(solver, steps, scheduler), read_plan(scheduler, steps)):
            assert relative_error(sample(plan, network, NOISE), expected) < 1e-5
