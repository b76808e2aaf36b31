"""Compare distilled students with solvers at equal network calls: `python -m solver rivals --students A=DIR`.

A guided solver makes two network calls a step, a student one. So a student of 8 steps is compared with a
solver of 4 guided steps (equal calls) and of 8 (equal steps), on the same prompts and noises, by the distance
to the teacher's full-step picture. Differences are paired by prompt. An interrupted run continues when it is
started again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from solver.diffusion import load_diffusion
from solver.evaluation.evaluate import (
    Bench,
    Cell,
    batches,
    learned,
    load_or_make,
    measure,
    prepare,
    training_free_contenders,
)
from solver.evaluation.results import write_json
from solver.evaluation.summary import LEARNED_GRID, Measured, paired_difference, summarize
from solver.training.students import Student, load_student

CALLS_OF_A_GUIDED_STEP = 2


@torch.no_grad()
def student_cell(student: Student, bench: Bench, path: Path) -> Cell:
    """Measure a student on all pairs, or read the measurements from `path`."""
    return load_or_make(
        path,
        lambda: [
            bench.measure(student.sample(bench.pairs.take(which)), which.start)
            for which in batches(len(bench.pairs), len(bench.finer), bench.batch)
        ],
    )


def fair_steps(calls: int) -> dict[str, int]:
    """Return the guided steps of a solver to compare a student of so many calls with, by what is equal."""
    equal = {"calls": calls // CALLS_OF_A_GUIDED_STEP, "steps": calls}
    return {what: steps for what, steps in equal.items() if steps and (what == "steps" or calls % 2 == 0)}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure students and solvers; return the rows and the paired differences."""
    model = load_diffusion(args.model, args.device)
    folders = [entry.partition("=") for entry in args.students]
    students = {name: load_student(Path(folder), model) for name, _, folder in folders}
    counts = sorted({N for student in students.values() for N in fair_steps(student.steps).values()})
    own = Path(args.model) / "solver"
    contenders = [learned("consistency", own, model, args.guidance)] if own.is_dir() else []
    bench, validation, others = prepare(args, model)
    contenders += training_free_contenders(
        {name: counts for name in args.solvers}, bench, validation, args.work
    )
    measured = measure(contenders, counts, bench, others, args.work)
    solvers = list(measured.cells)
    cells = dict(measured.cells)
    for name, student in students.items():
        digest = student.model.fingerprint[:12]
        path = args.work / "cells" / f"{name}-{student.steps}-{len(bench.pairs)}-{digest}.safetensors"
        cells[name, LEARNED_GRID, student.steps] = student_cell(student, bench, path)
    rows = summarize(replace(measured, cells=cells))
    for row in rows:
        row["calls"] = row["nfe"] * (1 if row["solver"] in students else CALLS_OF_A_GUIDED_STEP)
    found = differences(replace(measured, cells=cells), {n: s.steps for n, s in students.items()}, solvers)
    return {"rows": rows, "student_minus_solver": found}


def differences(
    measured: Measured, students: dict[str, int], solvers: Sequence[tuple[str, str, int]]
) -> list[dict[str, Any]]:
    """Return how much better each student is than each solver, at equal calls and at equal steps.

    Args:
        students: name → calls for a picture.
        solvers: keys of the cells of solvers.
    """
    return [
        {"student": name, "calls": calls, "equal": what, "solver": solver, "solver_steps": steps}
        | paired_difference(measured, (name, calls), (solver, steps))
        for name, calls in students.items()
        for what, steps in fair_steps(calls).items()
        for solver, _, nfe in solvers
        if nfe == steps
    ]


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table of the differences."""
    lines = ["| student | calls | solver | guided steps | equal | PSNR, dB | SSIM |", "|" + "---|" * 7]
    for row in results["student_minus_solver"]:
        values = [
            "{:+.{n}f} [{:+.{n}f}, {:+.{n}f}]".format(row[name], *row[f"{name}_ci"], n=digits)
            for name, digits in (("psnr_db", 2), ("ssim", 4))
        ]
        head = [row[name] for name in ("student", "calls", "solver", "solver_steps", "equal")]
        lines.append("| " + " | ".join(map(str, [*head, *values])) + " |")
    return "\n".join(["Student minus solver, positive where the student is better:", "", *lines, ""])


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--students", nargs="+", required=True, metavar="NAME=FOLDER", help="trained students"
    )
    parser.add_argument("--model", default="checkpoints/landscapes", help="the teacher: folder or hub id")
    parser.add_argument("--solvers", nargs="*", default=["unipc", "dpm++2m"], help="training-free solvers")
    parser.add_argument("--pairs", type=int, default=1536, help="test pairs (default: 384 prompts × 4 seeds)")
    parser.add_argument("--validation-pairs", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--finer-pairs", type=int, default=2, help="with finer targets too (default: 2)")
    parser.add_argument("--guidance", type=float, default=3.0, help="of the teacher (default: %(default)s)")
    parser.add_argument("--prompts", type=Path, help="folder of test.jsonl and validation.jsonl")
    parser.add_argument("--rewards", nargs="*", default=[], metavar="REWARD", help="further similarities")
    parser.add_argument("--work", type=Path, default=Path("build/evaluate"), help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="pictures in a network call (default: 16)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help=" ")
    parser.add_argument("--out", type=Path, help="write the results to this file, compressed for .json.gz")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


def main() -> None:
    args = parser().parse_args()
    try:
        results = run(args)
    except (OSError, ValueError) as error:
        parser().error(str(error))
    if args.out:
        write_json(args.out, results)
    print(json.dumps(results) if args.json else table(results))
