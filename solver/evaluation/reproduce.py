"""Repeat an experiment of the paper (arXiv 2512.13592): `python -m solver reproduce landscapes --out DIR`.

Trains the paper's policy by PPO with the settings of its authors' code, and its twin with continuous weights
by regression through the frozen network ("Ours-Distill"), both at about the same number of network
evaluations. Compares both with training-free solvers, each on its best time grid, and answers whether PPO
beats regression. Targets are made as the authors' code makes them. `results.json` and `table.md` in DIR have
the results. An interrupted run continues when it is started again; the options of the group "size" make it
smaller.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from solver.diffusion import load_diffusion
from solver.evaluation.evaluate import (
    SEEDS_PER_PROMPT,
    learned,
    measure,
    prepare,
    training_free_contenders,
)
from solver.evaluation.summary import REWARD, Measured, paired_difference, summarize
from solver.training import train
from solver.training.pairs import Target, make_pairs, read_prompts


@dataclass(frozen=True)
class Experiment:
    """One of the paper's experiments; numbers are those of its authors' code.

    Attributes:
        model: folder or hub id.
        target: how the full-step pictures are made.
        reward: of both trainings.
        measures: further similarities to the full-step picture that are measured.
        order: m of the policy.
        steps: numbers of steps, one of which every iteration draws.
        nfe: numbers of evaluations that are compared.
        guidance: scale of everything.
        iterations: of each training.
        group, batch: rollouts of a pair, and pairs in an iteration of PPO.
        epochs, minibatches: passes over the rollouts of an iteration, and the parts of a pass.
        learning_rate: of PPO.
        advantage_scale: factor on the normalised advantages.
        solvers: training-free solvers to compare with.
    """

    model: str
    target: Target
    reward: str
    measures: Sequence[str]
    order: int
    steps: Sequence[int]
    nfe: Sequence[int]
    guidance: float
    iterations: int
    group: int
    batch: int
    epochs: int
    minibatches: int
    learning_rate: float
    advantage_scale: float
    solvers: Sequence[str]


BINS, HIDDEN = 11, 256
ENTROPY, GRADIENT_NORM = 0.01, 1.0
"""Of the authors' loss, whose entropies are divided by log(bins) and averaged over decisions."""

TEXT_TO_IMAGE: dict[str, Any] = {
    # DPM-Solver-2M on diffusers' linspace grid with final_sigmas_type="sigma_min".
    "target": Target("dpm2m", 40, "linspace", to_zero=False),
    "order": 4,
    "steps": tuple(range(2, 16)),
    "nfe": (5, 8, 12),
    "guidance": 3.0,
    "iterations": 3000,
    "group": 80,
    "batch": 1,
    "epochs": 1,
    "minibatches": 1,
    "learning_rate": 1e-4,
    "advantage_scale": 10.0,
    "solvers": ("ddim", "ab4", "deis", "unipc", "dpm2m", "dpm++2m"),
}
EXPERIMENTS = {
    "landscapes": Experiment("checkpoints/landscapes", reward="psnr", measures=(), **TEXT_TO_IMAGE),
    "sd15": Experiment(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        reward="depth",
        measures=("clip:openai/clip-vit-large-patch14", "dino", "depth"),
        **TEXT_TO_IMAGE,
    ),
    "kontext": Experiment(
        "black-forest-labs/FLUX.1-Kontext-dev",
        Target("euler", 28, "trailing"),
        reward="dino",
        measures=("dino",),
        order=2,
        steps=(2, 3, 4, 5),
        nfe=(3, 4, 5),
        guidance=2.5,
        iterations=1000,
        group=10,
        batch=8,
        epochs=4,
        minibatches=1,
        learning_rate=1e-3,
        advantage_scale=1.0,
        solvers=("euler", "ab4", "unipc", "dpm++2m"),
    ),
}

