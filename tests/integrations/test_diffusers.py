"""The scheduler as one file against this package's plans and scheduler, and as other programs call it."""

import ast
import copy
import functools
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import solver
from integrations.diffusers import scheduling_consistency_solver
from integrations.diffusers.scheduling_consistency_solver import ConsistencySolverScheduler
from solver import LearnedSolver, NoiseSchedule, Plan, Policy, make_plan, sample
from tests.solver.toys import FLOW, NOISE, SD, diffusers_scheduler, network, relative_error, run_scheduler

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

V = {**SD, "prediction_type": "v_prediction"}
X0 = {**SD, "prediction_type": "sample"}
ZERO_SNR = {**V, "rescale_betas_zero_snr": True}
CONFIGS = pytest.mark.parametrize("config", [SD, V, X0, FLOW], ids=["epsilon", "v", "x0", "flow"])


def scheduler_for(config: dict[str, Any], **options: Any) -> Any:
    name = "FlowMatchEulerDiscreteScheduler" if "shift" in config else "DDIMScheduler"
    return ConsistencySolverScheduler.from_config(diffusers_scheduler(name, **config).config, **options)


def learned_plan(config: dict[str, Any], steps: int) -> Plan:
    """The plan of a policy with random weights: its levels, told levels and rows differ from UniPC's."""
    policy = Policy(order=3, hidden=8, learns=("rows", "grid", "times", "state"))
    generator = torch.Generator().manual_seed(5)
    for parameter in policy.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    schedule = NoiseSchedule.from_config(config)
    plan = LearnedSolver(policy=policy).plan(steps, schedule)
    assert max(abs(np.subtract(plan.told_sigma, plan.sigma[:-1]))) > 1e-3
    return plan


@CONFIGS
@pytest.mark.parametrize("steps", [1, 2, 6, 17])
def test_it_is_the_untrained_plan(config: dict[str, Any], steps: int) -> None:
    expected = sample(make_plan("consistency", steps, config), network, NOISE)
    scheduler = scheduler_for(config)
    assert relative_error(run_scheduler(scheduler, NOISE, num_inference_steps=steps), expected) < 1e-6


@CONFIGS
def test_it_follows_a_learned_table(config: dict[str, Any]) -> None:
    plan = learned_plan(config, 6)
    result = run_scheduler(scheduler_for(config, tables=[plan.to_dict()]), NOISE, num_inference_steps=6)
    assert relative_error(result, sample(plan, network, NOISE)) < 1e-6
    assert relative_error(result, sample(make_plan("unipc", 6, config), network, NOISE)) > 1e-3


@CONFIGS
@pytest.mark.parametrize("table", [False, True])
def test_it_enters_the_middle_as_this_package_s_scheduler(config: dict[str, Any], table: bool) -> None:
    tables = [learned_plan(config, 6).to_dict()] if table else None
    results = []
    for kind in (ConsistencySolverScheduler, solver.ConsistencySolverScheduler):
        name = "FlowMatchEulerDiscreteScheduler" if "shift" in config else "DDIMScheduler"
        scheduler = kind.from_config(diffusers_scheduler(name, **config).config, tables=tables)
        scheduler.set_timesteps(6)
        scheduler.set_begin_index(2)
        t = scheduler.timesteps[2:]
        x = scheduler.scale_noise(torch.ones_like(NOISE), t[:1], NOISE)
        for each in t:
            x = scheduler.step(network(x, each.expand(len(x))), each, x, return_dict=False)[0]
        results.append(x)
    assert relative_error(*results) < 1e-6


