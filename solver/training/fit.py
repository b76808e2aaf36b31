"""Train a table by Gauss-Newton: least squares on the final latents, solved in closed form.

A table has few numbers, and the final latents are nearly linear in them. So each iteration measures how every
decision moves them, by a finite difference, and solves for the change that brings them nearest to the targets
(Levenberg-Marquardt: Marquardt 1963). A decision in row i needs only the evaluations after it, and one in the
last row none at all. No gradient passes through the network, so memory is that of sampling.

The network runs in float32. In bfloat16 the rounding of the final latents is as large as their error at eight
evaluations, and a finite difference between two runs is mostly rounding.

What is minimised is the mean over pairs of log |x - target|², so that every pair counts alike: its
linearisation weighs a pair by 1 / |x - target|².
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from solver.plan import Tables
from solver.sampling import Denoiser
from solver.table_policy import TablePolicy
from solver.training.pairs import Pairs
from solver.training.task import Task, save_state

CHANGE = 0.02
"""How much a decision is changed to see its effect."""
DAMPINGS = (1e-3, 3e-2, 0.3, 3.0, 30.0)
"""Shares of the normal matrix's diagonal that are added to it, until one improves the validation pairs."""


TILTS = (0.0, 0.4, 0.8, 1.2)
SHIFTS = (-0.3, -0.15, 0.15, 0.3)
"""Where a first grid may start: the factor on each step has the logarithm shift + tilt · (-1/2 … 1/2)."""


class Stage(NamedTuple):
    """Decisions that are fitted together, at each number of steps.

    Attributes:
        name: for the log.
        learns: kinds of decisions, see `solver.policy.DECISIONS`.
        iterations: Gauss-Newton steps at most; one that does not improve the validation pairs is the last.
        pairs: training pairs in each, drawn anew; 0 for all.
        last_rows: only the decisions in so many last rows, 0 for all; those of the very last row need no
            evaluations beyond those of one run.
    """

    name: str
    learns: tuple[str, ...]
    iterations: int
    pairs: int
    last_rows: int = 0


STAGES = (
    Stage("grid", ("grid", "times"), 6, 24),
    Stage("rows", ("rows", "state", "times"), 4, 32),
    Stage("last row", ("rows", "state"), 1, 0, last_rows=1),
)
GRID_STAGE = "grid"


@dataclass(frozen=True, eq=False)
class Rollout:
    """A run of B samples that can be taken up again at any evaluation.

    Attributes:
        x: the states before each evaluation, and the final one.
        output: the network's outputs.
        q: the predictions that the rows combine.
    """

    x: list[Tensor]
    output: list[Tensor]
    q: list[Tensor]


def follow(
    tables: Tables,
    denoise: Denoiser,
    noise: Tensor,
    like: Rollout | None = None,
    first: int = 0,
    known: int = 0,
) -> Rollout:
    """Run tables from row `first` on, with all before as in `like`.

    Args:
        known: how many of the network's outputs are those of `like` too.
    """
    plan = tables.beside(noise)
    x = list(like.x[: first + 1]) if like else [noise.float()]
    output = list(like.output[:known]) if like else []
    q = list(like.q[:first]) if like else []
    for i in range(first, len(plan.timestep)):
        if i >= known:
            timesteps = plan.timestep[i].flatten().expand(len(noise))
            output.append(denoise((plan.input_scale[i] * x[i]).to(noise.dtype), timesteps).float())
        q.append(plan.c[i] * x[i] + plan.d[i] * output[i])
        x.append(sum((b * past for b, past in zip(plan.b[i], q[::-1], strict=False)), plan.a[i] * x[i]))
    return Rollout(x, output, q)


def decisions_of(policy: TablePolicy, steps: int, stage: Stage) -> list[tuple[int, int]]:
    """Return the decisions that a stage fits, as row and column of the table."""
    first_row = steps - stage.last_rows if stage.last_rows else 0
    effective = policy.mask(steps).nonzero().tolist()
    return [(i, j) for i, j in effective if policy.decisions[j] in stage.learns and i >= first_row]


def unchanged_outputs(policy: TablePolicy, i: int, j: int) -> int:
    """Return how many of the network's outputs stay the same when decision (i, j) changes."""
    return i if policy.decisions[j] == "times" else i + 1


