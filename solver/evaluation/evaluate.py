"""Compare solvers by the distance of previews to full-step pictures: `python -m solver evaluate`.

All solvers start from the same noise at the same first noise level, end at the same level, and use the same
number of network evaluations. Every training-free solver uses the grid that did best on validation pairs; a
learned solver is compared at the numbers of steps that it was trained for. An interrupted run continues when
it is started again. `solver.evaluation.report` draws the plots.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from solver.consistency import LearnedSolver
from solver.diffusion import LatentDiffusion, load_diffusion
from solver.evaluation.measures import faithfulness, load_judge, reader_distance, reader_labels, sharpness
from solver.evaluation.summary import BASELINE, CLASSICAL_ROWS, GRID_ALONE, summarize
from solver.grids import GRIDS
from solver.multistep import classical_plan, grid_of
from solver.plan import Plan
from solver.readers import reader_features
from solver.sampling import sample
from solver.similarity import psnr, ssim
from solver.solvers import make_plan
from solver.training.fit import GRID_STAGE
from solver.training.pairs import Pairs, Target, load_pairs, make_pairs, read_prompts

TRAINING_FREE = ("ddim", "ab4", "deis", "unipc", "dpm2m", "dpm++2m", "dpm++3m")
# Not `leading`: its first noise level depends on the number of steps, so it differs from the target's.
CANDIDATE_GRIDS = tuple(grid for grid in GRIDS if grid != "leading")
CHOICE_NFE = (5, 8)
SEEDS_PER_PROMPT = 4
"""Previews of one prompt, among which a user would choose."""
NFE = (4, 5, 6, 8, 10, 12, 15, 20)
FINER_STEPS = 200
LOWEST_SIGMA = 0.03
"""Highest σ at the end of a plan; Stable Diffusion's lowest level is 0.0292."""

Cell = dict[str, Tensor]
"""Measurements of one solver at one number of evaluations: each measure's value per pair [n], and `features`
[n, attributes, width]."""


@dataclass(frozen=True, eq=False)
class Contender:
    """A solver in the comparison.

    Attributes:
        name, grid: as in the results.
        plan: makes its plan for a number of evaluations.
        covers: whether it is compared at a number of evaluations.
    """

    name: str
    grid: str
    plan: Callable[[int], Plan]
    covers: Callable[[int], bool] = lambda N: True


def classical(solver: str, grid: str, model: LatentDiffusion, only: Sequence[int] = ()) -> Contender:
    """Return a training-free solver on a time grid; an empty `only` compares it at all numbers of
    evaluations."""
    return Contender(
        solver,
        grid,
        lambda N: make_plan(solver, N, model.schedule, grid=grid),
        lambda N: not only or N in only,
    )


def parse_solver(text: str) -> tuple[str, tuple[int, ...]]:
    """Parse `NAME`, or `NAME@N,N,…` for a solver that is compared only at these numbers of evaluations.

    Raises:
        ValueError: the text after @ is not a list of integers.
    """
    name, at, numbers = text.partition("@")
    if at and not all(number.isdecimal() for number in numbers.split(",")):
        raise ValueError(f"Write {name}@5,8 to compare {name} at 5 and 8 evaluations, not {text!r}.")
    return name, tuple(map(int, numbers.split(","))) if at else ()


def training_free(model: LatentDiffusion, solvers: Iterable[str] | None) -> list[str]:
    """Return the training-free solvers among `solvers`, or all that the model supports if it is None.

    Raises:
        ValueError: a requested solver that the model does not support, such as deis for a flow.
    """
    found = []
    for name in TRAINING_FREE if solvers is None else solvers:
        try:
            if name != "consistency":
                make_plan(name, CHOICE_NFE[0], model.schedule)
                found.append(name)
        except ValueError:
            if solvers is not None:
                raise
    return found


def learned(name: str, folder: Path, model: LatentDiffusion, guidance: float) -> Contender:
    """Return the solver that `solver.training.train` saved in a folder, compared at the steps it was trained
    for."""
    solver = LearnedSolver.load(folder)
    return Contender(
        name,
        "learned",
        lambda N: make_plan("consistency", N, model.schedule, learned=solver, guidance=guidance),
        solver.covers,
    )


