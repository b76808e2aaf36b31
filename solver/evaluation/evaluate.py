"""How near previews come to the full-step picture: `python -m solver evaluate`.

One run compares solvers on the same prompts and noises, from the same first noise level to the same end, with
equal numbers of network evaluations, every training-free solver on the time grid that suits it best on
validation pairs, learned ones at the numbers that they were trained for. It can be cut off at any moment and
goes on where it was. See `solver.evaluation.report` for plots.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from solver.consistency import LearnedSolver
from solver.diffusion import LatentDiffusion, load_diffusion
from solver.evaluation.measures import faithfulness, load_judge, reader_distance, reader_labels, sharpness
from solver.evaluation.summary import summarize
from solver.grids import GRIDS
from solver.plan import Plan
from solver.readers import reader_features
from solver.sampling import sample
from solver.similarity import psnr, ssim
from solver.solvers import make_plan
from solver.training.pairs import Pairs, Target, load_pairs, make_pairs, read_prompts

TRAINING_FREE = ("ddim", "ab4", "deis", "unipc", "dpm2m", "dpm++2m", "dpm++3m")
# `leading` starts at another noise level for each number of steps, so it shares no noise with the target.
CANDIDATE_GRIDS = tuple(grid for grid in GRIDS if grid != "leading")
CHOICE_NFE = (5, 8)
SEEDS_PER_PROMPT = 4
"""Previews of one prompt, among which somebody decides."""
NFE = (4, 5, 6, 8, 10, 12, 15, 20)
FINER_STEPS = 200
LOWEST_SIGMA = 0.03
"""At most so much noise may be left at the end of a plan; Stable Diffusion's lowest level has 0.0292."""

Cell = dict[str, Tensor]
"""What was measured of one solver at one number of evaluations: a number per pair [n] for each measure, and
`features` [n, attributes, width]."""


@dataclass(frozen=True, eq=False)
class Contender:
    """A solver in the comparison: its name in the results, its plan for a number of evaluations, and whether
    it is compared there."""

    name: str
    grid: str
    plan: Callable[[int], Plan]
    covers: Callable[[int], bool] = lambda N: True


def classical(solver: str, grid: str, model: LatentDiffusion, only: Sequence[int] = ()) -> Contender:
    """A training-free solver on a time grid, compared at all numbers of evaluations or at some."""
    return Contender(
        solver,
        grid,
        lambda N: make_plan(solver, N, model.schedule, grid=grid),
        lambda N: not only or N in only,
    )


def parse_solver(text: str) -> tuple[str, tuple[int, ...]]:
    """`NAME`, or `NAME@N,N,…` for a solver that is compared at these numbers of evaluations alone.

    Raises:
        ValueError: numbers that are none.
    """
    name, at, numbers = text.partition("@")
    if at and not all(number.isdecimal() for number in numbers.split(",")):
        raise ValueError(f"Write {name}@5,8 to compare {name} at 5 and 8 evaluations, not {text!r}.")
    return name, tuple(map(int, numbers.split(","))) if at else ()


