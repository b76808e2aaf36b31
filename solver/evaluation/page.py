"""The text of the page beside a solver: tables and sentences whose numbers all come from the results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from solver.consistency import LearnedSolver
from solver.evaluation.summary import BASELINE, CLASSICAL_ROWS, GRID_ALONE, LEARNED_GRID

Row = dict[str, Any]
COLUMNS = {
    "psnr_db": ("PSNR, dB", 2),
    "ssim": ("SSIM", 4),
    "reader_distance": ("reader distance", 4),
    "finer_psnr_db": ("PSNR to 200 steps", 2),
    "sharpness": ("sharpness", 3),
    "faithfulness": ("faithfulness", 3),
    "kid": ("KID", 4),
    "top1_agreement": ("top-1 agreement", 3),
}


def table(rows: Sequence[Row], nfe: int) -> str:
    """Return a Markdown table of all solvers at one number of evaluations, and of the full-step pictures."""
    shown = {name: column for name, column in COLUMNS.items() if all(name in row for row in rows)}
    lines = ["| solver | grid | " + " | ".join(title for title, _ in shown.values()) + " |"]
    lines.append("|---|---|" + "---|" * len(shown))
    some = [row for row in rows[:-1] if row["nfe"] == nfe]
    for row in [*sorted(some, key=lambda row: row["psnr_db"]), rows[-1]]:
        name = f"**{row['solver']}**" if row["grid"] == LEARNED_GRID else row["solver"]
        name += f", {row['nfe']} steps" if row is rows[-1] else ""
        values = " | ".join(_with_interval(row, column, digits) for column, (_, digits) in shown.items())
        lines.append(f"| {name} | {row['grid']} | {values} |")
    return "\n".join(lines)


def _with_interval(row: Row, name: str, digits: int) -> str:
    value = f"{row[name]:.{digits}f}"
    if f"{name}_ci" not in row:
        return value
    low, high = row[f"{name}_ci"]
    return f"{value} ± {max(high - row[name], row[name] - low):.{digits}f}"


LEAD_COLUMNS = {
    "psnr_db": ("PSNR, dB", 2),
    "ssim": ("SSIM", 4),
    "reader_distance": ("reader distance", 4),
    "sharpness": ("sharpness", 3),
    "kid": ("KID", 4),
    "top1_agreement": ("top-1 agreement", 3),
    "regret": ("regret", 4),
}
EQUIVALENT_COLUMNS = {
    "psnr_db": "PSNR, best other",
    "psnr_db_dpm++2m": "PSNR, dpm++2m",
    "kid": "KID, best other",
    "kid_dpm++2m": "KID, dpm++2m",
}


def learned_rows(rows: Sequence[Row], solver: str = "consistency") -> list[Row]:
    """Return a learned solver's rows that are compared with training-free solvers."""
    return [row for row in rows if row["solver"] == solver and "lead_psnr_db" in row]


