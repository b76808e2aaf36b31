import contextlib
import copy
import dataclasses
import io
import json
import math
import pickle
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from solver import SOLVERS, LearnedSolver, NoiseSchedule, Plan, Policy, make_plan, read_plan, sample
from solver.grids import time_grid
from solver.plan import PREDICTION_TYPES, as_mixture, convert_prediction
from tests.solver.toys import FLOW, SD, diffusers_scheduler

EULER = Plan(
    solver="euler by hand",
    prediction_type="flow_prediction",
    timestep=(1000, 500),
    alpha=(0, 0.5, 1),
    sigma=(1, 0.5, 0),
    a=(1, 1),
    b=((-0.5,), (-0.5,)),
    c=(0, 0),
    d=(1, 1),
    input_scale=(1, 1),
)


@pytest.mark.parametrize("solver", SOLVERS)
def test_saved_plan_is_the_same_to_the_last_bit(solver: str, tmp_path: Path) -> None:
    plan = make_plan(solver, 7, SD)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == plan and hash(loaded) == hash(plan)
    assert Plan.from_dict(plan.to_dict()) == plan
    assert pickle.loads(pickle.dumps(plan)) == copy.deepcopy(plan) == plan


def test_plan_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EULER.a = (2.0, 2.0)  # type: ignore[misc]
    numbers = [v for f in dataclasses.fields(EULER) if isinstance(v := getattr(EULER, f.name), tuple)]
    assert len(numbers) == 10
    assert all(isinstance(x, float | tuple) for v in numbers for x in v)


def test_lists_and_arrays_are_taken() -> None:
    rows: dict[str, Any] = {
        f: list(getattr(EULER, f)) for f in ("timestep", "alpha", "sigma", "a", "b", "c", "d")
    }
    assert dataclasses.replace(EULER, **rows) == EULER


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": (1.0,)}, "a has 1 entries where 2 are needed"),
        ({"sigma": (1.0, 0.5)}, "sigma has 2 entries where 3 are needed"),
        ({"b": ((-0.5,),)}, "b has 1 rows for 2 timesteps"),
        ({"b": ((-0.5, 0.1), (-0.5,))}, r"b\[0\] has 2 entries, but only 1 outputs exist"),
        ({"b": ((math.nan,), (-0.5,))}, r"b\[0\] holds a number that is not finite"),
        ({"d": (1.0, math.inf)}, "d holds a number that is not finite"),
        ({"alpha": (-0.1, 0.5, 1.0)}, "cannot be negative"),
        ({"input_scale": (0.0, 1.0)}, "input_scale must be positive"),
        ({"init_noise_scale": 0.0}, "init_noise_scale must be a positive number"),
        ({"prediction_type": "noise"}, "Unknown prediction type 'noise'; choose one of epsilon"),
    ],
)
def test_invalid_plans_are_refused_with_a_message(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(EULER, **change)


def test_empty_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Plan("none", "epsilon", (), (1.0,), (0.0,), (), (), (), (), ())


def test_file_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"solver": "x", "rows": []}))
    with pytest.raises(ValueError, match=r"entries missing \['a'.*entries unknown \['rows'\]"):
        Plan.load(path)
    with pytest.raises(ValueError, match=r"entries missing \['told_alpha', 'told_sigma'\]"):
        Plan.from_dict({key: value for key, value in EULER.to_dict().items() if "told" not in key})
    path.write_text("no JSON")
    with pytest.raises(ValueError):
        Plan.load(path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"version": 2}, "has version 2 of its format, and this program reads version 1; update the program"),
        ({"format": "a shopping list"}, "its format is 'a shopping list' and not 'consistency-solver plan'"),
    ],
)
def test_another_format_is_refused(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.from_dict(EULER.to_dict() | entries)


def unversioned(plan: Plan) -> dict[str, Any]:
    """A plan as it was written before it had a version and told levels."""
    return {k: v for k, v in plan.to_dict().items() if k not in ("format", "version") and "told" not in k}


def test_a_plan_of_before_is_read_as_told_the_levels_of_its_input() -> None:
    read = Plan.from_dict(unversioned(EULER))
    assert read == EULER
    assert (read.told_alpha, read.told_sigma) == (EULER.alpha[:-1], EULER.sigma[:-1])
    scaled = read_plan(diffusers_scheduler("EulerDiscreteScheduler", **{**SD, "beta_schedule": "linear"}), 4)
    assert scaled.input_scale[0] != 1
    assert Plan.from_dict(unversioned(scaled)).told_sigma == pytest.approx(scaled.told_sigma, abs=1e-4)


def test_a_table_of_before_gets_the_levels_told_from_the_schedule() -> None:
    S = NoiseSchedule.from_config(SD)
    plan = Policy(4, learns=("rows", "grid", "times")).plan(S, time_grid("trailing", S, 5), 3.0)
    told = (plan.timestep[0], *(0.9 * t for t in plan.timestep[1:]))
    other = dataclasses.replace(plan, timestep=told, told_alpha=(), told_sigma=())
    assert other.told_sigma == other.sigma[:-1]
    table = Plan.from_dict(unversioned(other))
    used = make_plan("consistency", 5, SD, learned=LearnedSolver((table,)))
    assert used.told_sigma == pytest.approx(S.sigma(other.timestep).tolist(), abs=1e-12)
    assert dataclasses.replace(used, told_alpha=(), told_sigma=()) == other


@pytest.mark.parametrize("config", [SD, {**SD, "prediction_type": "v_prediction"}, FLOW])
@pytest.mark.parametrize("solver", SOLVERS)
def test_told_levels_are_those_of_the_timesteps(solver: str, config: dict[str, Any]) -> None:
    if solver in ("dpm2m", "deis") and config is FLOW:
        return
    plan, S = make_plan(solver, 5, config), NoiseSchedule.from_config(config)
    assert plan.told_alpha == pytest.approx(S.alpha(plan.timestep).tolist(), abs=1e-12)
    assert plan.told_sigma == pytest.approx(S.sigma(plan.timestep).tolist(), abs=1e-12)


def page() -> str:
    return (Path(__file__).parents[2] / "docs" / "plan-format.md").read_text(encoding="utf-8")


def test_the_loop_of_the_format_s_page_is_sample() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", page(), re.DOTALL)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(printed := io.StringIO()):
        exec(code, names)
    given = Plan.from_dict(names["PLAN"])
    made = make_plan("unipc", 3, FLOW)
    for field in dataclasses.fields(Plan):
        here, there = getattr(given, field.name), getattr(made, field.name)
        if field.name in ("solver", "prediction_type"):
            assert here == there
        else:
            here, there = (np.hstack(v) if field.name == "b" else np.array(v) for v in (here, there))
            np.testing.assert_allclose(here, there, rtol=1e-9, atol=1e-12)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x + t[:, None] / 700)

    random.seed(1)
    noise = torch.tensor([[random.gauss(0, 1) for _ in range(4)]])
    np.testing.assert_allclose(json.loads(printed.getvalue()), sample(made, network, noise)[0], rtol=1e-5)


