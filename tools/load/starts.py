"""What a wrong calibration costs, on the virtual clock: python -m tools.load.starts [--json FILE]

Two devices: on one a call is worth two grids of four previews, on the other one grid. Their calls have
jitter, and some are ten times as slow, as on a machine that others use. The worker starts with calibrations
that are right or wrong by a factor of three from some size on; "fifo", which it is compared with, starts with
the right one.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

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
JITTER, SLOW, SLOWER = 0.08, 0.02, 10
SEEDS = 3
BUSY = (0.8, 1.2)


@dataclass(frozen=True)
class StartRow:
    """One policy from one start, on one device, with one trace and load.

    Attributes:
        device: key of DEVICES.
        policy: its name.
        factor, from_rows: the start, see STARTS.
        seed: of the trace and the noise.
        fifo_busy to preview_goodput: see `LoadRow`.
    """

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


def noisy(costs: Costs, seed: int, jitter: float = JITTER) -> Callable[[int], float]:
    """Return the seconds of a call by its rows, with jitter, and SLOWER times as long for a share of SLOW."""
    rng = random.Random(seed)
    return lambda rows: (
        costs.tick(rows) * rng.lognormvariate(0, jitter) * (SLOWER if rng.random() < SLOW else 1)
    )


def measure(
    device: str, policy: str, start: tuple[float, int], seed: int, busy: float, count: int
) -> StartRow:
    """Replay a trace of `count` visits; with seed 0 it is the shipped trace."""
    costs = DEVICES[device]
    visits = trace.make_trace(count, trace.SEED + seed)
    rate = visits_per_second(visits, busy, costs, 1.0)
    outcome = replay_virtually(
        policy, Meter(costs), visits, rate, first=calibrated(costs, *start), call_s=noisy(costs, seed)
    )
    row = make_row(
        policy, "virtual", busy, visits[-1].at / rate, outcome.record, outcome.made, costs, 1.0, None
    )
    told = (row.preview_p95_s, row.refine_p95_s, row.preview_goodput)
    return StartRow(device, policy, *start, seed, busy, *told)


def measure_all(count: int = trace.VISITS, seeds: int = SEEDS) -> list[StartRow]:
    """Measure all devices, starts, traces and loads; "fifo" from the right start only."""
    cells = [
        (device, policy, start, seed, busy, count)
        for device in DEVICES
        for policy, starts in (("fifo", STARTS[:1]), ("speculative", STARTS))
        for start in starts
        for seed in range(seeds)
        for busy in BUSY
    ]
    return [measure(*cell) for cell in tqdm(cells, desc="replayed", unit="run")]


def table(rows: Sequence[Mapping[str, float]]) -> str:
    """Write a Markdown table of devices and starts: medians over the traces, the worst in brackets."""
    fifo = {(row["device"], row["seed"], row["fifo_busy"]): row for row in rows if row["policy"] == "fifo"}
    lines = [
        "| a call is worth | calibration | preview p95 at 80 %, share of `fifo`'s | final p95 at 80 %, share "
        "of `fifo`'s | previews in time at 120 % |",
        "|" + "---|" * 5,
    ]
    mine = [row for row in rows if row["policy"] != "fifo"]
    for (device, factor, size), group in groupby(
        mine, lambda row: (row["device"], row["factor"], row["from_rows"])
    ):
        runs = list(group)
        ratios = {
            name: [
                row[name] / fifo[device, row["seed"], 0.8][name] for row in runs if row["fifo_busy"] == 0.8
            ]
            for name in ("preview_p95_s", "refine_p95_s")
        }
        in_time = [row["preview_goodput"] for row in runs if row["fifo_busy"] == 1.2]
        cells = [f"{_median(values):.2f} ({max(values):.2f})" for values in ratios.values()]
        lines.append(
            f"| {device} | {_start(factor, size)} | {' | '.join(cells)} | "
            f"{_median(in_time):.0%} ({min(in_time):.0%}) |"
        )
    return "\n".join(lines)


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


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
