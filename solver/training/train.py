"""Train a ConsistencySolver: `python -m solver train --pairs DIR --validation DIR --out DIR`.

The policy's rows start as a classical solver's and are trained for previews that agree with the full-step
pictures: by least squares on the final latents (`--method fit`), by PPO with any reward, or by gradient
(`--method distill`) with a differentiable one. An interrupted run continues from its last validation. `--out`
receives a `ConsistencySolverScheduler` with the weights that did best on the validation pairs, the options in
`training.json`, and the log in `log.jsonl` (and TensorBoard). After a fit `--out`/grid has a second one that
learned the grid alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from solver.diffusion import load_diffusion
from solver.paper import PaperPolicy, load_policy, paper_policy_for
from solver.policy import DECISIONS, MAX_ORDER, STARTS, Policy
from solver.schedule import NoiseSchedule
from solver.scheduler import ConsistencySolverScheduler
from solver.table_policy import TablePolicy
from solver.training.distill import distill
from solver.training.fit import GRID_STAGE, fit
from solver.training.pairs import Pairs, load_pairs
from solver.training.ppo import PPOSettings, ppo
from solver.training.rewards import make_reward
from solver.training.task import Task, save_state, validate

METHODS = ("fit", "ppo", "distill")
ITERATIVE = METHODS[1:]
DEFAULT_PPO = PPOSettings()
TRAINING_FILE = "training.json"
LEARNING_RATES = {"ppo": 1e-3, "distill": 2e-3}


def train(
    policy: Policy,
    task: Task,
    pairs: Pairs,
    validation: Pairs,
    out: Path,
    *,
    method: str,
    steps: list[int],
    iterations: int,
    batch: int,
    learning_rate: float,
    validate_every: int = 20,
    seed: int = 0,
    settings: PPOSettings = DEFAULT_PPO,
) -> float:
    """Train `policy`, and load into it the weights that did best on `validation`.

    Every iteration draws one number of steps and `batch` pairs; (seed, iteration) determine them. The
    learning rate follows a half cosine to 0. The state is saved at every validation.

    Args:
        pairs, validation: pairs to train on, and to choose weights by.
        out: folder for the state and the log.
        method: one of ITERATIVE.
        steps: numbers of steps to draw from; a number listed twice is drawn twice as often.
        iterations: of the whole training, including those of an interrupted run.
        batch: pairs in an iteration.
        validate_every: iterations between validations.
        settings: of PPO.

    Returns:
        The best mean validation reward over all numbers of steps.

    Raises:
        ValueError: pairs of another model, or a reward or policy that the method cannot train (see
            `distill`).
    """
    task.check(training=pairs, validation=validation)
    out.mkdir(parents=True, exist_ok=True)
    state_file, log_file = out / "state.pt", out / "log.jsonl"
    optimizer = torch.optim.Adam(policy.parameters(), lr=learning_rate)
    best: dict[str, Any] = {"reward": -math.inf, "policy": None}
    first, spent = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        policy.load_state_dict(state["policy"])
        optimizer.load_state_dict(state["optimizer"])
        best, first, spent = state["best"], state["iteration"], state["seconds"]

    with SummaryWriter(str(out / "tensorboard")) as board, log_file.open("a", encoding="utf-8") as log:

        def record(iteration: int, figures: dict[str, float]) -> None:
            for name, value in figures.items():
                board.add_scalar(name, value, iteration)
            log.write(json.dumps({"iteration": iteration, **figures}) + "\n")
            log.flush()

        def check(iteration: int) -> None:
            by_steps = validate(policy, task, validation, sorted(set(steps)))
            mean = sum(by_steps.values()) / len(by_steps)
            record(iteration, {"validation": mean} | {f"validation/{N}": v for N, v in by_steps.items()})
            if mean > best["reward"]:
                best.update(reward=mean, policy={k: v.clone() for k, v in policy.state_dict().items()})
            save_state(
                state_file,
                {
                    "policy": policy.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "best": best,
                    "iteration": iteration,
                    "seconds": spent + time.monotonic() - started,
                },
            )
            bar.set_postfix(validation=f"{mean:.4g}", best=f"{best['reward']:.4g}")

        started = time.monotonic()
        with tqdm(range(first, iterations), initial=first, total=iterations, unit="iteration") as bar:
            for iteration in bar:
                if iteration % validate_every == 0:
                    check(iteration)
                torch.manual_seed(1_000_003 * seed + iteration)
                rng = random.Random(f"{seed} {iteration}")
                N = rng.choice(steps)
                chosen = pairs.take(rng.sample(range(len(pairs)), min(batch, len(pairs))))
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * iteration / iterations))
                if method == "ppo":
                    figures = ppo(policy, optimizer, task, chosen, N, settings)
                else:
                    figures = distill(policy, optimizer, task, chosen, N)
                seconds = spent + time.monotonic() - started
                record(iteration, {"N": N, "seconds": round(seconds, 1)} | figures)
            if first < iterations:
                check(iterations)
    policy.load_state_dict(best["policy"])
    return best["reward"]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="ppo",
        help="fit makes a table that starts as dpm++2m and learns everything: of the options below it uses "
        "--order and --steps alone, and the reward only to report it",
    )
    parser.add_argument("--model", default="checkpoints/landscapes", help="folder or hub id")
    parser.add_argument("--pairs", type=Path, required=True, help="folder of pairs to train on")
    parser.add_argument("--validation", type=Path, required=True, help="folder of pairs to choose weights by")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the solver, the state and the log"
    )
    parser.add_argument("--reward", default="psnr", help="a reward or a weighted sum of rewards")
    parser.add_argument("--readers", type=Path, help="folder of scene readers; default: the model's")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[4, 5, 6, 8], help="one is drawn in each iteration"
    )
    parser.add_argument("--iterations", type=int, default=400, help=" ")
    parser.add_argument("--batch", type=int, default=8, help="pairs in an iteration")
    parser.add_argument("--learning-rate", type=float, help=f"{LEARNING_RATES}")
    parser.add_argument("--validate-every", type=int, default=20, help="iterations")
    parser.add_argument("--init", type=Path, help="folder of a policy to start from; its settings apply")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help=" ")
    parser.add_argument(
        "--keep-activations",
        action="store_true",
        help="faster gradients; memory grows with the number of steps",
    )
    parser.add_argument("--float32", action="store_true", help="run the network in float32, not bfloat16")
    parser.add_argument("--seed", type=int, default=0, help=" ")
    policy = parser.add_argument_group("policy")
    policy.add_argument("--order", type=int, default=4, help=f"1 to {MAX_ORDER}; N or more uses all outputs")
    policy.add_argument("--start", choices=STARTS, default="unipc", help="the classical solver it starts as")
    policy.add_argument("--learns", nargs="*", choices=DECISIONS, default=["rows", "grid", "times"], help=" ")
    policy.add_argument("--free", action="store_true", help="rows need not sum to one")
    policy.add_argument(
        "--sees",
        choices=[*Policy.inputs, *PaperPolicy.inputs],
        default="run",
        help="inputs: all (run), t and t_next (step), or the paper's policy on t and t_next (paper)",
    )
    policy.add_argument(
        "--bins", type=int, default=0, help="values that a decision chooses from; 0 for continuous decisions"
    )
    policy.add_argument("--hidden", type=int, default=128, help="width of the hidden layers")
    algorithm = parser.add_argument_group("PPO")
    for name, what in (
        ("group", "rollouts for each pair"),
        ("epochs", "passes over the rollouts"),
        ("minibatches", "parts of a pass"),
        ("clip", "ε of the clipped objective"),
        ("entropy", "weight of the entropy bonus"),
        ("gradient_norm", "largest norm of a gradient"),
        ("rollouts_at_once", "batch of a network call"),
    ):
        default = getattr(PPOSettings(), name)
        algorithm.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=what)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def main() -> None:
    args = parser().parse_args()
    try:
        result = run(args)
    except (OSError, ValueError) as error:
        parser().error(str(error))
    print(
        json.dumps(result) if args.json else f"Validation reward {result['reward']:.4g}; solver in {args.out}"
    )


def new_policy(args: argparse.Namespace, pairs: Pairs, schedule: NoiseSchedule) -> Policy:
    """Make an untrained policy from the options; raise ValueError for options that contradict each other."""
    trained_for: dict[str, Any] = {
        "steps": (min(args.steps), max(args.steps)),
        "guidance": (float(pairs.guidance.min()), float(pairs.guidance.max())),
        "num_train_timesteps": schedule.num_train_timesteps,
    }
    if args.method == "fit":
        return TablePolicy(
            args.order, counts=args.steps, **{k: v for k, v in trained_for.items() if k != "steps"}
        )
    if args.sees != "paper":
        policy = {"free": args.free, "sees": args.sees, "bins": args.bins, "hidden": args.hidden}
        return Policy(args.order, args.start, tuple(args.learns), **policy, **trained_for)
    if args.start != "euler" or args.learns != ["rows"] or args.free:
        raise ValueError(
            "The paper's policy starts as euler and learns only the rows: give --start euler --learns rows, "
            "and remove --free."
        )
    return paper_policy_for(schedule)(args.order, args.bins, args.hidden, **trained_for)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train as the options say, save the scheduler, and return what `training.json` records."""
    pairs, validation = load_pairs(args.pairs), load_pairs(args.validation)
    model = load_diffusion(args.model, args.device)
    reward = make_reward(
        args.reward, readers=args.readers or Path(args.model) / "readers", device=args.device
    )
    if args.init:
        policy = load_policy(args.init / "policy.safetensors")
    else:
        policy = new_policy(args, pairs, model.schedule)
    policy = policy.train().to(args.device)
    task = Task(model, reward, low_precision=not args.float32, checkpointed=not args.keep_activations)
    if args.method != "fit":
        figures = _train(policy, task, pairs, validation, args)
    elif isinstance(policy, TablePolicy):
        figures = _fit(policy, task, pairs, validation, args)
    else:
        raise ValueError(f"--method fit fits tables, and the policy in {args.init} is not one.")
    _save_scheduler(policy, model.scheduler_config, args.out)
    result: dict[str, Any] = {
        "options": {name: v.name if isinstance(v, Path) else v for name, v in vars(args).items()},
        "pairs": len(pairs),
        "validation_pairs": len(validation),
        "guidance": sorted(set(pairs.guidance.tolist())),
        "seeds": [min(pairs.seeds), max(pairs.seeds)],
        "target": asdict(pairs.target),
        **figures,
    }
    (args.out / TRAINING_FILE).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result | {"out": str(args.out)}