def test_the_format_s_page_explains_every_entry() -> None:
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|(.*?)\|", page(), re.MULTILINE))))
    assert named >= set(EULER.to_dict())


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_format_s_page_reads_pictures_as_outputs(kind: Any) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|$", page().split("## Programs")[1], re.MULTILINE))
    alpha, sigma = 0.6, 0.4 if kind == "flow_prediction" else 0.8
    p, r = (eval(entry.replace("−", "-"), {"α": alpha, "σ": sigma}) for entry in rows[kind].split(" | "))
    assert (p, r) == pytest.approx(convert_prediction(kind, "sample", alpha, sigma))


@pytest.mark.parametrize(
    ("solver", "nfe", "columns"),
    [("ddim", 6, 1), ("dpm++2m", 6, 2), ("dpm++3m", 6, 3), ("unipc", 6, 3), ("ab4", 6, 4), ("heun", 11, 2)],
)
def test_evaluations_and_columns_are_counted(solver: str, nfe: int, columns: Any) -> None:
    plan = make_plan(solver, 6, SD)
    assert (plan.steps, plan.nfe, plan.columns) == (6, nfe, columns)


def test_table_shows_every_row() -> None:
    plan = make_plan("dpm++2m", 6, SD)
    lines = str(plan).splitlines()
    assert lines[0] == "dpm++2m, 6 evaluations, epsilon"
    assert lines[1].split() == ["i", "timestep", "alpha", "sigma", "a", "c", "d", "q[i]", "q[i-1]"]
    assert [float(line.split()[1]) for line in lines[2:-1]] == list(plan.timestep)
    assert lines[-1].split() == ["end", "1", "0"]


@pytest.mark.parametrize("wanted", PREDICTION_TYPES)
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_an_output_of_any_kind_can_be_read_as_any_other(kind: Any, wanted: Any) -> None:
    alpha, sigma, x0, noise = 0.6, 0.8, 1.7, -0.3
    p, r = as_mixture(kind, alpha, sigma)
    u, w = as_mixture(wanted, alpha, sigma)
    c, d = convert_prediction(kind, wanted, alpha, sigma)
    x, output = alpha * x0 + sigma * noise, p * x0 + r * noise
    assert c * x + d * output == pytest.approx(u * x0 + w * noise, rel=1e-12)


def test_noise_does_not_tell_the_picture_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="epsilon output cannot be converted to sample at α = 0"):
        convert_prediction("epsilon", "sample", 0.0, 1.0)


def test_flow_plan_is_readable_too() -> None:
    assert "flow_prediction" in str(make_plan("euler", 4, FLOW))
