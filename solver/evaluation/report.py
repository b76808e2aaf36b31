"""Write the plots and the page of an evaluation: `python -m solver report evaluation.json --out FOLDER`.

Draws quality against evaluations, strips of previews beside finals, and the learned table beside a classical
one; writes a README whose numbers all come from the evaluation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from solver.consistency import LearnedSolver
from solver.diffusion import LatentDiffusion, load_diffusion
from solver.evaluation.plot import STYLE, plot_tables
from solver.evaluation.summary import CLASSICAL_ROWS, GRID_ALONE, LEARNED_GRID
from solver.sampling import sample
from solver.solvers import make_plan
from solver.training.pairs import Target, read_prompts

Row = dict[str, Any]
PANELS = {
    "psnr_db": "PSNR to the full-step picture, dB",
    "ssim": "SSIM to the full-step picture",
    "reader_distance": "scene reader's distance to it",
    "kid": "kernel distance to pictures of other seeds",
    "faithfulness": "share of named attributes shown",
    "top1_agreement": "best preview is the best final",
}
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
STRIP_SOLVERS = ("ddim", "dpm++2m", "unipc", "consistency")


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Write `quality.png`: each measure against the number of evaluations, with its interval if it has
    one."""
    panels = {name: title for name, title in PANELS.items() if all(name in row for row in rows)}
    final = rows[-1]
    columns = min(len(panels), 3)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            -(-len(panels) // columns),
            columns,
            figsize=(4 * columns, 6.4),
            layout="constrained",
            squeeze=False,
        )
        for axis, (name, title) in zip(axes.flat, panels.items(), strict=False):
            for solver, grid in dict.fromkeys((row["solver"], row["grid"]) for row in rows[:-1]):
                curve = [row for row in rows[:-1] if (row["solver"], row["grid"]) == (solver, grid)]
                learned = grid == LEARNED_GRID
                style = {"linewidth": 2.2 if learned else 1, "markersize": 5 if learned else 3, "zorder": 3}
                nfe = [row["nfe"] for row in curve]
                line = axis.plot(nfe, [row[name] for row in curve], "o-", label=f"{solver}, {grid}", **style)[
                    0
                ]
                if f"{name}_ci" in curve[0]:
                    low, high = zip(*(row[f"{name}_ci"] for row in curve), strict=True)
                    axis.fill_between(nfe, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
            if name in ("kid", "faithfulness"):
                axis.axhline(final[name], color="0.5", linestyle=":", label=f"{final['nfe']} steps")
            ticks = sorted({row["nfe"] for row in rows[:-1]})
            axis.set(title=title, xscale="log", xlabel="evaluations")
            axis.set_xticks(ticks, ticks)
            axis.minorticks_off()
        for axis in list(axes.flat)[len(panels) :]:
            axis.set_visible(False)
        handles, labels = axes.flat[min(3, len(panels) - 1)].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "quality.png")
        plt.close(figure)


@torch.no_grad()
def draw_strips(
    model: LatentDiffusion,
    rows: Sequence[Row],
    folder: Path,
    prompts: Sequence[str],
    nfe: int,
    guidance: float,
) -> None:
    """Write `previews.png`: each prompt's previews of the same noise by all solvers, and the final."""
    learned = LearnedSolver.load(folder)
    grids = {row["solver"]: row["grid"] for row in rows[:-1]}
    names = [name for name in STRIP_SOLVERS if name in grids]
    target = Target()
    plans = [
        make_plan(name, nfe, model.schedule, learned=learned, guidance=guidance)
        if grids[name] == LEARNED_GRID
        else make_plan(name, nfe, model.schedule, grid=grids[name])
        for name in names
    ]
    plans.append(make_plan(target.solver, target.steps, model.schedule, grid=target.grid))
    denoise = model.denoiser(prompts, torch.full((len(prompts),), guidance))
    noise = model.noise(range(len(prompts)))
    columns = [model.decode(sample(plan, denoise, noise)).clamp(0, 1) for plan in plans]
    tiles = (torch.stack(columns).permute(1, 3, 0, 4, 2) * 255).round().byte().cpu().numpy()
    count, height, across, width, _ = tiles.shape
    sheet = Image.new("RGB", (across * (width + 4), count * (height + 4) + 22), "white")
    writer, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, name in enumerate([*names, f"final, {target.steps} steps"]):
        writer.text((column * (width + 4) + 4, 2), f"{name}", fill="black", font=font)
        for row in range(count):
            tile = Image.fromarray(np.ascontiguousarray(tiles[row, :, column]))
            sheet.paste(tile, (column * (width + 4), 22 + row * (height + 4)))
    sheet.save(folder / "previews.png", optimize=True)


def draw_tables(model: LatentDiffusion, folder: Path, nfe: int, guidance: float) -> None:
    """Write `tables.png`, the learned table for `nfe` evaluations beside UniPC's, and `grid.png`, their
    grids."""
    solver = LearnedSolver.load(folder)
    classic = make_plan("unipc", nfe, model.schedule)
    mine = make_plan("consistency", nfe, model.schedule, learned=solver, guidance=guidance)
    with plt.rc_context(STYLE):
        figure = plot_tables([classic, mine])
        figure.savefig(folder / "tables.png", bbox_inches="tight")
        plt.close(figure)
        figure, axis = plt.subplots(figsize=(6.4, 2.2), layout="constrained")
        for row, plan in enumerate((classic, mine)):
            stands = np.log(np.divide(plan.alpha[:-1], plan.sigma[:-1]))
            axis.plot(
                stands, [row] * nfe, "o", color=f"C{row}", label="where the ODE stands" if row else None
            )
            told = model.schedule.lam(plan.timestep)
            axis.plot(
                told,
                [row + 0.18] * nfe,
                "v",
                color="0.4",
                markersize=4,
                label="what is told" if row else None,
            )
        axis.set_yticks([0, 1], ["unipc, trailing", "consistency"])
        axis.set(xlabel="log(α / σ): from noise to data", ylim=(-0.5, 1.6))
        axis.legend(frameon=False, ncols=2, loc="upper left")
        figure.savefig(folder / "grid.png")
        plt.close(figure)


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


