"""Train and compare variants of the method: `python -m solver ablate --pairs DIR --validation DIR`.

Trains every variant in VARIANTS on the same pairs for the same number of iterations, and compares them with
all training-free solvers in one run of `solver.evaluation.evaluate`. An interrupted run continues when it is
started again.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from solver.evaluation import evaluate
from solver.evaluation.results import write_json
from solver.training import train

PAPER = "--start ab --learns rows --sees step --order"
ALL = "--order 4 --learns rows grid times"
VARIANTS = {
    # What the paper learns, in our parametrisation: only rows, on ε, from (t, t_next), summing to one, and by
    # gradient unless the name says PPO. `python -m solver reproduce` has the paper's own policy.
    "ε rows, order 2": f"{PAPER} 2",
    "ε rows, order 3": f"{PAPER} 3",
    "ε rows, order 4": f"{PAPER} 4",
    "ε rows, order 4, by PPO": f"{PAPER} 4 --method ppo",
    "ε rows, order 4, by PPO on bins": f"{PAPER} 4 --method ppo --bins 11",
    # Extensions, one at a time.
    "x0 rows, order 2": "--order 2 --learns rows --sees step",
    "x0 rows, order 3": "--order 3 --learns rows --sees step",
    "x0 rows, order 4": "--order 4 --learns rows --sees step",
    "+ sees N and guidance": "--order 4 --learns rows",
    "+ all outputs": "--order 20 --learns rows",
    "+ grid": "--order 4 --learns rows grid",
    "+ grid and times": ALL,
    "+ grid and times, rows free": f"{ALL} --free",
    "+ grid and times, all outputs": "--order 20 --learns rows grid times",
    # What other papers learn: the grid (GITS), the grid and the network's times (LD3), and the weights of all
    # outputs too (S4S). BNS also learns the weight of the state, which no variant here does.
    "grid alone": "--learns grid",
    "grid and times alone": "--learns grid times",
    "whole table, grid and times, free": "--order 20 --learns rows grid times --free",
    # Other methods and rewards.
    "all, by PPO": f"{ALL} --method ppo",
    "all, by PPO on bins": f"{ALL} --method ppo --bins 11",
    "all, for SSIM": f"{ALL} --reward '100*ssim'",
    "all, for the reader": f"{ALL} --reward reader",
    "all, for PSNR and the reader": f"{ALL} --reward 'psnr + reader'",
}
"""Name → options of `solver.training.train`."""


def folder_of(name: str) -> str:
    """Return the name of a variant's folder."""
    kept = "".join(c if c.isalnum() else " " for c in name.replace("+", "plus").replace("ε", "eps"))
    return "-".join(kept.split())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="checkpoints/landscapes", help="folder or hub id")
    parser.add_argument("--pairs", type=Path, required=True, help="folder of pairs to train on")
    parser.add_argument("--validation", type=Path, required=True, help="folder of pairs to choose weights by")
    parser.add_argument(
        "--work", type=Path, default=Path("build/ablate"), help="folder for intermediate results"
    )
    parser.add_argument(
        "--only", nargs="+", choices=VARIANTS, metavar="NAME", help="train only these variants"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 8], help="numbers of steps trained for")
    parser.add_argument("--iterations", type=int, default=100, help="of gradient descent")
    parser.add_argument("--ppo-iterations", type=int, default=100, help="of PPO")
    parser.add_argument("--batch", type=int, default=8, help="pairs in an iteration of gradient descent")
    parser.add_argument(
        "--ppo-batch", type=int, default=2, help="pairs in an iteration of PPO, with 16 rollouts each"
    )
    parser.add_argument("--test-pairs", type=int, default=96, help="pairs to compare variants on")
    parser.add_argument(
        "--validation-pairs",
        type=int,
        default=64,
        help="pairs to choose the grids of training-free solvers by",
    )
    parser.add_argument(
        "--evaluated", type=Path, default=Path("build/evaluate"), help="--work of `python -m solver evaluate`"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help=" ")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    steps = [str(N) for N in args.steps]
    chosen = args.only or list(VARIANTS)
    shared = ["--model", args.model, "--pairs", str(args.pairs), "--validation", str(args.validation)]
    shared += ["--steps", *steps, "--device", args.device, "--keep-activations"]
    try:
        for name in (bar := tqdm(chosen, unit="variant")):
            bar.set_postfix_str(name)
            options = ["--method", "distill", *shlex.split(VARIANTS[name])]
            by_ppo = "ppo" in options
            iterations, batch = (
                (args.ppo_iterations, args.ppo_batch) if by_ppo else (args.iterations, args.batch)
            )
            out = args.work / folder_of(name)
            arguments = [*shared, *options, "--iterations", str(iterations), "--batch", str(batch)]
            arguments += ["--validate-every", str(max(1, iterations // 2)), "--out", str(out)]
            train.run(train.parser().parse_args(arguments))
        arguments = ["--model", args.model, "--device", args.device, "--nfe", *steps]
        arguments += ["--pairs", str(args.test_pairs), "--validation-pairs", str(args.validation_pairs)]
        arguments += ["--finer-pairs", "2", "--work", str(args.evaluated)]
        arguments += ["--solvers", *evaluate.TRAINING_FREE, "--learned"]
        arguments += [f"{name}={args.work / folder_of(name)}" for name in chosen]
        rows: list[dict[str, Any]] = evaluate.evaluate(evaluate.parser().parse_args(arguments), grids=False)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if args.json:
        write_json(args.json, rows)
    for row in rows:
        print("{nfe:>3}  {psnr_db:6.2f} dB  {ssim:.4f}  {solver}".format_map(row))