def network_calls(policy: TablePolicy, steps: int, stage: Stage, pairs: int, validation: int) -> int:
    """Return how often a stage evaluates the network for one sample, if every first damping is accepted.

    Args:
        pairs, validation: how many there are.
    """
    columns = decisions_of(policy, steps, stage)
    each = steps + sum(steps - unchanged_outputs(policy, i, j) for i, j in columns)
    used = min(stage.pairs or pairs, pairs)
    return stage.iterations * (used * each + 2 * validation * steps) + validation * steps


class NormalEquations:
    """JᵀJ and Jᵀr over pairs; J has a column for each decision at each of the two guidance scales.

    Args:
        policy: where it is linearised.
        steps: N.
        stage: which decisions.
    """

    def __init__(self, policy: TablePolicy, steps: int, stage: Stage) -> None:
        self.policy, self.steps = policy, steps
        self.columns = decisions_of(policy, steps, stage)
        size = 2 * len(self.columns)
        self.matrix = torch.zeros(size, size, dtype=torch.float64)
        self.vector = torch.zeros(size, dtype=torch.float64)

    @torch.no_grad()
    def add(self, task: Task, pairs: Pairs) -> None:
        """Measure the effect of every decision on these pairs' final latents."""
        policy, schedule, grid = self.policy, task.model.schedule, task.grid(self.steps)
        offsets = policy.likeliest(grid, pairs.guidance.to(task.model.device)).double()
        noise, denoise = task.model.noise(pairs.seeds), task.denoiser(pairs)
        run = follow(policy.tables(schedule, grid, offsets), denoise, noise)
        residual = (pairs.latents.to(noise.device) - run.x[-1]).flatten(1)
        scale = residual.square().mean(dim=1, keepdim=True).rsqrt()
        effects = []
        for i, j in self.columns:
            changed = offsets.clone()
            changed[:, i, j] += CHANGE
            tables, known = policy.tables(schedule, grid, changed), unchanged_outputs(policy, i, j)
            moved = follow(tables, denoise, noise, run, i, known)
            effects.append((moved.x[-1] - run.x[-1]).flatten(1) * scale / CHANGE)
        J = torch.stack(effects).double()  # [columns, B, latents]
        shares = policy.shares(pairs.guidance.double()).to(J.device)
        gram = torch.einsum("cbl,dbl->bcd", J, J)
        right = torch.einsum("cbl,bl->bc", J, (residual * scale).double())
        self.matrix += torch.einsum("bk,bm,bcd->kcmd", shares, shares, gram).flatten(2).flatten(0, 1).cpu()
        self.vector += torch.einsum("bk,bc->kc", shares, right).flatten().cpu()

    def solve(self, damping: float) -> Tensor:
        """Return the change of the policy's table for this number of steps, [2, N, decisions]."""
        diagonal = self.matrix.diagonal()
        damped = self.matrix + torch.diag(damping * diagonal + 1e-9 * diagonal.mean())
        solution = torch.linalg.solve(damped, self.vector).view(2, -1)
        change = torch.zeros(2, self.steps, len(self.policy.decisions))
        rows, kinds = zip(*self.columns, strict=True)
        change[:, rows, kinds] = solution.float()
        return change


@torch.no_grad()
def closeness(policy: TablePolicy, task: Task, pairs: Pairs, steps: int, batch: int = 16) -> float:
    """Return the mean of -10 log10 of the mean squared error of the final latents, in dB."""
    values, grid = [], task.grid(steps)
    for start in range(0, len(pairs), batch):
        part = pairs.take(range(start, min(start + batch, len(pairs))))
        offsets = policy.likeliest(grid, part.guidance.to(task.model.device))
        latents = task.latents(policy.tables(task.model.schedule, grid, offsets), part)
        error = (latents - part.latents.to(latents.device)).square().flatten(1).mean(dim=1)
        values.append(-10 * error.log10())
    return float(torch.cat(values).mean())


def improve(
    policy: TablePolicy, task: Task, pairs: Pairs, validation: Pairs, steps: int, stage: Stage, before: float
) -> float:
    """Take one Gauss-Newton step; keep it only if the validation pairs come closer.

    Args:
        before: their `closeness` now.

    Returns:
        Their closeness after it; `before` if no damping helps.
    """
    equations = NormalEquations(policy, steps, stage)
    for start in range(0, len(pairs), 16):
        equations.add(task, pairs.take(range(start, min(start + 16, len(pairs)))))
    kept, at = policy.table.detach().clone(), policy.counts.index(steps)
    best = (before, kept)
    for damping in DAMPINGS:
        policy.table.data = kept.clone()
        policy.table.data[at, :, :steps] += equations.solve(damping).to(kept.device)
        after = closeness(policy, task, validation, steps)
        if after > best[0]:
            best = (after, policy.table.detach().clone())
        elif best[0] > before:
            break
    policy.table.data = best[1]
    return best[0]