def _train(
    policy: Policy, task: Task, pairs: Pairs, validation: Pairs, args: argparse.Namespace
) -> dict[str, float]:
    chosen = ("group", "epochs", "minibatches", "clip", "entropy", "gradient_norm", "rollouts_at_once")
    best = train(
        policy,
        task,
        pairs,
        validation,
        args.out,
        method=args.method,
        steps=args.steps,
        iterations=args.iterations,
        batch=args.batch,
        learning_rate=args.learning_rate or LEARNING_RATES[args.method],
        validate_every=args.validate_every,
        seed=args.seed,
        settings=PPOSettings(**{name: getattr(args, name) for name in chosen}),
    )
    log = [json.loads(line) for line in (args.out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "seconds": max((line["seconds"] for line in log if "seconds" in line), default=0.0),
        "validation_before": next(line["validation"] for line in log if "validation" in line),
        "reward": best,
    }


def _fit(
    policy: TablePolicy, task: Task, pairs: Pairs, validation: Pairs, args: argparse.Namespace
) -> dict[str, float]:
    """Fit the policy, and save the solver that learned the grid alone."""

    def reward(of: TablePolicy) -> float:
        by_steps = validate(of, task, validation, of.counts)
        return sum(by_steps.values()) / len(by_steps)

    tables = fit(policy, task, pairs, validation, args.out, seed=args.seed)
    first, grid_alone = (copy.deepcopy(policy) for _ in range(2))
    first.table.data.zero_()
    grid_alone.table.data = tables[GRID_STAGE].to(args.device)
    _save_scheduler(grid_alone, task.model.scheduler_config, args.out / GRID_STAGE)
    log = (args.out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "seconds": json.loads(log[-1])["seconds"],
        "validation_before": reward(first),
        "validation_grid_alone": reward(grid_alone),
        "reward": reward(policy),
    }


def _save_scheduler(policy: Policy, config: Mapping[str, Any], out: Path) -> None:
    scheduler = ConsistencySolverScheduler.from_config(config)
    scheduler.policy = policy.cpu().eval()
    scheduler.save_pretrained(out)
