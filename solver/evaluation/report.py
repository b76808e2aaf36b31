"""Write the plots and the page of an evaluation: `python -m solver report evaluation.json --out FOLDER`.

Draws quality against evaluations, strips of previews beside finals, and the learned table beside a classical
one; writes a README whose numbers all come from the evaluation.
"""

from __future__ import annotations

import argparse
import gzip
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
from solver.evaluation.page import Row, solver_page
from solver.evaluation.plot import STYLE, plot_tables
from solver.evaluation.results import read_json, write_json
from solver.evaluation.summary import LEARNED_GRID
from solver.sampling import sample
from solver.solvers import make_plan
from solver.training.pairs import Target, read_prompts

PANELS = {
    "psnr_db": "PSNR to the full-step picture, dB",
    "ssim": "SSIM to the full-step picture",
    "reader_distance": "scene reader's distance to it",
    "kid": "kernel distance to pictures of other seeds",
    "faithfulness": "share of named attributes shown",
    "top1_agreement": "best preview is the best final",
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
            for solver in dict.fromkeys(row["solver"] for row in rows[:-1]):
                curve = [row for row in rows[:-1] if row["solver"] == solver]
                grids = dict.fromkeys(row["grid"] for row in curve)
                learned = LEARNED_GRID in grids
                style = {"linewidth": 2.2 if learned else 1, "markersize": 5 if learned else 3, "zorder": 3}
                nfe = [row["nfe"] for row in curve]
                line = axis.plot(
                    nfe, [row[name] for row in curve], "o-", label=f"{solver}, {'/'.join(grids)}", **style
                )[0]
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
    # The grid for this number of evaluations, or for another where there is none.
    grids = {r["solver"]: r["grid"] for r in sorted(rows[:-1], key=lambda r: (r["nfe"] == nfe, -r["nfe"]))}
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


EVALUATION_FILE, LOG_FILE = "evaluation.json.gz", "log.jsonl"


def collect(
    rows: Sequence[Row],
    machine: str,
    ablation: Sequence[Row] = (),
    ablation_command: str = "",
    note: str = "",
    model: str = "landscapes",
    command: str = "",
) -> dict[str, Any]:
    """Return what EVALUATION_FILE holds: everything that the page needs beside the solver's own files.

    Args:
        rows: of `solver.evaluation.evaluate`.
        machine: the machine of the evaluation.
        ablation: rows of `solver.evaluation.ablate`.
        ablation_command: the command that made them.
        note: a paragraph about the figures for the page.
        model: the model's name.
        command: what reproduces the page; by default what the rows tell of it.
    """
    return {
        "rows": list(rows),
        "machine": machine,
        "ablation": list(ablation),
        "ablation_command": ablation_command,
        "note": note,
        "model": model,
        "command": command,
    }


def ship(results: dict[str, Any], folder: Path) -> None:
    """Write the page, the results behind it, and the training's log if it is there, compressed."""
    write_json(folder / EVALUATION_FILE, results)
    (folder / "README.md").write_text(solver_page(results, folder), encoding="utf-8")
    if (folder / LOG_FILE).exists():
        log = (folder / LOG_FILE).read_bytes()
        (folder / f"{LOG_FILE}.gz").write_bytes(gzip.compress(log, mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "rows", type=Path, nargs="?", help="file that `python -m solver evaluate --json` wrote"
    )
    parser.add_argument("--model", default="checkpoints/landscapes", help="folder or hub id")
    parser.add_argument("--out", type=Path, help="folder of the solver; default: the model's")
    parser.add_argument("--ablation", type=Path, help="file that `python -m solver ablate --json` wrote")
    parser.add_argument("--ablated", default="", help="the command that made it")
    parser.add_argument("--nfe", type=int, default=6, help="evaluations in strips and tables")
    parser.add_argument("--guidance", type=float, default=3.0, help=" ")
    parser.add_argument("--machine", default="two CPU cores", help="machine of the evaluation")
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help=f"write the page and quality.png anew from the solver's {EVALUATION_FILE}, without the model",
    )
    args = parser.parse_args()
    folder = args.out or Path(args.model) / "solver"
    if (args.rows is None) != args.rebuild:
        parser.error("Give the file of rows, or --rebuild to take those beside the solver.")
    try:
        if args.rebuild:
            results = read_json(folder / EVALUATION_FILE)
        else:
            ablation = read_json(args.ablation) if args.ablation else ()
            results = collect(read_json(args.rows), args.machine, ablation, args.ablated)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    draw(results["rows"], folder)
    ship(results, folder)
    if not args.rebuild:
        model = load_diffusion(args.model)
        prompts = [p.prompt for p in read_prompts(Path(args.model) / "prompts" / "test.jsonl")[:6]]
        draw_strips(model, results["rows"], folder, prompts, args.nfe, args.guidance)
        draw_tables(model, folder, args.nfe, args.guidance)