def leads(rows: Sequence[Row], solver: str = "consistency") -> str:
    """Return a Markdown table of a learned solver's lead over the best training-free one, and of its
    savings."""
    lines = [
        "| evaluations | lead in PSNR | in SSIM | equivalent evaluations (PSNR), best other | dpm++2m | "
        "(KID), best other | dpm++2m |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["solver"] != solver or "lead_psnr_db" not in row:
            continue
        lead = [_lead(row, "psnr_db", 2, " dB"), _lead(row, "ssim", 4, "")]
        names = ("psnr_db", "psnr_db_dpm++2m", "kid", "kid_dpm++2m")
        saved = [str(row.get(f"equivalent_{name}", "")) for name in names]
        lines.append(f"| {row['nfe']} | " + " | ".join([*lead, *saved]) + " |")
    return "\n".join(lines)


def estimates(rows: Sequence[Row]) -> str:
    """Return a sentence on how well the change in the last step predicts the distance to the final."""
    correlations = [
        f"{row['error_estimate_spearman']:.2f} at {row['nfe']} evaluations"
        for row in rows
        if row["grid"] == LEARNED_GRID and "error_estimate_spearman" in row
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
            measures[not low <= same <= high].append(f"{title} ({poor[name]:.3f} and {rows[-1][name]:.3f})")
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


def _lead(row: Row, name: str, digits: int, unit: str) -> str:
    low, high = row[f"lead_{name}_ci"]
    value, over = row[f"lead_{name}"], row[f"lead_{name}_over"]
    return f"{value:+.{digits}f}{unit} [{low:+.{digits}f}, {high:+.{digits}f}] over {over}"


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
    return (
        f"Trained by `--method {options['method']}` with the reward `{options['reward']}` on "
        f"{training['pairs']} pairs, in {options['iterations']} iterations of {options['batch']} that took "
        f"{training['seconds'] / 60:.0f} minutes, for {steps} steps. The reward on "
        f"{training['validation_pairs']} validation pairs rose from {training['validation_before']:.2f} to "
        f"{training['reward']:.2f}. The policy has order {policy.order}, starts as `{policy.start}` and "
        f"decides: {decides}{', rows not summing to one' if policy.free else ''}."
    )


def write_page(
    rows: Sequence[Row], folder: Path, machine: str, ablation: Sequence[Row] = (), ablated: str = ""
) -> None:
    """Write `README.md` beside the solver's files.

    Args:
        rows: of `solver.evaluation.evaluate`.
        folder: of the solver.
        machine: the machine of the evaluation.
        ablation: rows of `solver.evaluation.ablate`.
        ablated: the command that made them.
    """
    final = rows[-1]
    counts = sorted({row["nfe"] for row in rows[:-1]})
    parts = [
        "# ConsistencySolver for landscapes",
        "What `solver.training.train` learned for this model: `scheduler_config.json` and "
        "`policy.safetensors` are a "
        "`ConsistencySolverScheduler`, which any diffusers pipeline takes, and the app's default for "
        "previews. The model itself is described [above](../README.md).",
        how_trained(folder),
        f"Measured on {machine}: {final['pairs']} pairs of held-out prompts and seeds against "
        f"{final['nfe']} steps of {final['solver']}, every solver on the same noises from the same first "
        "noise level to σ = 0, training-free ones each on the time grid that did best on "
        f"{final['validation_pairs']} validation pairs. PSNR to 200 steps is on {final['finer_pairs']} of "
        "the pairs. ± and brackets are 95 % intervals over prompts. To reproduce all of it:",
        "```\n" + command(rows) + "\npython -m solver report evaluation.json\n```",
        "![Quality against evaluations](quality.png)",
        leads(rows),
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
            "learn: that is `ddim`.)",
            f"```\n{ablated}\n```" if ablated else "",
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
    (folder / "README.md").write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("rows", type=Path, help="file that `python -m solver evaluate --json` wrote")
    parser.add_argument("--model", default="checkpoints/landscapes", help="folder or hub id")
    parser.add_argument("--out", type=Path, help="folder of the solver; default: the model's")
    parser.add_argument("--ablation", type=Path, help="file that `python -m solver ablate --json` wrote")
    parser.add_argument("--ablated", default="", help="the command that made it")
    parser.add_argument("--nfe", type=int, default=6, help="evaluations in strips and tables")
    parser.add_argument("--guidance", type=float, default=3.0, help=" ")
    parser.add_argument("--machine", default="two CPU cores", help="machine of the evaluation")
    args = parser.parse_args()
    folder = args.out or Path(args.model) / "solver"
    rows = json.loads(args.rows.read_text(encoding="utf-8"))
    model = load_diffusion(args.model)
    prompts = [p.prompt for p in read_prompts(Path(args.model) / "prompts" / "test.jsonl")[:6]]
    draw(rows, folder)
    draw_strips(model, rows, folder, prompts, args.nfe, args.guidance)
    draw_tables(model, folder, args.nfe, args.guidance)
    ablation = json.loads(args.ablation.read_text(encoding="utf-8")) if args.ablation else ()
    write_page(rows, folder, args.machine, ablation, args.ablated)