PAPER_COLUMNS = ("FID", "CLIP", "Seg", "Depth", "Incep", "PSNR", "DINO")
PAPER: Mapping[tuple[str, int], Sequence[float]] = {
    ("ddim", 5): (52.59, 87.8, 41.9, 14.2, 74.1, 16.4, 73.2),
    ("ddim", 8): (29.46, 91.1, 54.2, 16.2, 81.5, 17.9, 79.9),
    ("unipc", 5): (23.15, 93.2, 67.2, 18.7, 85.0, 19.6, 85.5),
    ("unipc", 8): (19.68, 95.5, 75.0, 21.4, 90.0, 21.6, 90.5),
    ("dpm2m", 5): (25.87, 93.1, 66.6, 19.1, 85.6, 20.6, 85.5),
    ("dpm2m", 8): (19.53, 95.9, 76.3, 21.8, 90.8, 23.2, 90.6),
    ("dpm2m", 12): (18.95, 97.7, 84.4, 25.9, 94.7, 26.8, 94.5),
    ("regression", 5): (22.91, 92.9, 66.7, 18.5, 84.8, 19.3, 85.1),
    ("regression", 8): (19.65, 95.1, 74.0, 20.8, 89.3, 21.1, 89.5),
    ("ppo", 5): (20.39, 94.2, 69.4, 19.3, 87.1, 20.8, 86.5),
    ("ppo", 8): (18.82, 96.4, 78.5, 22.2, 91.6, 23.4, 91.2),
    ("ppo", 12): (18.53, 97.9, 85.6, 26.7, 95.1, 26.7, 95.0),
}
"""The paper's table for Stable Diffusion 1.5: solver and steps → its columns."""

METHODS = ("ppo", "regression")
ENOUGH_ROLLOUTS, ENOUGH_PROMPTS = 0.25, 50
"""Share of the authors' rollouts, and test prompts, from which on a run answers the paper's question."""
GRADIENT_COST = 3
"""Evaluations that one costs with its gradient."""


def entropy_weight(experiment: Experiment) -> float:
    """Return the weight of our summed entropies that equals the authors' relative to the advantages."""
    return ENTROPY / (experiment.advantage_scale * (experiment.order - 1) * math.log(BINS))


def training_options(method: str, experiment: Experiment, args: argparse.Namespace) -> list[str]:
    """Return the options of `solver.training.train` for one of METHODS."""
    words: list[Any] = [
        "--start",
        "euler",
        "--sees",
        "paper",
        "--learns",
        "rows",
        "--order",
        experiment.order,
    ]
    words += ["--hidden", HIDDEN, "--steps", *args.steps, "--iterations", args.iterations]
    words += ["--reward", args.reward, "--seed", args.seed, "--validate-every", args.validate_every]
    if method == "ppo":
        words += ["--method", "ppo", "--bins", BINS, "--batch", experiment.batch, "--group", args.group]
        words += ["--epochs", experiment.epochs, "--minibatches", experiment.minibatches]
        words += ["--entropy", entropy_weight(experiment)]
        words += ["--gradient-norm", GRADIENT_NORM / experiment.advantage_scale]
        words += ["--learning-rate", args.learning_rate]
    else:
        batch = max(1, round(experiment.batch * args.group / GRADIENT_COST))
        words += ["--method", "distill", "--bins", 0, "--batch", batch]
        words += ["--learning-rate", args.regression_learning_rate]
    return list(map(str, words))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Make pairs, train, compare, and return what `results.json` records."""
    experiment, started = EXPERIMENTS[args.experiment], time.monotonic()
    model = load_diffusion(args.model, args.device)
    bench, validation, others = prepare(args, model, experiment.target)
    train_pairs, train_file = args.out / "pairs" / f"train-{args.train_pairs}", args.prompts / "train.jsonl"
    tqdm.write("Full-step pictures: train", file=sys.stderr)
    make_pairs(
        model,
        read_prompts(train_file if train_file.exists() else train_file.with_suffix(".txt")),
        train_pairs,
        count=args.train_pairs,
        guidance=(args.guidance,),
        target=experiment.target,
        batch=args.batch,
    )
    contenders, trainings = [], {}
    for method in METHODS:
        tqdm.write(f"Training by {method}", file=sys.stderr)
        folder = args.out / method
        words = training_options(method, experiment, args)
        words += ["--model", str(args.model), "--device", args.device, "--pairs", str(train_pairs)]
        words += ["--validation", str(args.work / "pairs" / f"validation-{args.validation_pairs}")]
        trainings[method] = train.run(train.parser().parse_args([*words, "--out", str(folder)]))
        contenders.append(learned(method, folder, model, args.guidance))
    solvers = {name: args.nfe for name in experiment.solvers}
    contenders += training_free_contenders(solvers, bench, validation, args.work)
    measured = measure(contenders, args.nfe, bench, others, args.work)
    sizes = {
        "train_pairs": args.train_pairs,
        "validation_pairs": len(validation),
        "test_pairs": len(bench.pairs),
        "iterations": args.iterations,
        "rollouts_in_an_iteration": experiment.batch * args.group,
        "steps": list(args.steps),
        "papers": {"train_pairs": 2000, **{k: asdict(experiment)[k] for k in ("iterations", "steps")}}
        | {"rollouts_in_an_iteration": experiment.batch * experiment.group},
    }
    return {
        "experiment": args.experiment,
        "model": str(args.model),
        "reward": args.reward,
        "target": asdict(experiment.target),
        "sizes": sizes,
        "trainings": {
            name: {key: t[key] for key in ("seconds", "validation_before", "reward")}
            for name, t in trainings.items()
        },
        "seconds": round(time.monotonic() - started, 1),
        "rows": summarize(measured),
        "ppo_minus_regression": differences(measured, args.nfe),
    }


def differences(measured: Measured, nfe: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return how much better PPO is than regression, by number of evaluations and by measure."""
    return {str(N): paired_difference(measured, ("ppo", N), ("regression", N)) for N in nfe}


