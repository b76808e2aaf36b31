"""ConsistencySolver: previews that land where the full-step picture will be.

The solver is a table whose rows are learned for one model. A model carries its tables beside its other parts,
in `<model>/solver/`, one plan file per number of steps; a model without them gets the rows below.
"""

from __future__ import annotations

import dataclasses

from solver.classical import probed_plan
from solver.plan import Plan
from solver.schedule import NoiseSchedule


def untrained_plan(steps: int, schedule: NoiseSchedule, grid: str) -> Plan:
    """The rows that training starts from, which are UniPC's.

    Of the training-free solvers UniPC (Zhao et al. 2023) comes closest to the 40-step picture on the embedded
    model at every number of steps from 4 to 15, so learning starts from the best that is known without it.
    """
    return dataclasses.replace(probed_plan("unipc", steps, schedule, grid), solver="consistency")