def with_its_grid(
    contender: Contender, folder: Path, model: LatentDiffusion, guidance: float
) -> list[Contender]:
    """Return a learned solver, and for one that learned a grid those that show what its rows are worth.

    Returns:
        The solver; `NAME, dpm++2m rows`, that classical solver on its grid and told times; and
        `NAME, grid alone` if the folder has the solver that learned the grid alone.
    """
    solver, found = LearnedSolver.load(folder), [contender]
    if solver.tables or (solver.policy is not None and "grid" in solver.policy.decisions):

        def classical_rows(N: int) -> Plan:
            return classical_plan(BASELINE, model.schedule, grid_of(contender.plan(N)))

        found.append(replace(contender, name=contender.name + CLASSICAL_ROWS, plan=classical_rows))
    if (folder / GRID_STAGE).is_dir():
        found.append(learned(contender.name + GRID_ALONE, folder / GRID_STAGE, model, guidance))
    return found


def check_fair(plan: Plan, N: int, target: Plan) -> None:
    """Check that a plan has N evaluations, and the first and last noise level of the target.

    The published solver ends at its schedule's lowest level; it is judged by the picture at that level.

    Raises:
        ValueError: the number of evaluations or a noise level differs.
    """
    if plan.nfe != N:
        raise ValueError(f"{plan.solver} takes {plan.nfe} evaluations where {N} are compared.")
    starts = (plan.timestep[0], plan.sigma[0]), (target.timestep[0], target.sigma[0])
    if abs(plan.sigma[-1] - target.sigma[-1]) > LOWEST_SIGMA:
        raise ValueError(f"{plan.solver} ends at σ = {plan.sigma[-1]:g}, its target at {target.sigma[-1]:g}.")
    if abs(starts[0][1] - starts[1][1]) > 1e-4:
        raise ValueError(f"{plan.solver} runs from (t, σ) = {starts[0]}, its target from {starts[1]}.")


@dataclass(frozen=True, eq=False)
class Bench:
    """The model, the test pairs and the readers that measure every solver.

    Attributes:
        pairs: n = prompts · seeds of test pairs; pair i has prompt i modulo their number.
        finer: targets with FINER_STEPS steps of the first pairs, one for each prompt.
        judge: scene reader, or None for a model without one.
        goals: a drawing that fits each prompt, [prompts, 3, 32, 32] in 0 … 1, or None.
        batch: pictures in a network call.
    """

    model: LatentDiffusion
    pairs: Pairs
    finer: Pairs
    judge: Any
    goals: Tensor | None
    batch: int = 16

    @torch.no_grad()
    def run(self, plan: Plan, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Sample latents from the pairs' noise; returns them and the change of x0 in the last step, [n]."""
        last_two: list[Tensor] = []

        def keep(_: int, x0: Tensor) -> None:
            last_two[:] = [*last_two[-1:], x0]

        denoise = self.model.denoiser([p.prompt for p in pairs.prompts], pairs.guidance, pairs.reference)
        latents = sample(plan, denoise, self.model.noise(pairs.seeds), keep)
        change = (last_two[-1] - last_two[0]).square().mean(dim=(1, 2, 3)).sqrt()
        return latents, change

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> Tensor:
        """Decode latents on any device to pictures [B, 3, H, W] in 0 … 1."""
        return self.model.decode(latents.to(self.model.device)).float().clamp(0, 1)

    @torch.no_grad()
    def measure(self, latents: Tensor, first: int, change: Tensor | None = None) -> Cell:
        """Measure latents of the pairs first, first + 1, …"""
        which = range(first, first + len(latents))
        pictures = self.pictures(latents)
        targets = self.pictures(self.pairs.latents[which.start : which.stop])
        cell = {
            "psnr_db": psnr(pictures, targets).clamp(max=100),
            "ssim": ssim(pictures, targets),
            "sharpness": sharpness(pictures) / sharpness(targets),
        }
        if change is not None:
            cell["estimate"] = change
        if which.stop <= len(self.finer):
            finer = self.pictures(self.finer.latents[which.start : which.stop])
            cell["finer_psnr_db"] = psnr(pictures, finer).clamp(max=100)
            cell["finer_ssim"] = ssim(pictures, finer)
        if self.judge is not None:
            features = reader_features(self.judge, pictures)
            cell["features"] = features
            cell["reader_distance"] = reader_distance(features, reader_features(self.judge, targets))
            if "finer_ssim" in cell:
                cell["finer_reader_distance"] = reader_distance(features, reader_features(self.judge, finer))
            named = [self.pairs.prompts[i].attributes for i in which]
            cell["faithfulness"] = faithfulness(reader_labels(self.judge, features), named)
        if self.goals is not None:
            goals = self.goals[[i % len(self.goals) for i in which]].to(pictures.device)
            small = torch.nn.functional.interpolate(pictures, goals.shape[-2:], mode="area")
            cell["goal_distance"] = (small - goals).square().mean(dim=(1, 2, 3)).sqrt()
        return {name: value.cpu() for name, value in cell.items()}

    def cell(self, plan: Plan, path: Path) -> Cell:
        """Measure a plan on all pairs, or read the measurements from `path`."""

        def parts() -> list[Cell]:
            measured = []
            for start in _batches(len(self.pairs), len(self.finer), self.batch):
                latents, change = self.run(plan, self.pairs.take(start))
                measured.append(self.measure(latents, start[0], change))
            return measured

        return _load_or_make(path, parts)

    def final_cell(self, latents: Tensor, path: Path) -> Cell:
        """Measure full-step latents of all pairs, or read the measurements from `path`."""
        return _load_or_make(
            path,
            lambda: [
                self.measure(latents[which.start : which.stop], which.start)
                for which in _batches(len(self.pairs), len(self.finer), self.batch)
            ],
        )


def _batches(count: int, border: int, batch: int) -> list[range]:
    """Split 0 … count - 1 into ranges of at most `batch`; none crosses `border`."""
    ends = [*range(batch, border, batch), border, *range(border + batch, count, batch), count]
    return [range(a, b) for a, b in zip([0, *ends], ends, strict=False) if a < b]


def _load_or_make(path: Path, make: Callable[[], list[Cell]]) -> Cell:
    if not path.exists():
        parts = make()
        cell = {name: torch.cat([p[name] for p in parts if name in p]).contiguous() for name in parts[0]}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(cell, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)
    return load_file(path)


def best_grid(solver: str, bench: Bench, validation: Pairs, work: Path) -> str:
    """Return the grid with a training-free solver's highest mean PSNR over `CHOICE_NFE`; scores are saved."""
    path = work / f"grids/{solver}.json"
    scores: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    target = make_plan(validation.target.solver, validation.target.steps, bench.model.schedule)
    for grid in CANDIDATE_GRIDS:
        if grid in scores:
            continue
        values = []
        for N in CHOICE_NFE:
            plan = make_plan(solver, N, bench.model.schedule, grid=grid)
            check_fair(plan, N, target)
            for which in _batches(len(validation), len(validation), bench.batch):
                part = validation.take(which)
                pictures, targets = bench.pictures(bench.run(plan, part)[0]), bench.pictures(part.latents)
                values.append(psnr(pictures, targets))
        scores[grid] = float(torch.cat(values).mean())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(scores, indent=1))
    return max(scores, key=lambda grid: scores[grid])


