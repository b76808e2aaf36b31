"""The package's commands: pictures of plans, and what the solvers cost."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from solver import ConsistencySolverScheduler, make_plan
from solver.evaluation import bench, plot
from tests.solver.toys import FLOW, SD


@pytest.mark.parametrize("solver", ["ab4", "unipc", "heun"])
def test_shares_sum_to_one(solver: str) -> None:
    table = plot.shares(make_plan(solver, 7, SD))
    corrects = np.arange(len(table)) % 2 == 1 if solver == "heun" else np.zeros(len(table), dtype=bool)
    np.testing.assert_allclose(np.nansum(table, axis=1), ~corrects, atol=1e-6)
    assert np.isnan(table[np.triu_indices(len(table), 1)]).all()


@pytest.mark.parametrize("figure", ["tables", "weights", "grids"])
def test_plot_writes_a_picture_of_what_was_learned(
    figure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_plan("euler", 5, FLOW).to_dict()
    scheduler = ConsistencySolverScheduler(use_flow_sigmas=True, flow_shift=3.0, tables=[table])
    scheduler.save_pretrained(tmp_path)
    config, out = tmp_path / "scheduler_config.json", tmp_path / "plots" / "plot.png"
    arguments = [
        "--solvers",
        "consistency",
        "--steps",
        "5",
        "--scheduler",
        str(config),
        "--learned",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", ["plot", figure, *arguments, "--out", str(out)])
    plot.main()
    pixels = np.asarray(Image.open(out).convert("L"))
    assert min(pixels.shape) > 100 and pixels.min() < 100 < pixels.max()


def test_bench_reports_its_three_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--json", "--repeats", "1"])
    bench.main()
    result = json.loads(capsys.readouterr().out)
    assert result["import"]["heavy"] == [] and result["import"]["cpu_seconds"] > 0
    assert list(result["step_ms"]) == ["16", "32", "64", "128"]
    assert all(cost["ours"] > 0 for cost in result["step_ms"].values())
    assert all(cost > 0 for cost in result["probe_40_steps_ms"].values())
