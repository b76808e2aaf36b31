"""What a wrong calibration costs, on the virtual clock: python -m tools.load.starts [--json FILE]

Two devices: on one a call is worth two grids of four previews, on the other one grid. On a busy machine
calls have more jitter than on an idle one, and some take ten times as long. The worker starts with
calibrations that are right or wrong by a factor of three from some size on; "fifo", which it is compared
with, starts with the right one.
"""

import argparse
import itertools
import json
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from app.worker.costs import Costs
from tools.load import trace
from tools.load.figures import make_row, visits_per_second
from tools.load.runs import Meter, replay_virtually

ROWS = (1, 2, 4, 8, 16, 32)
# 32 rows do 9 % more a second than 16 on the first device, and 16 no more than 8 on the second.
DEVICES: Mapping[str, Costs] = {
    "two grids": Costs(ROWS, (0.045, 0.06, 0.089, 0.139, 0.218, 0.4), decode_s=0.012, encode_s=0.004),
    "one grid": Costs(ROWS, (0.045, 0.06, 0.089, 0.139, 0.265, 0.53), decode_s=0.012, encode_s=0.004),
}
# (factor, rows): calls of so many rows or more were measured as so many times their seconds.
STARTS = ((1.0, 1), (3.0, 16), (3.0, 8), (3.0, 4), (3.0, 1), (1 / 3, 16), (1 / 3, 8), (1 / 3, 1))
MEASURED = (STARTS[0], STARTS[3], STARTS[4], STARTS[6], STARTS[7])
SEEDS = 3
BUSY = (0.8, 1.2)


@dataclass(frozen=True)
class Noise:
    """How much calls vary: by `jitter` on a log scale, and a share of `slow` takes SLOWER times as long."""

    jitter: float
    slow: float

    @property
    def pace(self) -> float:
        """Mean duration of a call, in units of its costs."""
        return (1 + self.slow * (SLOWER - 1)) * math.exp(self.jitter**2 / 2)


SLOWER = 10
MACHINES: Mapping[str, Noise] = {"idle": Noise(0.03, 0.0), "busy": Noise(0.08, 0.02)}


@dataclass(frozen=True)
class StartRow:
    """One policy from one start, on one device, with one trace and load.

    Attributes:
        machine: key of MACHINES.
        device: key of DEVICES.
        policy: its name.
        factor, from_rows: the start, see STARTS.
        seed: of the trace and the noise.
        fifo_busy to preview_goodput: see `LoadRow`.
    """

    machine: str
    device: str
    policy: str
    factor: float
    from_rows: int
    seed: int
    fifo_busy: float
    preview_p95_s: float | None
    refine_p95_s: float | None
    preview_goodput: float | None


def calibrated(costs: Costs, factor: float, from_rows: int) -> Costs:
    """Return a calibration during which calls of `from_rows` rows or more took `factor` times as long."""
    seconds = tuple(
        s * (factor if r >= from_rows else 1) for r, s in zip(costs.rows, costs.seconds, strict=True)
    )
    for size in range(3, len(costs.rows) + 1):
        first = Costs(costs.rows[:size], seconds[:size], costs.decode_s, costs.encode_s)
        if first.knee < first.rows[-1]:  # it ends once it is beyond the knee
            break
    return first


def noisy(costs: Costs, seed: int, noise: Noise = MACHINES["busy"]) -> Callable[[int], float]:
    """Return a function that draws the seconds of a call with so many rows."""
    rng = random.Random(seed)

    def call_s(rows: int) -> float:
        slowness = SLOWER if rng.random() < noise.slow else 1
        return slowness * costs.tick(rows) * rng.lognormvariate(0, noise.jitter)

    return call_s


def measure(
    machine: str, device: str, policy: str, start: tuple[float, int], seed: int, busy: float
) -> StartRow:
    """Replay a trace; with seed 0 it is the shipped one. The load is that of the mean duration of calls."""
    costs, noise = DEVICES[device], MACHINES[machine]
    visits = trace.make_trace(trace.VISITS, trace.SEED + seed)
    rate = visits_per_second(visits, busy, costs, noise.pace)
    first, call_s = calibrated(costs, *start), noisy(costs, seed, noise)
    outcome = replay_virtually(policy, Meter(costs), visits, rate, first, call_s)
    row = make_row(
        policy, "virtual", busy, visits[-1].at / rate, outcome.record, outcome.made, costs, noise.pace, None
    )
    figures = (row.preview_p95_s, row.refine_p95_s, row.preview_goodput)
    return StartRow(machine, device, policy, *start, seed, busy, *figures)


def measure_all() -> list[StartRow]:
    """Measure all machines, devices, starts and traces; "fifo" at 80 % from the right start only."""
    runs = [("fifo", STARTS[0], 0.8), *(("speculative", start, busy) for start in MEASURED for busy in BUSY)]
    cells = [
        (machine, device, policy, start, seed, busy)
        for machine in MACHINES
        for device in DEVICES
        for policy, start, busy in runs
        for seed in range(SEEDS)
    ]
    return [measure(*cell) for cell in tqdm(cells, desc="replayed", unit="run")]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write a Markdown table of devices and starts: medians over the traces, the worst in brackets."""
    fifo = {(row["machine"], row["device"], row["seed"]): row for row in rows if row["policy"] == "fifo"}
    lines = [
        "| machine | a call is worth | calibration | preview p95 at 80 %, share of `fifo`'s "
        "| final p95 at 80 %, share of `fifo`'s | previews in time at 120 % |",
        "|" + "---|" * 6,
    ]
    starts = itertools.groupby(
        (row for row in rows if row["policy"] != "fifo"),
        lambda row: (row["machine"], row["device"], row["factor"], row["from_rows"]),
    )
    for (machine, device, *start), group in starts:
        runs = list(group)
        shares = [
            [row[name] / fifo[machine, device, row["seed"]][name] for row in runs if row["fifo_busy"] == 0.8]
            for name in ("preview_p95_s", "refine_p95_s")
        ]
        in_time = [row["preview_goodput"] for row in runs if row["fifo_busy"] == 1.2]
        cells = [f"{statistics.median(values):.2f} ({max(values):.2f})" for values in shares]
        cells.append(f"{statistics.median(in_time):.0%} ({min(in_time):.0%})")
        lines.append(f"| {machine} | {device} | {_start(*start)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _start(factor: float, from_rows: int) -> str:
    if factor == 1:
        return "right"
    amount = "3 × too slow" if factor > 1 else "3 × too fast"
    return amount if from_rows == 1 else f"{amount} from {from_rows} rows on"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.load.starts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    options = parser.parse_args()
    rows = [asdict(row) for row in measure_all()]
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