def prepare(args: argparse.Namespace, model: LatentDiffusion) -> tuple[Bench, Pairs, Tensor]:
    """Load or make the bench, the validation pairs, and full-step latents of other seeds."""
    prompts_folder = args.prompts or Path(args.model) / "prompts"
    prompts = read_prompts(prompts_folder / "test.jsonl")
    count = args.pairs // SEEDS_PER_PROMPT
    if count < 2 or args.finer_pairs < 2 or args.validation_pairs < 1:
        raise ValueError(
            f"Intervals need two prompts: give at least --pairs {2 * SEEDS_PER_PROMPT}, "
            "--finer-pairs 2 and --validation-pairs 1."
        )
    if count > len(prompts):
        raise ValueError(f"{args.pairs} pairs need {count} prompts; there are {len(prompts)}. Lower --pairs.")

    def pairs(name: str, chosen: Sequence[Any], **options: Any) -> Pairs:
        folder = args.work / "pairs" / name
        tqdm.write(f"Full-step pictures: {name}")
        make_pairs(model, chosen, folder, guidance=(args.guidance,), batch=args.batch, **options)
        return load_pairs(folder)

    test = pairs(f"test-{count}", prompts[:count], count=count * SEEDS_PER_PROMPT, first_seed=1_000_000)
    finer = pairs(
        f"finer-{count}",
        prompts[:count],
        count=min(count, args.finer_pairs),
        first_seed=1_000_000,
        target=Target(steps=FINER_STEPS),
    )
    others = pairs(f"others-{count}", prompts[:count], count=count * SEEDS_PER_PROMPT, first_seed=2_000_000)
    validation = pairs(
        f"validation-{args.validation_pairs}",
        read_prompts(prompts_folder / "validation.jsonl"),
        count=args.validation_pairs,
        first_seed=3_000_000,
    )
    has_judge = (Path(args.model) / "readers" / "judge").is_dir()
    goals_file = prompts_folder / "goals.safetensors"
    goals = load_file(goals_file)["goals"][:count].float() / 255 if goals_file.exists() else None
    judge = load_judge(args.model, args.device) if has_judge else None
    return Bench(model, test, finer, judge, goals, args.batch), validation, others.latents