def choose_start(policy: TablePolicy, task: Task, validation: Pairs, steps: int) -> None:
    """Start the grid with the tilt, and then the shift, that bring the validation pairs closest.

    From an evenly spaced grid Gauss-Newton ends in a poorer optimum.
    """
    kept, at, j = policy.table.detach().clone(), policy.counts.index(steps), policy.decisions.index("grid")
    along = torch.linspace(-0.5, 0.5, steps - 1, device=kept.device)

    def tried(start: tuple[float, float]) -> tuple[float, tuple[float, float]]:
        policy.table.data = kept.clone()
        policy.table.data[at, :, : steps - 1, j] = start[0] * along + start[1]
        return closeness(policy, task, validation, steps), start

    best = max(tried((tilt, 0.0)) for tilt in TILTS)
    best = max(best, *(tried((best[1][0], shift)) for shift in SHIFTS))
    tried(best[1])


def start_like(policy: TablePolicy, steps: int, other: int) -> None:
    """Copy the grid and the told times of another number of steps, stretched to this one."""
    decided = policy.table.data
    for j, kind in enumerate(policy.decisions):
        if kind in ("grid", "times"):
            length = {"grid": (other - 1, steps - 1), "times": (other, steps)}[kind]
            known = decided[policy.counts.index(other), :, None, : length[0], j].movedim(1, 0)
            stretched = torch.nn.functional.interpolate(
                known, size=length[1], mode="linear", align_corners=True
            )
            decided[policy.counts.index(steps), :, : length[1], j] = stretched[0]


def fit(
    policy: TablePolicy,
    task: Task,
    pairs: Pairs,
    validation: Pairs,
    out: Path,
    *,
    stages: Sequence[Stage] = STAGES,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Fit `policy` stage by stage, at each of its numbers of steps; an interrupted fit continues.

    Args:
        pairs, validation: pairs to fit to, and pairs that must come closer in every iteration.
        out: folder for the state and the log, in which iteration 0 is the start of a stage.
        seed: of the choice of pairs.

    Returns:
        The policy's table after each stage, by its name.
    """
    task.check(training=pairs, validation=validation)
    task = replace(task, low_precision=False)
    out.mkdir(parents=True, exist_ok=True)
    state_file, tables = out / "state.pt", {}
    log: list[dict[str, Any]] = []
    spent, started = 0.0, time.monotonic()
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        policy.table.data = state["table"].to(policy.table.device)
        tables, log, spent = state["tables"], state["log"], state["seconds"]

    def record(stage: Stage, N: int, iteration: int, value: float) -> None:
        seconds = round(spent + time.monotonic() - started, 1)
        entry = {"stage": stage.name, "N": N, "iteration": iteration, "validation": value, "seconds": seconds}
        log.append(entry)
        state = {"table": policy.table.detach().cpu(), "tables": tables, "log": log, "seconds": seconds}
        save_state(state_file, state)
        (out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
        bar.set_postfix_str(f"{stage.name}, {N} steps: {value:.2f} dB")

    with tqdm(total=len(policy.counts) * sum(1 + stage.iterations for stage in stages)) as bar:
        for stage in stages:
            for at, N in enumerate(policy.counts):
                values = [e["validation"] for e in log if (e["stage"], e["N"]) == (stage.name, N)]
                bar.update(len(values))
                if not values:
                    if "grid" in stage.learns and N > 1:
                        if at:
                            start_like(policy, N, policy.counts[at - 1])
                        else:
                            choose_start(policy, task, validation, N)
                    values.append(closeness(policy, task, validation, N))
                    record(stage, N, 0, values[-1])
                    bar.update()
                while len(values) <= stage.iterations and values[-2:-1] != values[-1:]:
                    rng = random.Random(f"{seed} {stage.name} {N} {len(values)}")
                    count = min(stage.pairs or len(pairs), len(pairs))
                    chosen = pairs.take(rng.sample(range(len(pairs)), count))
                    values.append(improve(policy, task, chosen, validation, N, stage, values[-1]))
                    record(stage, N, len(values) - 1, values[-1])
                    bar.update()
                bar.update(1 + stage.iterations - len(values))
            tables[stage.name] = policy.table.detach().cpu().clone()
    return tables
