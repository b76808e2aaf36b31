"""ConsistencySolver: previews that land where the full-step picture will be.

What is learned for a model lies beside its other parts, in `<model>/solver/`: `scheduler_config.json`, the
config of a `ConsistencySolverScheduler`, whose entry `tables` lists one `Plan` for each learned number of
steps; and, where the config names one as `policy_file`, a policy for all other numbers of steps and for other
grids. A model without them gets UniPC's rows.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from solver.grids import TimeGrid, partial_grid, time_grid
from solver.multistep import classical_plan
from solver.paper import load_policy
from solver.plan import Plan
from solver.policy import Policy
from solver.schedule import NoiseSchedule

CONFIG_FILE = "scheduler_config.json"
POLICY_FILE = "policy.safetensors"


@dataclass(frozen=True, eq=False)
class LearnedSolver:
    """What was learned for one model; empty for a model for which nothing was.

    Attributes:
        tables: at most one plan for each number of steps, one evaluation a step, from unit noise in the
            network's scaling to σ = 0. They bring their own grid.
        policy: writes the plan for the other numbers of steps that it was trained for.
        schedule: the noise schedule that it was learned on, where that is known.
    """

    tables: Sequence[Plan] = ()
    policy: Policy | None = None
    schedule: NoiseSchedule | None = None

    def __post_init__(self) -> None:
        steps = [table.steps for table in self.tables]
        if len(set(steps)) < len(steps):
            raise ValueError(f"Several tables have the same number of steps: {sorted(steps)}.")
        for table in self.tables:
            if (
                table.steps != table.nfe
                or {table.init_noise_scale, *table.input_scale} != {1.0}
                or table.sigma[-1]
            ):
                raise ValueError(
                    f"The table for {table.steps} steps must take one evaluation a step, keep its "
                    "state in the network's scaling (input_scale and init_noise_scale 1) and end at σ = 0."
                )

    def covers(self, steps: int) -> bool:
        """Whether it learned anything for this number of steps."""
        by_policy = self.policy is not None and self.policy.covers(steps)
        return by_policy or any(table.steps == steps for table in self.tables)

    def plan(
        self,
        steps: int,
        schedule: NoiseSchedule,
        *,
        grid: str = "trailing",
        guidance: float = 3.0,
        strength: float = 1.0,
    ) -> Plan:
        """The plan for a number of steps: the table for it, else a trained policy's, else UniPC's.

        Args:
            steps: 1 to 1000.
            schedule: the model's noise schedule.
            grid: where no table decides it, one of `solver.GRIDS`; a policy that learns grids starts from it.
            guidance: what the policy is told.
            strength: below 1 for image-to-image, see `partial_grid`; tables are for pure noise alone.

        Raises:
            ValueError: a table that was made for another noise schedule or prediction type.
        """
        for table in self.tables:
            if table.steps == steps and strength == 1:
                return _fitting(table, schedule)
        if strength == 1:
            levels = time_grid(grid, schedule, steps)
        else:
            levels = partial_grid(schedule, steps, strength)
        if policy := self._policy_for(len(levels.timestep), whole=strength == 1):
            return policy.plan(schedule, levels, guidance)
        return untrained_plan(schedule, levels)

    def plan_on(self, grid: TimeGrid, schedule: NoiseSchedule, *, guidance: float = 3.0) -> Plan:
        """The plan on a grid of one's own, which is kept: the policy's rows, else UniPC's."""
        if policy := self._policy_for(len(grid.timestep), whole=False):
            return policy.plan(schedule, grid, guidance, keep_grid=True)
        return untrained_plan(schedule, grid)

    def _policy_for(self, steps: int, *, whole: bool) -> Policy | None:
        """The policy if it was trained for so many steps: of a whole run on its own grid, or of others."""
        policy = self.policy
        usable = policy is not None and policy.covers(steps) and (whole or not policy.whole_runs_only)
        return policy if usable else None

    def mismatch(self, schedule: NoiseSchedule, guidance: float | None = None) -> str:
        """What differs between where this was learned and where it is to be used, in words; "" if nothing.

        A warning, not an error: rows carry over to like schedules, at a cost that only measuring tells.
        """
        known, reasons = self.schedule, []
        if known is not None and known.is_flow != schedule.is_flow:
            reasons.append(f"a {_kind(known)} model, and this is a {_kind(schedule)} one")
        elif known is not None:
            if known.prediction_type != schedule.prediction_type:
                reasons.append(
                    f"a network that predicts {known.prediction_type}, and this one predicts "
                    f"{schedule.prediction_type}"
                )
            there, here = (s.sigma(np.linspace(0, s.num_train_timesteps - 1, 101)) for s in (known, schedule))
            furthest = int((there - here).abs().argmax())
            if (there - here).abs()[furthest] > 1e-3:
                reasons.append(
                    f"another noise schedule: {furthest} % of the way to pure noise σ is "
                    f"{there[furthest]:.3f} there and {here[furthest]:.3f} here"
                )
        if self.policy is not None and guidance is not None:
            low, high = self.policy.guidance
            if not low <= guidance <= high:
                scales = f"{low:g}" if low == high else f"{low:g} to {high:g}"
                reasons.append(f"guidance scales of {scales}, and {guidance:g} is asked for")
        return "The solver was learned for " + "; and for ".join(reasons) + "." if reasons else ""

    @classmethod
    def load(cls, folder: str | Path) -> LearnedSolver:
        """Read `<model>/solver/`, which `ConsistencySolverScheduler.save_pretrained` wrote.

        Raises:
            FileNotFoundError: no config there, or not the policy that it names.
            ValueError: files that are not what they should be.
        """
        config = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
        policy_file = config.get("policy_file")
        return cls(
            tuple(map(Plan.from_dict, config.get("tables") or ())),
            load_policy(Path(folder) / policy_file) if policy_file else None,
            NoiseSchedule.from_config(config, mu=1.0),  # a mu shifts grids, not levels
        )


def _kind(schedule: NoiseSchedule) -> str:
    return "flow-matching" if schedule.is_flow else "variance-preserving"


def untrained_plan(schedule: NoiseSchedule, grid: TimeGrid) -> Plan:
    """The rows that training starts from, which are UniPC's.

    UniPC (Zhao et al. 2023) is among the strongest training-free solvers at few steps, so learning starts
    from a good one.
    """
    return dataclasses.replace(classical_plan("unipc", schedule, grid), solver="consistency")


def _fitting(table: Plan, schedule: NoiseSchedule) -> Plan:
    if table.prediction_type != schedule.prediction_type:
        raise ValueError(
            f"The table for {table.steps} steps reads {table.prediction_type}, "
            f"but the model predicts {schedule.prediction_type}."
        )
    starts = table.sigma[0], float(schedule.sigma(table.timestep[0]))
    if abs(starts[0] - starts[1]) > 1e-3:
        raise ValueError(
            f"The table for {table.steps} steps was made for another noise schedule: it starts at "
            f"σ = {starts[0]:.4f} where this one has {starts[1]:.4f}."
        )
    # Tables of older versions do not have these.
    told = schedule.levels(schedule.lam(table.timestep))
    told_alpha, told_sigma = (tuple(level.tolist()) for level in told)
    return dataclasses.replace(table, told_alpha=told_alpha, told_sigma=told_sigma)
