import copy
import dataclasses
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest

from solver import SOLVERS, Plan, make_plan
from solver.plan import PREDICTION_TYPES, as_mixture, convert_prediction
from tests.solver.toys import FLOW, SD

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
    assert len(numbers) == 8
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
    path.write_text("no JSON")
    with pytest.raises(ValueError):
        Plan.load(path)


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
