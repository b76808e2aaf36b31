"""Summarise measurements of pictures as the rows of a comparison, with 95 % intervals over prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solver.evaluation.intervals import (
    Interval,
    difference_interval,
    equivalent_evaluations,
    equivalent_evaluations_interval,
    mean_interval,
    resampled_evaluations_interval,
    tails,
)
from solver.evaluation.measures import (
    kid,
    kid_interval,
    kid_samples,
    regret,
    top1_agreement,
    within_prompt_spearman,
)
from solver.training.pairs import Target

Cells = Mapping[tuple[str, str, int], Mapping[str, Tensor]]
"""(solver, grid, evaluations) → its `solver.evaluation.evaluate.Cell`."""

LEARNED_GRID = "learned"
REWARD = "reward:"
"""Begins the name of a similarity to the target that was asked for."""
# Measure → whether higher is better.
MEANS = {
    "psnr_db": True,
    "ssim": True,
    "reader_distance": False,
    "sharpness": True,
    "faithfulness": True,
    "finer_psnr_db": True,
    "finer_ssim": True,
    "finer_reader_distance": False,
}
# Measures for which the evaluations are given that other solvers need for the same value.
CURVES = ("psnr_db", "ssim", "reader_distance")
# Measures by which a learned solver is compared with the best training-free one.
LEADS = (*CURVES, "sharpness", "faithfulness")
# Measures without reference to a target, which full-step pictures have too.
ALONE = ("sharpness", "faithfulness")
BASELINE = "dpm++2m"
# After a learned solver's name: BASELINE's rows on its grid, and the solver that learned the grid alone.
CLASSICAL_ROWS = f", {BASELINE} rows"
GRID_ALONE = ", grid alone"


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of every picture.

    Attributes:
        cells: measurements of n pairs; pair i has prompt i modulo n / seeds.
        finals: measurements of the full-step pictures.
        others: measurements of full-step pictures of other seeds.
        target: how the full-step pictures were made.
        seeds: pictures of each prompt.
    """

    cells: Cells
    finals: Mapping[str, Tensor]
    others: Mapping[str, Tensor]
    target: Target
    seeds: int

    @property
    def prompts(self) -> np.ndarray:
        """The prompt of each pair, [n]."""
        n = len(self.finals["psnr_db"])
        return np.arange(n) % (n // self.seeds)


def paired_difference(measured: Measured, one: tuple[str, int], other: tuple[str, int]) -> dict[str, Any]:
    """Return how much better `one` is than `other`, by measure, with intervals over prompts.

    Args:
        one, other: solver and its number of evaluations; they may have any grids and differ in both.
    """
    a, b = (
        next(cell for (name, _, nfe), cell in measured.cells.items() if (name, nfe) == wanted)
        for wanted in (one, other)
    )
    row: dict[str, Any] = {}
    for name in a:
        if name in LEADS or name.startswith(REWARD):
            sign = 1 if MEANS.get(name, True) else -1
            _enter(row, name, difference_interval(sign * a[name], sign * b[name], measured.prompts))
    if "top1" in _scores(measured.finals):
        final = _grouped(_scores(measured.finals)["top1"], measured.seeds)
        first, second = (
            top1_agreement(_grouped(_scores(cell)["top1"], measured.seeds), final) for cell in (a, b)
        )
        _enter(row, "top1_agreement", difference_interval(first, second, np.arange(len(final))))
    return row


def summarize(measured: Measured) -> list[dict[str, Any]]:
    """Return one row for each solver and number of evaluations, and a last row for the full-step pictures.

    Returns:
        Rows with these entries, and for each mean `x` the ends of its interval, `x_ci`:
            psnr_db, ssim, reader_distance: to the full-step picture; `finer_x` to the one of 200 steps.
            sharpness: relative to the full-step picture.
            faithfulness: share of the attributes named in the prompt that the picture shows.
            sharpness_lost, faithfulness_lost: full-step pictures minus previews, pair by pair.
            kid: kernel distance of the judge's features to full-step pictures of other seeds.
            top1_agreement: how often a prompt's best preview has the best final. The best shows most of the
                named attributes; among equals, it is the nearest to the goal, a drawing that fits the prompt.
            faithful_agreement, goal_agreement: the same by the attributes alone and by the goal alone.
            regret: loss in the final score by choosing the best preview.
            error_estimate_spearman: rank correlation of the last step's change with the true distance,
                within a prompt.
            rows_lead_x: of a learned solver over BASELINE's rows on its own grid.
            lead_x: by how much a learned solver is better than the best training-free one at the same number
                of evaluations, paired by prompt; also for kid, top1_agreement and regret. "Best" is by the
                mean of x, so the choice favours the training-free solvers.
            equivalent_x, equivalent_x_dpm++2m: evaluations that the best training-free solver, or dpm++2m,
                needs for the value of a learned solver, as text; as a number in `…_nfe`.
    """
    cells, finals, others, seeds = measured.cells, measured.finals, measured.others, measured.seeds
    prompts, target = measured.prompts, measured.target
    rows = []
    for (solver, grid, nfe), cell in sorted(cells.items(), key=lambda item: (item[0][2], item[0][0])):
        row = {"solver": solver, "grid": grid, "nfe": nfe, **_row(cell, finals, others, prompts, seeds)}
        if grid == LEARNED_GRID:
            row |= _leads(cells, solver, nfe, prompts) | _equivalents(cells, solver, nfe, prompts)
            row |= _rows_leads(cells, solver, nfe, prompts) | _decision_leads(measured, solver, nfe)
            if "features" in cell:
                row |= _kid_comparison(measured, solver, nfe)
        rows.append(row)
    final = {"solver": target.solver, "grid": target.grid, "nfe": target.steps}
    return [*rows, final | _row(finals, finals, others, prompts, seeds)]


def _row(
    cell: Mapping[str, Tensor],
    finals: Mapping[str, Tensor],
    others: Mapping[str, Tensor],
    prompts: np.ndarray,
    seeds: int,
) -> dict[str, Any]:
    row: dict[str, Any] = {"pairs": len(prompts)}
    for name in [*MEANS, *(name for name in cell if name.startswith(REWARD))]:
        if name in cell:
            _enter(row, name, mean_interval(cell[name], prompts[: len(cell[name])]))
    for name in ALONE:
        if name in cell:
            _enter(row, f"{name}_lost", difference_interval(finals[name], cell[name], prompts))
    if "features" in cell:
        _enter(row, "kid", kid_interval(cell["features"], others["features"], list(prompts)))
    by_prompt = np.arange(len(prompts) // seeds)
    for name, score in _scores(cell).items():
        preview, final = _grouped(score, seeds), _grouped(_scores(finals)[name], seeds)
        _enter(row, f"{name}_agreement", mean_interval(top1_agreement(preview, final), by_prompt))
        if name == "top1":
            _enter(row, "regret", mean_interval(regret(preview, final), by_prompt))
    if "estimate" in cell:
        rho = within_prompt_spearman(_grouped(cell["estimate"], seeds), _grouped(-cell["psnr_db"], seeds))
        _enter(row, "error_estimate_spearman", mean_interval(rho, by_prompt))
    return row


def _enter(row: dict[str, Any], name: str, interval: Interval) -> None:
    row[name] = interval.value
    row[f"{name}_ci"] = [interval.low, interval.high]


def _grouped(values: Tensor, seeds: int) -> Tensor:
    """Reshape [n] to [prompts, seeds]."""
    return values.double().view(seeds, -1).T


def _scores(cell: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return scores by which a user may choose a picture, higher is better."""
    scores = {}
    if "faithfulness" in cell:
        scores["faithful"] = cell["faithfulness"].double()
    if "goal_distance" in cell:
        scores["goal"] = -cell["goal_distance"].double()
    if len(scores) == 2:
        # A distance is below 1 and a difference in faithfulness above 1/20, so the distance only breaks ties.
        scores["top1"] = scores["faithful"] + scores["goal"] / 50
    return scores


def _training_free(cells: Cells, nfe: int) -> list[tuple[str, str, int]]:
    return [key for key in cells if key[1] != LEARNED_GRID and key[2] == nfe]


def _best(cells: Cells, nfe: int, name: str) -> tuple[str, str, int]:
    """Return the training-free solver with the best mean of a measure."""
    sign = 1 if MEANS[name] else -1
    return max(_training_free(cells, nfe), key=lambda key: sign * float(cells[key][name].mean()))


def _leads(cells: Cells, solver: str, nfe: int, prompts: np.ndarray) -> dict[str, Any]:
    """Return a learned solver's lead over the best training-free one, by measure."""
    cell = cells[solver, LEARNED_GRID, nfe]
    row: dict[str, Any] = {}
    for name in LEADS:
        if name in cell and _training_free(cells, nfe):
            best = _best(cells, nfe, name)
            sign = 1 if MEANS[name] else -1
            _enter(
                row, f"lead_{name}", difference_interval(sign * cell[name], sign * cells[best][name], prompts)
            )
            row[f"lead_{name}_over"] = best[0]
    return row


def _rows_leads(cells: Cells, solver: str, nfe: int, prompts: np.ndarray) -> dict[str, Any]:
    """Return a learned solver's lead over classical rows on its grid, paired by prompt."""
    cell, classical = (cells.get((name, LEARNED_GRID, nfe)) for name in (solver, solver + CLASSICAL_ROWS))
    row: dict[str, Any] = {}
    if cell is not None and classical is not None:
        for name in LEADS:
            if name in cell:
                sign = 1 if MEANS[name] else -1
                difference = difference_interval(sign * cell[name], sign * classical[name], prompts)
                _enter(row, f"rows_lead_{name}", difference)
    return row


def _equivalents(cells: Cells, solver: str, nfe: int, prompts: np.ndarray) -> dict[str, Any]:
    """Return the evaluations that training-free solvers need for a learned solver's quality, by measure."""
    counts = sorted({key[2] for key in cells if key[1] != LEARNED_GRID})
    if len(counts) < 2:
        return {}
    row: dict[str, Any] = {}
    for name in CURVES:
        if name not in cells[solver, LEARNED_GRID, nfe]:
            continue
        sign = 1 if MEANS[name] else -1
        rivals = {"": [_best(cells, count, name) for count in counts]}
        rivals[f"_{BASELINE}"] = [
            key for count in counts for key in _training_free(cells, count) if key[0] == BASELINE
        ]
        for suffix, keys in rivals.items():
            if len(keys) == len(counts):
                curves = torch.stack([sign * cells[key][name] for key in keys], dim=1)
                found = equivalent_evaluations_interval(
                    counts, curves, sign * cells[solver, LEARNED_GRID, nfe][name], prompts
                )
                row[f"equivalent_{name}{suffix}"] = str(found)
                row[f"equivalent_{name}{suffix}_nfe"] = found.value.number
    return row


def _decision_leads(measured: Measured, solver: str, nfe: int) -> dict[str, Any]:
    """Return a learned solver's lead in the agreement of best pictures and in regret, paired by prompt."""
    keys = [(solver, LEARNED_GRID, nfe), *_training_free(measured.cells, nfe)]
    finals = _scores(measured.finals)
    if len(keys) < 2 or "top1" not in finals:
        return {}
    final = _grouped(finals["top1"], measured.seeds)
    previews = {key: _grouped(_scores(measured.cells[key])["top1"], measured.seeds) for key in keys}
    by_prompt = np.arange(len(final))
    row: dict[str, Any] = {}
    for name, decide, sign in (("top1_agreement", top1_agreement, 1), ("regret", regret, -1)):
        values = {key: sign * decide(preview, final) for key, preview in previews.items()}
        best = max(keys[1:], key=lambda key: float(values[key].mean()))
        _enter(row, f"lead_{name}", difference_interval(values[keys[0]], values[best], by_prompt))
        row[f"lead_{name}_over"] = best[0]
    return row


def _kid_comparison(measured: Measured, solver: str, nfe: int) -> dict[str, Any]:
    """Return a learned solver's lead in the kernel distance, and its equivalent evaluations.

    The distance has no value per picture, so both are resampled jointly: each bootstrap sample draws the same
    prompts for all solvers.
    """
    cells, prompts = measured.cells, list(measured.prompts)
    other = measured.others["features"]
    counts = sorted({key[2] for key in cells if key[1] != LEARNED_GRID})
    values = {key: -kid(cell["features"], other, prompts, prompts) for key, cell in cells.items()}
    own = (solver, LEARNED_GRID, nfe)
    rivals = {
        "": [max(_training_free(cells, count), key=values.__getitem__) for count in counts],
        f"_{BASELINE}": [
            key for count in counts for key in _training_free(cells, count) if key[0] == BASELINE
        ],
    }
    needed = {own, *(key for keys in rivals.values() for key in keys)}
    samples = {key: -kid_samples(cells[key]["features"], other, prompts) for key in needed}
    row: dict[str, Any] = {}
    if nfe in counts:
        best = rivals[""][counts.index(nfe)]
        low, high = np.quantile(samples[own] - samples[best], tails(0.95))
        _enter(row, "lead_kid", Interval(values[own] - values[best], float(low), float(high)))
        row["lead_kid_over"] = best[0]
    for suffix, keys in rivals.items():
        if len(keys) == len(counts) > 1:
            value = equivalent_evaluations(counts, [values[key] for key in keys], values[own])
            curves = np.stack([samples[key] for key in keys], axis=1)
            found = resampled_evaluations_interval(counts, value, curves, samples[own])
            row[f"equivalent_kid{suffix}"] = str(found)
            row[f"equivalent_kid{suffix}_nfe"] = value.number
    return row
