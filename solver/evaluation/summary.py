"""Summarise measurements of pictures as the rows of a comparison, with 95 % intervals over prompts."""

from __future__ import annotations

from collections.abc import Mapping
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
)
from solver.evaluation.measures import kid_interval, regret, top1_agreement, within_prompt_spearman
from solver.training.pairs import Target

Cells = Mapping[tuple[str, str, int], Mapping[str, Tensor]]
"""(solver, grid, evaluations) → its `solver.evaluation.evaluate.Cell`."""

LEARNED_GRID = "learned"
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
# Measures by which a learned solver is compared with the best training-free one.
LEADS = ("psnr_db", "ssim", "reader_distance")
# Measures without reference to a target, which full-step pictures have too.
ALONE = ("sharpness", "faithfulness")
BASELINE = "dpm++2m"
# After a learned solver's name: BASELINE's rows on its grid, and the solver that learned the grid alone.
CLASSICAL_ROWS = f", {BASELINE} rows"
GRID_ALONE = ", grid alone"


def summarize(
    cells: Cells, finals: Mapping[str, Tensor], others: Mapping[str, Tensor], target: Target, seeds: int
) -> list[dict[str, Any]]:
    """Return one row for each solver and number of evaluations, and a last row for the full-step pictures.

    Args:
        cells: measurements of n pairs; pair i has prompt i modulo n / seeds.
        finals: measurements of the full-step pictures.
        others: measurements of full-step pictures of other seeds.
        target: how the full-step pictures were made.
        seeds: pictures of each prompt.

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
            lead_x: of a learned solver over the best training-free one at the same number of evaluations.
            equivalent_x, equivalent_x_dpm++2m: evaluations that the best training-free solver, or dpm++2m,
                needs for the value of a learned solver, as text; as a number in `…_nfe`.
    """
    n = len(next(iter(cells.values()))["psnr_db"])
    prompts = np.arange(n) % (n // seeds)
    rows = []
    for (solver, grid, nfe), cell in sorted(cells.items(), key=lambda item: (item[0][2], item[0][0])):
        row = {"solver": solver, "grid": grid, "nfe": nfe, **_row(cell, finals, others, prompts, seeds)}
        if grid == LEARNED_GRID:
            row |= _leads(cells, solver, nfe, prompts) | _equivalents(cells, solver, nfe, prompts)
            row |= _rows_leads(cells, solver, nfe, prompts)
        rows.append(row)
    for row in rows:
        if row["grid"] == LEARNED_GRID and "kid" in row:
            row |= _equivalent_kid(rows, row["kid"])
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
    for name in MEANS:
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
        for name in (*LEADS, "sharpness"):
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
    for name in LEADS:
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


def _equivalent_kid(rows: list[dict[str, Any]], value: float) -> dict[str, Any]:
    """Return the same for the kernel distance, without intervals, as it has no value per picture."""
    found: dict[str, Any] = {}
    free = [row for row in rows if row["grid"] != LEARNED_GRID]
    for suffix, rivals in (("", free), (f"_{BASELINE}", [row for row in free if row["solver"] == BASELINE])):
        counts = sorted({row["nfe"] for row in rivals})
        if len(counts) > 1:
            curve = [max(-row["kid"] for row in rivals if row["nfe"] == count) for count in counts]
            evaluations = equivalent_evaluations(counts, curve, -value)
            found[f"equivalent_kid{suffix}"] = str(evaluations)
            found[f"equivalent_kid{suffix}_nfe"] = evaluations.number
    return found