def training_free(model: LatentDiffusion, solvers: Iterable[str] | None) -> list[str]:
    """The training-free solvers among those that were asked for; by default all that have a meaning for the
    model, since a flow does not know some.

    Raises:
        ValueError: one that was asked for has none.
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
    """What `solver.training.train` left in a folder, compared where it learned something."""
    solver = LearnedSolver.load(folder)
    return Contender(
        name,
        "learned",
        lambda N: make_plan("consistency", N, model.schedule, learned=solver, guidance=guidance),
        solver.covers,
    )


def check_fair(plan: Plan, N: int, target: Plan) -> None:
    """Refuse a plan that does not share the target's noise and end, or takes other than N evaluations.

    The published solver ends at its schedule's lowest level, and is judged by what is shown there.

    Raises:
        ValueError: says what differs.
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
    """What every contender is measured with.

    Attributes:
        pairs: n = prompts · seeds of test pairs; pair i has prompt i modulo their number.
        finer: targets with many more steps for the first pairs, one for each prompt.
        judge: scene reader, or None for a model without one.
        goals: pictures that the prompts' authors may have had in mind [prompts, 3, 32, 32] in 0 … 1, or None.
    """

    model: LatentDiffusion
    pairs: Pairs
    finer: Pairs
    judge: Any
    goals: Tensor | None
    batch: int = 16

    @torch.no_grad()
    def run(self, plan: Plan, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Latents that a plan makes of the pairs' noise, and how far each still moved in its last step."""
        expected: list[Tensor] = []

        def keep(_: int, x0: Tensor) -> None:
            expected[:] = [*expected[-1:], x0]

        denoise = self.model.denoiser([p.prompt for p in pairs.prompts], pairs.guidance, pairs.reference)
        latents = sample(plan, denoise, self.model.noise(pairs.seeds), keep)
        moved = (expected[-1] - expected[0]).square().mean(dim=(1, 2, 3)).sqrt()
        return latents, moved

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> Tensor:
        """The pictures [B, 3, H, W], 0 … 1, behind latents on any device."""
        return self.model.decode(latents.to(self.model.device)).float().clamp(0, 1)

    @torch.no_grad()
    def measure(self, latents: Tensor, first: int, moved: Tensor | None = None) -> Cell:
        """Everything about the pictures of pairs first, first + 1, …"""
        which = range(first, first + len(latents))
        pictures = self.pictures(latents)
        targets = self.pictures(self.pairs.latents[which.start : which.stop])
        cell = {
            "psnr_db": psnr(pictures, targets).clamp(max=100),
            "ssim": ssim(pictures, targets),
            "sharpness": sharpness(pictures) / sharpness(targets),
        }
        if moved is not None:
            cell["estimate"] = moved
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
        """Everything about a plan on all pairs; kept in a file."""

        def parts() -> list[Cell]:
            measured = []
            for start in _batches(len(self.pairs), len(self.finer), self.batch):
                latents, moved = self.run(plan, self.pairs.take(start))
                measured.append(self.measure(latents, start[0], moved))
            return measured

        return _kept(path, parts)

    def final_cell(self, latents: Tensor, path: Path) -> Cell:
        """The same about pictures that are there already: the targets, or those of other seeds."""
        return _kept(
            path,
            lambda: [
                self.measure(latents[which.start : which.stop], which.start)
                for which in _batches(len(self.pairs), len(self.finer), self.batch)
            ],
        )


def _batches(count: int, border: int, batch: int) -> list[range]:
    """0 … count - 1 in runs of at most `batch`, none of which crosses `border`."""
    ends = [*range(batch, border, batch), border, *range(border + batch, count, batch), count]
    return [range(a, b) for a, b in zip([0, *ends], ends, strict=False) if a < b]


def _kept(path: Path, make: Callable[[], list[Cell]]) -> Cell:
    if not path.exists():
        parts = make()
        cell = {name: torch.cat([p[name] for p in parts if name in p]).contiguous() for name in parts[0]}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(cell, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)
    return load_file(path)


def best_grid(solver: str, bench: Bench, validation: Pairs, work: Path) -> str:
    """The grid on which a training-free solver has the highest mean PSNR over `CHOICE_NFE`; kept."""
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
    """The bench, validation pairs, and full-step latents of other seeds, made where they are missing."""
    prompts_folder = args.prompts or Path(args.model) / "prompts"
    prompts = read_prompts(prompts_folder / "test.jsonl")
    count = args.pairs // SEEDS_PER_PROMPT
    if count < 2 or args.finer_pairs < 2 or args.validation_pairs < 1:
        raise ValueError(
            f"Intervals over prompts need two of them: at least --pairs {2 * SEEDS_PER_PROMPT}, "
            "--finer-pairs 2 and --validation-pairs 1."
        )
    if count > len(prompts):
        raise ValueError(f"{args.pairs} pairs need {count} prompts; there are {len(prompts)}.")

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
    judged = (Path(args.model) / "readers" / "judge").is_dir()
    goals_file = prompts_folder / "goals.safetensors"
    goals = load_file(goals_file)["goals"][:count].float() / 255 if goals_file.exists() else None
    judge = load_judge(args.model, args.device) if judged else None
    return Bench(model, test, finer, judge, goals, args.batch), validation, others.latents


def evaluate(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of the comparison; see `solver.evaluation.summary` for what is in them."""
    model = load_diffusion(args.model, args.device)
    own = Path(args.model) / "solver"
    asked = None if args.solvers is None else dict(map(parse_solver, args.solvers))
    folders = {name: Path(folder) for name, _, folder in (entry.partition("=") for entry in args.learned)}
    if own.is_dir() if asked is None else "consistency" in asked:
        folders = {"consistency": own} | folders
    # First what may be wrong, then what takes long.
    contenders = [learned(name, folder, model, args.guidance) for name, folder in folders.items()]
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
    """The command's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="checkpoints/landscapes", help="folder or hub id")
    parser.add_argument("--nfe", type=int, nargs="+", default=NFE, help="numbers of evaluations")
    parser.add_argument("--pairs", type=int, default=320, help=f"{SEEDS_PER_PROMPT} seeds to each prompt")
    parser.add_argument(
        "--solvers",
        nargs="*",
        metavar="NAME[@N,N,…]",
        help="to compare, a training-free one perhaps at some numbers of evaluations alone; by default the "
        "model's own, consistency, and all training-free ones",
    )
    parser.add_argument(
        "--learned", nargs="*", default=[], metavar="NAME=FOLDER", help="others from solver.training.train"
    )
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale")
    parser.add_argument("--prompts", type=Path, help="folder of test.jsonl and validation.jsonl")
    parser.add_argument("--validation-pairs", type=int, default=64, help="to choose grids by")
    parser.add_argument(
        "--finer-pairs", type=int, default=80, help=f"with targets of {FINER_STEPS} steps too"
    )
    parser.add_argument("--work", type=Path, default=Path("build/evaluate"), help="keeps what was computed")
    parser.add_argument("--batch", type=int, default=16, help="pictures at once")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help=" ")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--plots", type=Path, help="draw them into this folder")
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


if __name__ == "__main__":
    main()
