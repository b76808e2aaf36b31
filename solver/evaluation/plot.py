"""Plot plans: python -m solver plot tables --out tables.png

`tables` shows the share of each network output in each step, `weights` the shares of the newest outputs along
the grid, and `grids` the positions of the steps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from solver.consistency import LearnedSolver
from solver.grids import GRIDS, time_grid
from solver.plan import Plan
from solver.schedule import NoiseSchedule
from solver.solvers import SOLVERS, make_plan

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 110}


def shares(plan: Plan) -> np.ndarray:
    """Return the share of output j in step i, [N, N]; rows sum to one, unused outputs are NaN.

    The rows of correcting steps, such as every second one of Heun's, sum to zero: their largest share is 1.
    """
    table = np.full((plan.nfe, plan.nfe), np.nan)
    for i, row in enumerate(plan.b):
        largest = max(row, key=abs)
        whole = sum(row) if abs(sum(row)) > 1e-6 * abs(largest) else largest
        for k, weight in enumerate(row):
            if weight:
                table[i, i - k] = weight / whole
    return table


def plot_tables(plans: list[Plan]) -> Any:
    """Draw a heat map for each plan: steps downwards, outputs to the right."""
    columns = min(len(plans), 3)
    rows = -(-len(plans) // columns)
    size = 0.42 * max(plan.nfe for plan in plans) + 0.5
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * size), squeeze=False)
    for axis in axes.flat[len(plans) :]:
        axis.set_visible(False)
    for axis, plan in zip(axes.flat, plans, strict=False):
        table = shares(plan)
        axis.imshow(table, cmap="RdBu", vmin=-2.5, vmax=2.5)
        for i, j in zip(*np.nonzero(~np.isnan(table)), strict=True):
            colour = "white" if abs(table[i, j]) > 1.6 else "black"
            axis.text(j, i, f"{table[i, j]:.2f}", ha="center", va="center", fontsize=6.5, color=colour)
        axis.set(title=plan.solver, xticks=range(plan.nfe), yticks=range(plan.nfe))
        axis.set_xlabel("output of evaluation")
        axis.set_ylabel("step")
    return figure


def plot_grids(schedule: NoiseSchedule, steps: int) -> Any:
    """Draw λ = log(α / σ) of each evaluation, one row for each grid that the schedule has."""
    figure, axis = plt.subplots(figsize=(6.4, 2.8))
    grids = [grid for grid in GRIDS if not (grid == "leading" and schedule.is_flow)]
    for row, grid in enumerate(grids):
        lam = time_grid(grid, schedule, steps).lam[:-1]
        axis.plot(lam, [row] * steps, "o-", markersize=4, linewidth=0.6)
    axis.set_yticks(range(len(grids)), grids)
    axis.invert_yaxis()
    axis.set(xlabel="log(α / σ): from noise to data", title=f"{steps} steps")
    return figure


def plot_weights(plans: list[Plan]) -> Any:
    """Draw the shares of the newest outputs against the timestep, one panel for each plan."""
    figure, axes = plt.subplots(
        1, len(plans), figsize=(2.5 * len(plans), 3.1), sharey=True, squeeze=False, layout="constrained"
    )
    lines: dict[str, Any] = {}
    for axis, plan in zip(axes.flat, plans, strict=True):
        for k in range(plan.columns):
            weights, times = np.diagonal(shares(plan), -k), plan.timestep[k:]
            name = f"q[i-{k}]" if k else "q[i]"
            line = axis.plot(times, weights, "o-", markersize=3, linewidth=1, color=f"C{k}")[0]
            lines.setdefault(name, line)
        axis.set(title=plan.solver, xlabel="timestep")
        axis.invert_xaxis()
        axis.axhline(0, color="0.7", linewidth=0.6)
    axes[0, 0].set_ylabel("share in the step")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("figure", choices=("tables", "grids", "weights"))
    parser.add_argument("--solvers", nargs="+", default=["ab4", "dpm++2m", "unipc"], choices=SOLVERS)
    parser.add_argument("--steps", type=int, default=8, help="default: 8")
    parser.add_argument("--grid", default="trailing", choices=GRIDS, help="default: trailing")
    parser.add_argument(
        "--scheduler", type=Path, help="a scheduler_config.json (default: Stable Diffusion's)"
    )
    parser.add_argument("--learned", type=Path, help="folder of a learned solver, for consistency")
    parser.add_argument("--out", type=Path, required=True, help="file to write: .png, .svg or .pdf")
    options = parser.parse_args()

    config = json.loads(options.scheduler.read_text(encoding="utf-8")) if options.scheduler else SD
    learned = LearnedSolver.load(options.learned) if options.learned else None
    schedule = NoiseSchedule.from_config(config)
    with plt.rc_context(STYLE):
        if options.figure == "grids":
            figure = plot_grids(schedule, options.steps)
        else:
            plans = [
                make_plan(solver, options.steps, schedule, grid=options.grid, learned=learned)
                for solver in options.solvers
            ]
            figure = plot_tables(plans) if options.figure == "tables" else plot_weights(plans)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(options.out, bbox_inches="tight")