@pytest.mark.parametrize(
    ("config", "timesteps"),
    [
        (SD, {"sigmas": [9.0, 2.0, 0.4]}),
        (SD, {"timesteps": [900, 500, 20]}),
        (FLOW, {"sigmas": [0.9, 0.5, 0.1, 0.0]}),
        (ZERO_SNR, {"timesteps": [900, 500, 20]}),
    ],
)
def test_levels_of_one_s_own(config: dict[str, Any], timesteps: dict[str, Any]) -> None:
    name = "FlowMatchEulerDiscreteScheduler" if "shift" in config else "DDIMScheduler"
    theirs = diffusers_scheduler(name, **config).config
    ours, other = (
        kind.from_config(theirs) for kind in (ConsistencySolverScheduler, solver.ConsistencySolverScheduler)
    )
    expected = run_scheduler(other, NOISE, **timesteps)
    assert relative_error(run_scheduler(ours, NOISE, **timesteps), expected) < 1e-6
    np.testing.assert_allclose(ours.timesteps, other.timesteps, rtol=1e-6)
    np.testing.assert_allclose(ours.sigmas, other.sigmas, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has version 2 of its format"),
        ({"timestep": [999, 500, 1]}, "one evaluation a step"),
        ({"input_scale": [1.0, 1.0, 1.0, 0.5]}, "keep its state in the model's scaling"),
        ({"a": None}, "lacks a"),
    ],
)
def test_wrong_tables_are_refused(change: dict[str, Any], message: str) -> None:
    table = {k: v for k, v in (learned_plan(SD, 4).to_dict() | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        ConsistencySolverScheduler(tables=[table])


def test_a_table_of_another_model_is_refused() -> None:
    table = learned_plan(SD, 4).to_dict()
    for other in (V, {**SD, "beta_end": 0.02}, FLOW):
        scheduler = scheduler_for(other, tables=[table])
        scheduler.set_timesteps(5)
        with pytest.raises(ValueError, match="learned for another model"):
            scheduler.set_timesteps(4)


def test_it_is_one_file_without_imports_from_here() -> None:
    path = Path(inspect.getfile(scheduling_consistency_solver))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    roots = {str(name).partition(".")[0] for name in imported}
    assert not roots & {"solver", "app", "checkpoints", "integrations"}
    assert "diffusers" in roots and all(n.level == 0 for n in ast.walk(tree) if isinstance(n, ast.ImportFrom))


SDNEXT = Path(__file__).parents[2] / "integrations" / "sdnext.md"
INVOKEAI = Path(__file__).parents[2] / "integrations" / "invokeai.md"


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("flow", [False, True])
def test_as_sdnext_makes_it(flow: bool) -> None:
    """It fills settings from its defaults and the model's config, and keeps those that the class names."""
    names: dict[str, Any] = {"config": {}, "ConsistencySolverScheduler": ConsistencySolverScheduler}
    entry = [block for block in blocks(SDNEXT) if "config" in block]
    exec(entry[0], names)
    settings = {"num_train_timesteps": 1000, "prediction_type": "epsilon", "beta_schedule": "linear"}
    settings |= {"beta_start": 0.0001, "beta_end": 0.02}
    model = diffusers_scheduler("FlowMatchEulerDiscreteScheduler", **FLOW) if flow else None
    original = model.config if model else diffusers_scheduler("DDIMScheduler", **SD).config
    settings |= {key: value for key, value in original.items() if key in settings}
    settings |= names["config"]["ConsistencySolver"]
    if flow:  # what it sets for models of its list of flows
        settings |= {"use_flow_sigmas": True, "flow_shift": 3.0}
    possible = inspect.signature(ConsistencySolverScheduler, follow_wrapped=True).parameters
    scheduler = ConsistencySolverScheduler(**{k: v for k, v in settings.items() if k in possible})
    assert "flow_prediction" in inspect.getsource(ConsistencySolverScheduler)
    config = FLOW if flow else SD
    expected = sample(make_plan("consistency", 6, config), network, NOISE)
    assert relative_error(run_scheduler(scheduler, NOISE, num_inference_steps=6), expected) < 1e-6
    copy.deepcopy(scheduler)


def test_as_invokeai_makes_it_for_stable_diffusion() -> None:
    """It adds the table's settings and a backup to the model's config, and gives steps a generator."""
    original = dict(diffusers_scheduler("PNDMScheduler", **SD).config)
    scheduler = ConsistencySolverScheduler.from_config({**original, "_backup": original})
    scheduler.set_timesteps(6, device="cpu")
    assert "generator" in inspect.signature(scheduler.step).parameters
    x = NOISE * scheduler.init_noise_sigma
    for t in scheduler.timesteps[:: scheduler.order]:
        output = network(scheduler.scale_model_input(x, t), t.expand(len(x)))
        step = scheduler.step(output, t, x, generator=torch.Generator().manual_seed(1))
        x = step.prev_sample
        assert step.pred_original_sample.shape == x.shape  # what its previews show
    assert relative_error(x, sample(make_plan("consistency", 6, SD), network, NOISE)) < 1e-6


def test_as_invokeai_makes_it_for_flux() -> None:
    """It makes the class with 1000 timesteps, and passes shifted sigmas that end in zero."""
    names: dict[str, Any] = {
        "FLUX_SCHEDULER_MAP": {},
        "ConsistencySolverScheduler": ConsistencySolverScheduler,
        "functools": functools,
    }
    exec(next(block for block in blocks(INVOKEAI) if "FLUX_SCHEDULER_MAP" in block), names)
    scheduler = names["FLUX_SCHEDULER_MAP"]["consistency"](num_train_timesteps=1000)
    plan = make_plan("consistency", 6, FLOW)  # shifted by three
    sigmas = [1.0, *plan.sigma[1:]]
    assert "sigmas" in inspect.signature(scheduler.set_timesteps).parameters
    scheduler.set_timesteps(sigmas=sigmas, device="cpu")
    assert len(scheduler.timesteps) == 6 and not hasattr(scheduler, "state_in_first_order")
    x = NOISE
    for i in range(6):
        t = scheduler.timesteps[i]
        x = scheduler.step(network(x, t.expand(len(x))), t, x).prev_sample
    assert relative_error(x, sample(plan, network, NOISE)) < 1e-5