def answer(results: Mapping[str, Any], measure: str = "psnr_db") -> str:
    """Return a sentence on whether PPO beats regression here, from the differences in a measure."""
    parts, signs = [], set()
    for N, row in results["ppo_minus_regression"].items():
        low, high = row[f"{measure}_ci"]
        signs.add(1 if low > 0 else -1 if high < 0 else 0)
        parts.append(f"{row[measure]:+.2f} [{low:+.2f}, {high:+.2f}] at {N}")
    verdict = {
        frozenset({1}): "PPO beats regression here, as in the paper",
        frozenset({-1}): "regression beats PPO here, unlike in the paper",
        frozenset({0}): "PPO and regression cannot be told apart here",
    }.get(frozenset(signs), "PPO and regression differ in both directions, or at some numbers of steps only")
    unit = "dB of PSNR" if measure == "psnr_db" else measure
    verdict = verdict[0].upper() + verdict[1:]
    return f"{verdict}: PPO minus regression in {unit} is {', '.join(parts)} evaluations."


def caution(sizes: Mapping[str, Any]) -> str:
    """Return a sentence that begins the answer of a run too small to judge by; "" for a larger one."""
    rollouts = sizes["iterations"] * sizes["rollouts_in_an_iteration"]
    share = rollouts / (sizes["papers"]["iterations"] * sizes["papers"]["rollouts_in_an_iteration"])
    prompts = sizes["test_pairs"] // SEEDS_PER_PROMPT
    if share >= ENOUGH_ROLLOUTS and prompts >= ENOUGH_PROMPTS:
        return ""
    return (
        f"With {share:.1%} of the authors' rollouts and {prompts} test prompts this run is "
        "too small to judge the method. What it measured: "
    )


