"""Compare solvers by the distance of previews to full-step pictures: `python -m solver evaluate`.

All solvers start from the same noise at the same first noise level, end at the same level, and use the same
number of network evaluations. At each of them every training-free solver uses the grid that did best on
validation pairs; a learned solver is compared at the numbers of steps that it was trained for. An interrupted
run continues when it is started again. `solver.evaluation.report` draws the plots.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from solver.consistency import LearnedSolver
from solver.diffusion import LatentDiffusion, load_diffusion
from solver.evaluation.measures import faithfulness, load_judge, reader_distance, reader_labels, sharpness
from solver.evaluation.results import write_json
from solver.evaluation.summary import (
    BASELINE,
    CLASSICAL_ROWS,
    GRID_ALONE,
    LEARNED_GRID,
    REWARD,
    Measured,
    summarize,
)
from solver.grids import GRIDS
from solver.multistep import classical_plan, grid_of
from solver.plan import Plan
from solver.readers import reader_features
from solver.sampling import sample
from solver.schedule import NoiseSchedule
from solver.similarity import psnr, ssim
from solver.solvers import make_plan
from solver.training.fit import GRID_STAGE
from solver.training.pairs import REFINEMENT, Pairs, Target, load_pairs, make_pairs, read_prompts
from solver.training.rewards import Reward, make_reward

TRAINING_FREE = ("ddim", "ab4", "deis", "unipc", "unipc3", "dpm2m", "dpm++2m", "dpm++3m")
# Not `leading`: its first noise level depends on the number of steps, so it differs from the target's.
CANDIDATE_GRIDS = tuple(grid for grid in GRIDS if grid != "leading")
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
        name: as in the results.
        grid: for a number of evaluations, as in the results.
        plan: makes its plan for a number of evaluations.
        covers: whether it is compared at a number of evaluations.
    """

    name: str
    grid: Callable[[int], str]
    plan: Callable[[int], Plan]
    covers: Callable[[int], bool] = lambda N: True


def classical(
    solver: str, grids: Mapping[int, str], schedule: NoiseSchedule, *, to_zero: bool = True
) -> Contender:
    """Return a training-free solver, compared at the numbers of evaluations for which a grid is given."""
    return Contender(
        solver,
        grids.__getitem__,
        lambda N: make_plan(solver, N, schedule, grid=grids[N], to_zero=to_zero),
        grids.__contains__,
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
                make_plan(name, NFE[0], model.schedule)
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
        lambda N: LEARNED_GRID,
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
        rewards: further similarities to the target to measure, by name.
        goals: a drawing that fits each prompt, [prompts, 3, 32, 32] in 0 … 1, or None.
        batch: pictures in a network call.
    """

    model: LatentDiffusion
    pairs: Pairs
    finer: Pairs
    judge: Any
    goals: Tensor | None
    batch: int = 16
    rewards: Mapping[str, Reward] = field(default_factory=dict)

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
        for name, reward in self.rewards.items():
            cell[f"{REWARD}{name}"] = reward(pictures, targets)
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
            for start in batches(len(self.pairs), len(self.finer), self.batch):
                latents, change = self.run(plan, self.pairs.take(start))
                measured.append(self.measure(latents, start[0], change))
            return measured

        return load_or_make(path, parts)

    def final_cell(self, latents: Tensor, path: Path) -> Cell:
        """Measure full-step latents of all pairs, or read the measurements from `path`."""
        return load_or_make(
            path,
            lambda: [
                self.measure(latents[which.start : which.stop], which.start)
                for which in batches(len(self.pairs), len(self.finer), self.batch)
            ],
        )


def batches(count: int, border: int, batch: int) -> list[range]:
    """Split 0 … count - 1 into ranges of at most `batch`; none crosses `border`."""
    ends = [*range(batch, border, batch), border, *range(border + batch, count, batch), count]
    return [range(a, b) for a, b in zip([0, *ends], ends, strict=False) if a < b]


def load_or_make(path: Path, make: Callable[[], list[Cell]]) -> Cell:
    if not path.exists():
        parts = make()
        cell = {name: torch.cat([p[name] for p in parts if name in p]).contiguous() for name in parts[0]}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(cell, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)
    return load_file(path)


def best_grid(solver: str, N: int, bench: Bench, validation: Pairs, work: Path) -> str:
    """Return the grid with a training-free solver's highest mean PSNR at N evaluations; scores are saved."""
    path = work / f"grids/{solver}-{N}-{len(validation)}.json"
    scores: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    schedule, target = bench.model.schedule, validation.target
    for grid in CANDIDATE_GRIDS:
        if grid in scores:
            continue
        values = []
        plan = make_plan(solver, N, schedule, grid=grid, to_zero=target.to_zero)
        check_fair(plan, N, target.plan(schedule))
        for which in batches(len(validation), len(validation), bench.batch):
            part = validation.take(which)
            pictures, targets = bench.pictures(bench.run(plan, part)[0]), bench.pictures(part.latents)
            values.append(psnr(pictures, targets))
        scores[grid] = float(torch.cat(values).mean())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(scores, indent=1))
    return max(CANDIDATE_GRIDS, key=lambda grid: scores[grid])


