"""From measurements of pictures to the rows of a comparison, with 95 % intervals over prompts."""

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
# Measure → whether more of it is better. Those with a lead are compared with the best training-free solver.
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
LEADS = ("psnr_db", "ssim", "reader_distance")
# Measures of a picture by itself, of which the full-step pictures have their own share.
ALONE = ("sharpness", "faithfulness")
BASELINE = "dpm++2m"


def summarize(
    cells: Cells, finals: Mapping[str, Tensor], others: Mapping[str, Tensor], target: Target, seeds: int
) -> list[dict[str, Any]]:
    """One row for each solver and number of evaluations; a last one for the full-step pictures themselves.

    Every mean `x` comes with `x_ci`, the ends of its interval. `sharpness` is relative to the final
    picture. `x_lost` is by how much the full-step pictures have more of a measure, pair by pair. `kid` is
    the kernel distance of the judging reader's features to full-step pictures of other seeds.

    Decisions among the `seeds` pictures of a prompt: `top1_agreement` is how often the best preview is the
    best final, and `regret` what it costs otherwise, where best is what shows most of the attributes named
    and, among those, what is nearest to a drawing that the words might have meant; `goal_agreement` and
    `faithful_agreement` are the two alone. `error_estimate_spearman` is how well the last step's change
    orders the pictures of a prompt by their true distance.

    Learned solvers have, where training-free ones are compared too, `lead_x` over the best of these at the
    same number of evaluations, and `equivalent_x` and `equivalent_x_dpm++2m`: how many evaluations the best
    training-free solver and dpm++2m need for the same value, in words and as `…_nfe`.

    Args:
        cells: measurements of n pairs; pair i has prompt i modulo n / seeds.
        finals, others: those of the full-step pictures, and of full-step pictures of other seeds.
        target: how the full-step pictures were made.
    """
    n = len(next(iter(cells.values()))["psnr_db"])
    prompts = np.arange(n) % (n // seeds)
    rows = []
    for (solver, grid, nfe), cell in sorted(cells.items(), key=lambda item: (item[0][2], item[0][0])):
        row = {"solver": solver, "grid": grid, "nfe": nfe, **_row(cell, finals, others, prompts, seeds)}
        if grid == LEARNED_GRID:
            row |= _leads(cells, solver, nfe, prompts) | _equivalents(cells, solver, nfe, prompts)
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
    """[n] as [prompts, seeds]."""
    return values.double().view(seeds, -1).T


def _scores(cell: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What somebody may choose by, higher is better."""
    scores = {}
    if "faithfulness" in cell:
        scores["faithful"] = cell["faithfulness"].double()
    if "goal_distance" in cell:
        scores["goal"] = -cell["goal_distance"].double()
    if len(scores) == 2:
        # A distance is below 1, a difference in faithfulness above 1 in 20, so it only ever breaks ties.
        scores["top1"] = scores["faithful"] + scores["goal"] / 50
    return scores


def _training_free(cells: Cells, nfe: int) -> list[tuple[str, str, int]]:
    return [key for key in cells if key[1] != LEARNED_GRID and key[2] == nfe]


def _best(cells: Cells, nfe: int, name: str) -> tuple[str, str, int]:
    """The training-free solver with the best mean of a measure."""
    sign = 1 if MEANS[name] else -1
    return max(_training_free(cells, nfe), key=lambda key: sign * float(cells[key][name].mean()))


def _leads(cells: Cells, solver: str, nfe: int, prompts: np.ndarray) -> dict[str, Any]:
    """By how much a learned solver is better than the best training-free one, measure by measure."""
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


def _equivalents(cells: Cells, solver: str, nfe: int, prompts: np.ndarray) -> dict[str, Any]:
    """How many evaluations training-free solvers need for a learned one's quality."""
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
    """The same for the kernel distance, which belongs to a set and so has no interval over prompts."""
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