def table(results: Mapping[str, Any]) -> str:
    """Return a Markdown page: sizes, the answer, and our figures beside the paper's."""
    rows, sizes = results["rows"][:-1], results["sizes"]
    measures = {"psnr_db": ("PSNR, dB", 2), "ssim": ("SSIM", 4), "reader_distance": ("reader distance", 4)}
    measures |= {name: (name.removeprefix(REWARD), 4) for name in rows[0] if name.startswith(REWARD)}
    measures = {
        name: column
        for name, column in (measures | {"kid": ("KID", 4)}).items()
        if name in rows[0] and not name.endswith("_ci")
    }
    titles = [title for title, _ in measures.values()]
    beside = PAPER_COLUMNS if results["experiment"] != "kontext" else ()
    lines = [
        "| evaluations | solver | time grid | "
        + " | ".join([*titles, *(f"paper: {c}" for c in beside)])
        + " |",
        "|" + "---|" * (3 + len(titles) + len(beside)),
    ]
    for row in sorted(rows, key=lambda row: (row["nfe"], row["psnr_db"])):
        values = []
        for name, (_, digits) in measures.items():
            low, high = row[f"{name}_ci"]
            values.append(f"{row[name]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
        theirs = PAPER.get((row["solver"], row["nfe"]), [""] * len(beside)) if beside else ()
        cells = [row["nfe"], row["solver"], row["grid"], *values, *theirs]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    papers, before = sizes["papers"], results["trainings"]
    return "\n".join(
        [
            f"{caution(sizes)}{answer(results)}",
            "",
            f"Trained on {sizes['train_pairs']} pairs (the authors' code: {papers['train_pairs']}) for "
            f"{sizes['iterations']} iterations ({papers['iterations']}) of "
            f"{sizes['rollouts_in_an_iteration']} rollouts ({papers['rollouts_in_an_iteration']}), with "
            f"{', '.join(map(str, sizes['steps']))} steps; measured on {sizes['test_pairs']} pairs. The "
            f"reward `{results['reward']}` on {sizes['validation_pairs']} validation pairs went from "
            + " and ".join(
                f"{before[m]['validation_before']:.2f} to {before[m]['reward']:.2f} by {m} in "
                f"{before[m]['seconds'] / 60:.0f} min"
                for m in METHODS
            )
            + ".",
            "",
            *lines,
            "",
        ]
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options; those that are None take the experiment's value."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=EXPERIMENTS, help="which of the paper's experiments")
    parser.add_argument("--out", type=Path, required=True, help="folder for pairs, solvers and results")
    parser.add_argument("--model", help="folder or hub id; default: the experiment's")
    parser.add_argument(
        "--prompts", type=Path, help="folder of train.txt or .jsonl, validation.jsonl and test.jsonl"
    )
    parser.add_argument("--reward", help="of both trainings; default: the experiment's")
    parser.add_argument("--rewards", nargs="*", metavar="REWARD", help="further similarities to measure")
    parser.add_argument("--learning-rate", type=float, help="of PPO; default: the experiment's")
    parser.add_argument("--regression-learning-rate", type=float, default=1e-3, help="(default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help=" ")
    parser.add_argument("--seed", type=int, default=0, help="of both trainings")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    size = parser.add_argument_group("size", "smaller than the experiment's for a quick look")
    size.add_argument("--train-pairs", type=int, default=2000, help="(default: %(default)s)")
    size.add_argument("--pairs", type=int, default=320, help="to measure on (default: %(default)s)")
    size.add_argument("--validation-pairs", type=int, default=64, help="(default: %(default)s)")
    size.add_argument("--finer-pairs", type=int, default=2, help="with finer targets too (default: 2)")
    size.add_argument("--iterations", type=int, help=" ")
    size.add_argument("--steps", type=int, nargs="+", help="numbers of steps to train for")
    size.add_argument("--nfe", type=int, nargs="+", help="numbers of evaluations to compare")
    size.add_argument("--group", type=int, help="rollouts of a pair in an iteration")
    size.add_argument("--validate-every", type=int, default=100, help="iterations (default: %(default)s)")
    size.add_argument("--batch", type=int, default=16, help="pictures in a network call (default: 16)")
    return parser


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what was left to the experiment."""
    experiment = EXPERIMENTS[args.experiment]
    for name in ("model", "reward", "learning_rate", "iterations", "steps", "nfe", "group"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(experiment, name))
    args.rewards = list(experiment.measures) if args.rewards is None else args.rewards
    args.guidance, args.work = experiment.guidance, args.out / "evaluate"
    args.prompts = args.prompts or Path(args.model) / "prompts"
    if not args.prompts.is_dir():
        raise ValueError(
            f"There is no folder {args.prompts}. Give one with train.txt, validation.jsonl and test.jsonl by "
            "--prompts; for a model that edits, each line of train.jsonl and the others names an image too."
        )
    if outside := set(args.nfe) - set(range(min(args.steps), max(args.steps) + 1)):
        raise ValueError(f"--nfe {sorted(outside)} are not within the --steps that are trained for.")
    return args


def main() -> None:
    args = parser().parse_args()
    try:
        results = run(complete(args))
    except (OSError, ValueError) as error:
        parser().error(str(error))
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (args.out / "table.md").write_text(table(results), encoding="utf-8")
    print(json.dumps(results) if args.json else table(results))