def evaluate(args: argparse.Namespace, *, grids: bool = True) -> list[dict[str, Any]]:
    """Return the rows of the comparison, see `solver.evaluation.summary.summarize`.

    Args:
        args: of `parser`.
        grids: compare learned solvers with classical rows on their grids too, see `with_its_grid`.
    """
    model = load_diffusion(args.model, args.device)
    own = Path(args.model) / "solver"
    asked = None if args.solvers is None else dict(map(parse_solver, args.solvers))
    folders = {name: Path(folder) for name, _, folder in (entry.partition("=") for entry in args.learned)}
    if own.is_dir() if asked is None else "consistency" in asked:
        folders = {"consistency": own} | folders
    # Check the solvers before the long computations.
    contenders = []
    for name, folder in folders.items():
        solver = learned(name, folder, model, args.guidance)
        contenders += with_its_grid(solver, folder, model, args.guidance) if grids else [solver]
    free = training_free(model, asked)
    bench, validation, others = prepare(args, model)
    for name in free:
        tqdm.write(f"Choosing the grid of {name}")
        grid = best_grid(name, bench, validation, args.work)
        contenders.append(classical(name, grid, model, (asked or {}).get(name, ())))
    target = make_plan(bench.pairs.target.solver, bench.pairs.target.steps, bench.model.schedule)
    cells: dict[tuple[str, str, int], Cell] = {}
    wanted = [(contender, N) for contender in contenders for N in args.nfe if contender.covers(N)]
    for contender, N in (bar := tqdm(wanted, unit="solver")):
        bar.set_postfix_str(f"{contender.name}, {N} evaluations")
        plan = contender.plan(N)
        check_fair(plan, N, target)
        digest = hashlib.sha256(json.dumps(plan.to_dict()).encode()).hexdigest()[:12]
        name = f"{contender.name}-{contender.grid}-{N}-{len(bench.pairs)}-{digest}.safetensors"
        cells[contender.name, contender.grid, N] = bench.cell(plan, args.work / "cells" / name)
    finals = bench.final_cell(
        bench.pairs.latents, args.work / "cells" / f"target-{len(bench.pairs)}.safetensors"
    )
    other = bench.final_cell(others, args.work / "cells" / f"others-{len(bench.pairs)}.safetensors")
    rows = summarize(cells, finals, other, bench.pairs.target, SEEDS_PER_PROMPT)
    return [row | {"validation_pairs": len(validation), "finer_pairs": len(bench.finer)} for row in rows]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="checkpoints/landscapes", help="folder or hub id")
    parser.add_argument("--nfe", type=int, nargs="+", default=NFE, help="numbers of evaluations")
    parser.add_argument(
        "--pairs", type=int, default=320, help=f"test pairs, {SEEDS_PER_PROMPT} of each prompt"
    )
    parser.add_argument(
        "--solvers",
        nargs="*",
        metavar="NAME[@N,N,…]",
        help="solvers to compare, a training-free one optionally only at N evaluations; default: the model's "
        "own (consistency), and all training-free ones",
    )
    parser.add_argument(
        "--learned", nargs="*", default=[], metavar="NAME=FOLDER", help="other solvers that were trained"
    )
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale")
    parser.add_argument("--prompts", type=Path, help="folder of test.jsonl and validation.jsonl")
    parser.add_argument("--validation-pairs", type=int, default=64, help="pairs to choose grids by")
    parser.add_argument(
        "--finer-pairs", type=int, default=80, help=f"pairs with targets of {FINER_STEPS} steps too"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/evaluate"), help="folder for intermediate results"
    )
    parser.add_argument("--batch", type=int, default=16, help="pictures in a network call")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help=" ")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--plots", type=Path, help="draw the plots into this folder")
    return parser


def main() -> None:
    args = parser().parse_args()
    try:
        rows = evaluate(args)
    except (OSError, ValueError) as error:
        parser().error(str(error))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if args.plots:
        from solver.evaluation.report import draw

        draw(rows, args.plots)
    for row in rows:
        print("{solver:>14} {grid:>10} {nfe:>3}  {psnr_db:.2f} dB  {ssim:.4f}".format_map(row))
