"""Measure waiting times by policy and load: python -m tools.load [--quick] [--json FILE] [--plots DIR]

Replays one fixed trace of visits (tools/load/trace.jsonl) on the app's worker under each policy, with the
same model, seeds and tick costs. A load is the share of time that the policy fifo would be busy. --virtual
makes only the scheduling decisions, with calibrated tick costs: hours of load take seconds. The real runs of
all policies take about 40 minutes, with --quick at most ten.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch
from tqdm import tqdm

from app.models import DEVICES, Choice, ImageModel, ModelError, open_model
from app.worker import Worker
from app.worker.costs import Costs
from tools.load import trace
from tools.load.figures import LoadRow, alone_s, make_row, visits_per_second
from tools.load.policies import POLICIES
from tools.load.runs import Meter, replay, replay_virtually, saturate, saturate_virtually
from tools.load.soak import soak
from tools.load.trace import Visit

BUSY = (0.3, 0.8, 1.2)
SPAN_S, QUICK_SPAN_S = 120.0, 16.0
SATURATED_S, QUICK_SATURATED_S = 30.0, 6.0
# All quick runs together take so long at most. Loading and calibration come on top.
QUICK_S = 540.0
TABLE = (
    ("policy", "{:14}"),
    ("clock", "{:8}"),
    ("fifo_busy", "{:5.0%}"),
    ("requests", "{:5}"),
    ("refused", "{:5}"),
    ("preview_p50_s", "{:8.2f}"),
    ("preview_p95_s", "{:8.2f}"),
    ("refine_p95_s", "{:8.2f}"),
    ("pick_to_final_p50_s", "{:8.2f}"),
    ("preview_goodput", "{:6.0%}"),
    ("image_steps_per_s", "{:7.1f}"),
    ("cancel_ticks_p95", "{:5.1f}"),
    ("wasted_step_share", "{:6.0%}"),
)


def real_rows(
    model: ImageModel, costs: Costs, options: argparse.Namespace, visits: Sequence[Visit]
) -> Iterator[LoadRow]:
    """Yield rows of each policy at each load on the worker, and of the same visits on the virtual clock."""
    saturated_s = QUICK_SATURATED_S if options.quick else SATURATED_S
    steps, pace = {}, 1.0
    for policy in tqdm(options.policies, desc="saturated", unit="policy"):
        steps[policy], measured = saturate(policy, model, costs, saturated_s)
        pace = measured if policy == options.policies[0] else pace
    cells = [(busy, policy) for busy in options.busy for policy in options.policies]
    longest_s, span_s = float("inf"), SPAN_S
    if options.quick:
        longest_s = (QUICK_S - saturated_s * len(options.policies)) / len(cells)
        span_s = quick_span_s(longest_s, costs, pace)
        print(f"Each run has the arrivals of {span_s:.0f} s and ends after {longest_s:.0f} s at the latest.")
    for busy, policy in tqdm(cells, desc="replayed", unit="run"):
        rate = visits_per_second(visits, busy, costs, pace)
        arriving = [visit for visit in visits if visit.at / rate <= span_s] or visits[:1]
        outcome = replay(policy, model, costs, arriving, rate, longest_s)
        made = {kind: outcome.made[kind] for kind in ("preview", "refine", "speculative", "wasted")}
        yield make_row(policy, "real", busy, span_s, outcome.record, made, costs, pace, steps[policy])
        virtual = replay_virtually(policy, outcome.meter, arriving, rate)
        yield make_row(policy, "virtual", busy, span_s, virtual.record, virtual.made, costs, pace, None)


def quick_span_s(longest_s: float, costs: Costs, pace: float) -> float:
    """Return the seconds of arrivals that leave time for the last pick in a run of `longest_s` seconds."""
    last_s = 2 * alone_s("refine", costs, pace) + sum(trace.THINKING_S) / 2
    return min(QUICK_SPAN_S, max(longest_s / 4, longest_s - last_s))


def virtual_rows(costs: Costs, options: argparse.Namespace, visits: Sequence[Visit]) -> Iterator[LoadRow]:
    """Yield rows of each policy at each load on the virtual clock."""
    for busy in options.busy:
        rate = visits_per_second(visits, busy, costs, 1.0)
        for policy in options.policies:
            outcome = replay_virtually(policy, Meter(costs), visits, rate)
            steps = saturate_virtually(policy, costs, 1.0, 10 * SATURATED_S)
            span_s = visits[-1].at / rate
            yield make_row(policy, "virtual", busy, span_s, outcome.record, outcome.made, costs, 1.0, steps)


def show(row: LoadRow) -> str:
    """Format a line of the table."""
    values = ((getattr(row, name), form) for name, form in TABLE)
    return " ".join(
        form.format(value) if value is not None else " " * (len(form.format(0)) - 1) + "–"
        for value, form in values
    )


def prepare(options: argparse.Namespace) -> tuple[ImageModel, Costs]:
    """Load the model and measure the costs of its calls; raise ModelError if it cannot be loaded."""
    model = open_model(Choice(options.model, options.device))
    worker = Worker(model)
    worker.close()
    return model, worker.costs


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="landscapes", help="as for app.py (%(default)s)")
    parser.add_argument("--device", default="auto", choices=DEVICES, help="where to compute (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="short runs; ten minutes at most")
    parser.add_argument("--virtual", action="store_true", help="only on the virtual clock")
    parser.add_argument("--visits", type=int, metavar="N", help="with --virtual: a new trace of N visits")
    parser.add_argument(
        "--busy", type=float, nargs="+", default=BUSY, metavar="SHARE", help="loads (%(default)s)"
    )
    parser.add_argument(
        "--policies", nargs="+", default=list(POLICIES), choices=POLICIES, metavar="NAME",
        help=f"of {', '.join(POLICIES)} (all)",
    )  # fmt: skip
    parser.add_argument(
        "--soak", type=float, metavar="MINUTES", help="run many users with cancels and failures instead"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file too")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the plots into this folder")
    options = parser.parse_args()
    if min(options.busy) <= 0:
        parser.error("--busy takes shares above 0, such as 0.8")
    if options.visits is not None and options.visits < 1:
        parser.error("--visits takes a whole number from 1")
    if options.plots and not find_spec("matplotlib"):
        parser.error("--plots needs matplotlib: pip install -r requirements-dev.txt")
    return options


def main() -> None:
    options = parse_options()
    try:
        # In a thread that ends, as in the app: a thread that has computed keeps its own OpenMP threads, and
        # with more of them than cores the worker is slower (2 rows of the embedded model by half on 2 cores).
        with ThreadPoolExecutor(1) as pool:
            model, costs = pool.submit(prepare, options).result()
    except ModelError as error:
        raise SystemExit(f"Can't start: {error}") from None
    if options.soak:
        print(json.dumps(asdict(soak(model, costs, 60 * options.soak)), indent=1))
        return
    print(f"{model.facts.name} on {model.device}, {torch.get_num_threads()} threads. A call takes")
    for size, seconds in zip(costs.rows, costs.seconds, strict=True):
        print(f"{size:5} rows {1000 * seconds:8.1f} ms{'  (the knee)' if size == costs.knee else ''}")
    visits = trace.make_trace(options.visits, trace.SEED) if options.visits else trace.load()
    rows: list[LoadRow] = []
    print(" ".join(name for name, _ in TABLE))
    run = (
        virtual_rows(costs, options, visits) if options.virtual else real_rows(model, costs, options, visits)
    )
    for row in run:
        tqdm.write(show(row))
        rows.append(row)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    if options.plots:
        from tools.load.plots import draw_rows

        draw_rows([row for row in rows if row.clock == rows[0].clock], options.plots / "load.png")


if __name__ == "__main__":
    main()