def training_free_contenders(
    solvers: Mapping[str, Sequence[int]], bench: Bench, validation: Pairs, work: Path
) -> list[Contender]:
    """Return training-free solvers on the grids that do best on the validation pairs.

    Args:
        solvers: name → the numbers of evaluations to compare it at.
    """
    contenders = []
    for name, counts in solvers.items():
        tqdm.write(f"Choosing the grids of {name}", file=sys.stderr)
        grids = {N: best_grid(name, N, bench, validation, work) for N in counts}
        to_zero = validation.target.to_zero
        contenders.append(classical(name, grids, bench.model.schedule, to_zero=to_zero))
    return contenders


def prepare(
    args: argparse.Namespace, model: LatentDiffusion, target: Target = REFINEMENT
) -> tuple[Bench, Pairs, Tensor]:
    """Load or make the bench, the validation pairs, and full-step latents of other seeds.

    Args:
        target: of all pairs; `finer` ones have FINER_STEPS instead of its steps.
    """
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
        tqdm.write(f"Full-step pictures: {name}", file=sys.stderr)
        options = {"target": target, "guidance": (args.guidance,), "batch": args.batch} | options
        make_pairs(model, chosen, folder, **options)
        return load_pairs(folder)

    test = pairs(f"test-{count}", prompts[:count], count=count * SEEDS_PER_PROMPT, first_seed=1_000_000)
    finer = pairs(
        f"finer-{count}",
        prompts[:count],
        count=min(count, args.finer_pairs),
        first_seed=1_000_000,
        target=replace(target, steps=FINER_STEPS),
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
    readers = Path(args.model) / "readers"
    rewards = {name: make_reward(name, readers=readers, device=args.device) for name in args.rewards}
    return Bench(model, test, finer, judge, goals, args.batch, rewards), validation, others.latents


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
    only = {name: (asked or {}).get(name) or args.nfe for name in free}
    solvers = {name: [N for N in args.nfe if N in counts] for name, counts in only.items()}
    contenders += training_free_contenders(solvers, bench, validation, args.work)
    rows = summarize(measure(contenders, args.nfe, bench, others, args.work))
    about = {"validation_pairs": len(validation), "finer_pairs": len(bench.finer), "grids_at": "each"}
    return [row | about for row in rows]


def measure(
    contenders: Sequence[Contender], counts: Sequence[int], bench: Bench, others: Tensor, work: Path
) -> Measured:
    """Measure contenders at these numbers of evaluations, or read what was measured before.

    Args:
        others: full-step latents of other seeds, as `prepare` makes them.
        work: folder for the measurements.
    """
    target = bench.pairs.target.plan(bench.model.schedule)
    size = str(len(bench.pairs))
    if bench.rewards:
        size += f"-{hashlib.sha256(','.join(bench.rewards).encode()).hexdigest()[:8]}"
    cells: dict[tuple[str, str, int], Cell] = {}
    wanted = [(contender, N) for contender in contenders for N in counts if contender.covers(N)]
    for contender, N in (bar := tqdm(wanted, unit="solver")):
        bar.set_postfix_str(f"{contender.name}, {N} evaluations")
        plan, grid = contender.plan(N), contender.grid(N)
        check_fair(plan, N, target)
        digest = hashlib.sha256(json.dumps(plan.to_dict()).encode()).hexdigest()[:12]
        path = work / "cells" / f"{contender.name}-{grid}-{N}-{size}-{digest}.safetensors"
        cells[contender.name, grid, N] = bench.cell(plan, path)
    finals = bench.final_cell(bench.pairs.latents, work / "cells" / f"target-{size}.safetensors")
    other = bench.final_cell(others, work / "cells" / f"others-{size}.safetensors")
    return Measured(cells, finals, other, bench.pairs.target, SEEDS_PER_PROMPT)


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
    parser.add_argument(
        "--rewards",
        nargs="*",
        default=[],
        metavar="REWARD",
        help="further similarities, such as dino",
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
    parser.add_argument("--json", type=Path, help="write the rows to this file, compressed for .json.gz")
    parser.add_argument("--plots", type=Path, help="draw the plots into this folder")
    return parser


def main() -> None:
    args = parser().parse_args()
    try:
        rows = evaluate(args)
    except (OSError, ValueError) as error:
        parser().error(str(error))
    if args.json:
        write_json(args.json, rows)
    if args.plots:
        from solver.evaluation.report import draw

        draw(rows, args.plots)
    for row in rows:
        print("{solver:>14} {grid:>10} {nfe:>3}  {psnr_db:.2f} dB  {ssim:.4f}".format_map(row))