def leads(rows: Sequence[Row], solver: str = "consistency") -> str:
    """Return a Markdown table of a learned solver's leads over the best training-free one, paired by prompt.

    Every number is positive where the learned solver is better.
    """
    some = learned_rows(rows, solver)
    shown = {name: c for name, c in LEAD_COLUMNS.items() if some and all(f"lead_{name}" in r for r in some)}
    head = ["evaluations", *(f"lead in {title}" for title, _ in shown.values())]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in some:
        cells = [_lead(row, name, digits) for name, (_, digits) in shown.items()]
        lines.append(f"| {row['nfe']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rows_leads(rows: Sequence[Row], solver: str = "consistency") -> str:
    """Return a Markdown table of what a learned solver's rows add to its grid; "" if it was not measured."""
    some = [row for row in rows if row["solver"] == solver and "rows_lead_psnr_db" in row]
    if not some:
        return ""
    shown = {name: c for name, c in LEAD_COLUMNS.items() if all(f"rows_lead_{name}" in r for r in some)}
    head = ["evaluations", *(title for title, _ in shown.values())]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in some:
        cells = []
        for name, (_, digits) in shown.items():
            values = [row[f"rows_lead_{name}"], *row[f"rows_lead_{name}_ci"]]
            cells.append("{} [{}, {}]".format(*(f"{value:+.{digits}f}" for value in values)))
        lines.append(f"| {row['nfe']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def equivalents(rows: Sequence[Row], solver: str = "consistency") -> str:
    """Return a Markdown table of the evaluations that other solvers need for a learned solver's quality.

    A crossing without an interval is left out.
    """
    some = [row for row in learned_rows(rows, solver) if "equivalent_psnr_db" in row]
    shown = {
        name: title
        for name, title in EQUIVALENT_COLUMNS.items()
        if some and all("[" in row.get(f"equivalent_{name}", "") for row in some)
    }
    if not shown:
        return ""
    head = ["evaluations", *(f"as many as ({title})" for title in shown.values())]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {row['nfe']} | {' | '.join(row[f'equivalent_{name}'] for name in shown)} |" for row in some]
    return "\n".join(lines)


def verdicts(rows: Sequence[Row], solver: str = "consistency") -> str:
    """Return a Markdown list: in which measures a learned solver is better, worse, or not told apart."""
    lines = []
    for row in learned_rows(rows, solver):
        found: dict[str, list[str]] = {"better": [], "not told apart": [], "worse": []}
        for name, (title, digits) in LEAD_COLUMNS.items():
            if f"lead_{name}_ci" in row:
                # As printed: a difference too small to be shown is none.
                low, high = (round(end, digits) for end in row[f"lead_{name}_ci"])
                verdict = "better" if low > 0 else "worse" if high < 0 else "not told apart"
                found[verdict].append(title.removesuffix(", dB"))
        told = "; ".join(f"{verdict} in {', '.join(names)}" for verdict, names in found.items() if names)
        lines.append(f"- {row['nfe']} evaluations: {told}.")
    return "\n".join(lines)


def estimates(rows: Sequence[Row]) -> str:
    """Return a sentence on how well the change in the last step predicts the distance to the final."""
    correlations = [
        f"{row['error_estimate_spearman']:.2f} {_interval(row, 'error_estimate_spearman', 2)} at "
        f"{row['nfe']} evaluations"
        for row in rows
        if row["grid"] == LEARNED_GRID
        and "error_estimate_spearman" in row
        and not row["solver"].endswith((CLASSICAL_ROWS, GRID_ALONE))
    ]
    if not correlations:
        return ""
    return (
        "How far the last step still moves the expected picture orders a prompt's four previews by their "
        f"distance to their finals with a mean Spearman correlation of {', '.join(correlations)}."
    )


SEPARATED = {
    "sharpness": ("sharpness", "sharpness_lost", 0.0),
    "faithfulness": ("faithfulness", "faithfulness_lost", 0.0),
    "KID": ("kid", "kid", 0.0),
    "top-1 agreement": ("top1_agreement", "top1_agreement", 1.0),
}
"""Measure → its entry, the entry whose interval decides, and that entry's value for full-step pictures."""


def separation(rows: Sequence[Row], solver: str = "ddim", nfe: int = 5) -> str:
    """Return a sentence on which measures tell poor previews from full-step pictures; others rank no
    solver."""
    poor = next((row for row in rows[:-1] if (row["solver"], row["nfe"]) == (solver, nfe)), None)
    if poor is None:
        return ""
    measures: dict[bool, list[str]] = {True: [], False: []}
    for title, (name, entry, same) in SEPARATED.items():
        if f"{entry}_ci" in poor:
            low, high = poor[f"{entry}_ci"]
            values = f"{poor[name]:.3f} {_interval(poor, name, 3)} and {rows[-1][name]:.3f}"
            measures[not low <= same <= high].append(f"{title} ({values})")
    text = f"Of the measures that full-step pictures have too, these tell {nfe} steps of {solver} from them: "
    text += ", ".join(measures[True] or ["none"]) + "."
    if measures[False]:
        text += f" These do not, and so rank no solver here: {', '.join(measures[False])}."
    return text


def ablation_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of the ablation: PSNR at each number of evaluations, worst first."""
    counts = sorted({row["nfe"] for row in rows[:-1]})
    psnr = {(row["solver"], row["nfe"]): _with_interval(row, "psnr_db", 2) for row in rows[:-1]}
    means = {row["solver"]: 0.0 for row in rows[:-1]}
    for row in rows[:-1]:
        means[row["solver"]] += row["psnr_db"]
    lines = ["| variant | " + " | ".join(f"PSNR at {count}, dB" for count in counts) + " |"]
    lines.append("|---|" + "---|" * len(counts))
    for name in sorted(means, key=lambda name: means[name]):
        lines.append(f"| {name} | " + " | ".join(psnr[name, count] for count in counts) + " |")
    return "\n".join(lines)


def command(rows: Sequence[Row]) -> str:
    """Return the command that made these rows."""
    counts = sorted({row["nfe"] for row in rows[:-1]})
    solvers = []
    for name in sorted({row["solver"] for row in rows[:-1]}):
        if name.endswith((CLASSICAL_ROWS, GRID_ALONE)):
            continue  # they come with their solver
        some = sorted(row["nfe"] for row in rows[:-1] if row["solver"] == name)
        whole = some == counts or any(row["grid"] == LEARNED_GRID for row in rows if row["solver"] == name)
        solvers.append(name if whole else f"{name}@{','.join(map(str, some))}")
    options = {
        "pairs": [rows[-1]["pairs"]],
        "nfe": counts,
        "solvers": solvers,
        "validation-pairs": [rows[-1]["validation_pairs"]],
        "finer-pairs": [rows[-1]["finer_pairs"]],
    }
    given = [f"--{name} {' '.join(map(str, values))}" for name, values in options.items()]
    return " ".join(["python -m solver evaluate", *given, "--json evaluation.json"])


def _lead(row: Row, name: str, digits: int) -> str:
    low, high = row[f"lead_{name}_ci"]
    value, over = row[f"lead_{name}"], row[f"lead_{name}_over"]
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}] over {over}"


def _interval(row: Row, name: str, digits: int) -> str:
    """Return an entry's interval in brackets; "" where it has none."""
    if f"{name}_ci" not in row:
        return ""
    low, high = row[f"{name}_ci"]
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def grids_chosen(row: Row) -> str:
    """Return at which evaluations the grids of training-free solvers were chosen, as text."""
    return "at each number of evaluations" if row.get("grids_at") == "each" else "at 5 and 8 evaluations"


HOW = {
    "distill": "by gradient through the frozen network, not by reinforcement learning",
    "ppo": "by PPO",
    "fit": "by least squares on the final latents, not by reinforcement learning",
}


def how_trained(folder: Path) -> str:
    """Return a paragraph on the training from the solver's `training.json`; "" without this file."""
    file = folder / "training.json"
    if not file.exists():
        return ""
    training = json.loads(file.read_text(encoding="utf-8"))
    options, policy = training["options"], LearnedSolver.load(folder).policy
    assert policy is not None
    decides = ", ".join(policy.settings["learns"]) or "nothing"
    steps = ", ".join(map(str, sorted(set(options["steps"]))))
    fitted = options["method"] == "fit"
    work = "" if fitted else f" in {options['iterations']} iterations of {options['batch']} that took"
    on = (
        f"{training['pairs']} pairs,{work or ' in'} {training['seconds'] / 60:.0f} minutes, for {steps} steps"
    )
    return (
        f"Trained {HOW[options['method']]} (`--method {options['method']}`)"
        f"{'' if fitted else ' with the reward `' + options['reward'] + '`'} on {on}. "
        f"The {'measure `' + options['reward'] + '`' if fitted else 'reward'} on "
        f"{training['validation_pairs']} validation pairs rose from {training['validation_before']:.2f} to "
        f"{training['reward']:.2f}. The policy has order {policy.order}, starts as `{policy.start}` and "
        f"decides: {decides}{', rows not summing to one' if policy.free else ''}."
    )


def solver_page(results: dict[str, Any], folder: Path) -> str:
    """Return the text of the solver's `README.md`; all numbers come from `results` and `training.json`.

    Args:
        results: see `collect`.
        folder: of the solver.
    """
    rows, ablation = results["rows"], results["ablation"]
    final = rows[-1]
    counts = sorted({row["nfe"] for row in rows[:-1]})
    finer = (
        f"PSNR to 200 steps is on {final['finer_pairs']} of the pairs. "
        if all("finer_psnr_db" in row for row in rows)
        else ""
    )
    parts = [
        f"# ConsistencySolver for {results.get('model', 'landscapes')}",
        "What `solver.training.train` learned for this model: `scheduler_config.json` and "
        "`policy.safetensors` are a "
        "`ConsistencySolverScheduler`, which any diffusers pipeline takes, and the app's default for "
        "previews. The model itself is described [above](../README.md).",
        how_trained(folder),
        f"Measured on {results['machine']}: {final['pairs']} pairs of held-out prompts and seeds against "
        f"{final['nfe']} steps of {final['solver']}, every solver on the same noises from the same first "
        "noise level to σ = 0, training-free ones each on the time grid that did best on "
        f"{final['validation_pairs']} validation pairs {grids_chosen(final)}. {finer}± and brackets are "
        "95 % intervals over prompts. To reproduce all of it:",
        "```\n"
        + (results.get("command") or command(rows) + "\npython -m solver report evaluation.json")
        + "\n```",
        "`evaluation.json.gz` has all figures of this page; `python -m solver report --rebuild` writes it "
        "anew from them in seconds.",
        results["note"],
        "![Quality against evaluations](quality.png)",
        "Its leads over the training-free solver that is best in the measure, prompt by prompt; positive is "
        "better:",
        leads(rows),
        verdicts(rows),
        f"What its rows add to {BASELINE} rows on its own grid:" if rows_leads(rows) else "",
        rows_leads(rows),
        "Evaluations that others need for its quality:" if equivalents(rows) else "",
        equivalents(rows),
    ]
    for nfe in counts:
        parts += [f"## {nfe} evaluations", table(rows, nfe)]
    parts += [separation(rows), estimates(rows)]
    if ablation:
        parts += [
            "## What each part is worth",
            "Variants that differ in one part, trained alike and for about the same time, much shorter than "
            "the solver above, and compared in one run with all training-free solvers, on "
            f"{ablation[-1]['pairs']} held-out pairs. (Of order 1, weights that sum to one leave nothing to "
            "learn: that is `ddim`.) All are trained by gradient but those that say PPO, and none is the "
            "paper's own policy. None frees the weight of the state, which the solvers of BNS learn too.",
            f"```\n{results['ablation_command']}\n```" if results["ablation_command"] else "",
            ablation_table(ablation),
        ]
    parts += [
        "## What it looks like",
        "![Previews beside the final picture](previews.png)",
        "*One prompt and noise to a row: each solver's preview, and the final picture.*",
        "## What it learned",
        "![Shares of the outputs in each step](tables.png)",
        "![Where it evaluates](grid.png)",
        "Licence: Apache-2.0.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"
