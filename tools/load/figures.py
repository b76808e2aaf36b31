"""Rows of the report: the measurements of one policy under one load."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.worker.costs import Costs
from tools.load.trace import Visit
from tools.load.visitors import FULL_STEPS, GRID, PREVIEW_STEPS, RequestLog, TimedRequest

ROWS = 2  # of a picture with guidance
IN_TIME = 3.0  # a request is done in time within so many times what it takes alone


@dataclass(frozen=True)
class LoadRow:
    """One policy at one load, on one clock; times in seconds, None where there was nothing to measure.

    Attributes:
        fifo_busy: share of time that the policy "fifo" is busy at this load.
        rate_rps: requests per second at this load.
        preview_p50_s, preview_p95_s, preview_p99_s: from the request of a grid to its last preview.
        refine_p95_s, pick_to_final_p50_s: from the pick to the refined picture.
        goodput: share of requests done within IN_TIME times their time alone; refusals count as misses.
        preview_goodput: the same for grids only.
        image_steps_per_s: throughput when there is always work.
        cancel_ticks_p95: ticks from a cancel to its effect.
        speculative_hit_rate: share of picks that had been refined ahead, at least in part.
        wasted_step_share: share of all steps that were for speculative refinements given up.
    """

    policy: str
    clock: str
    fifo_busy: float
    rate_rps: float
    requests: int
    refused: int
    preview_p50_s: float | None
    preview_p95_s: float | None
    preview_p99_s: float | None
    refine_p95_s: float | None
    pick_to_final_p50_s: float | None
    goodput: float | None
    preview_goodput: float | None
    image_steps_per_s: float | None
    cancel_ticks_p95: float | None
    speculative_hit_rate: float | None
    wasted_step_share: float


def alone_s(kind: str, costs: Costs, pace: float) -> float:
    """Return the seconds of a grid or a refinement on an idle worker."""
    if kind == "preview":
        return pace * PREVIEW_STEPS * costs.tick(ROWS * GRID) + GRID * costs.decode_s + costs.encode_s
    return pace * FULL_STEPS * costs.tick(ROWS) + costs.decode_s + costs.encode_s


def visits_per_second(visits: Sequence[Visit], fifo_busy: float, costs: Costs, pace: float) -> float:
    """Return the visits per second at which the policy fifo keeps the device busy for this share of time."""
    picks = sum(visit.pick is not None and visit.leave_s is None for visit in visits) / len(visits)
    return fifo_busy / (alone_s("preview", costs, pace) + picks * alone_s("refine", costs, pace))


def make_row(
    policy: str,
    clock: str,
    fifo_busy: float,
    span_s: float,
    record: RequestLog,
    made: Mapping[str, int],
    costs: Costs,
    pace: float,
    image_steps_per_s: float | None,
) -> LoadRow:
    """Make the row of a run with requests during `span_s` seconds; times leave out cancelled requests."""
    grids = [request for request in record.requests if request.kind == "preview"]
    finals = [request for request in record.requests if request.kind == "refine"]
    outcomes = Counter(request.outcome for request in record.requests)
    made_steps = sum(made[kind] for kind in ("preview", "refine", "speculative"))
    waits, picks = _seconds(grids), _seconds(finals)
    return LoadRow(
        policy=policy,
        clock=clock,
        fifo_busy=fifo_busy,
        rate_rps=len(record.requests) / span_s,
        requests=len(record.requests),
        refused=outcomes["refused"],
        preview_p50_s=_percentile(waits, 50),
        preview_p95_s=_percentile(waits, 95),
        preview_p99_s=_percentile(waits, 99),
        refine_p95_s=_percentile(picks, 95),
        pick_to_final_p50_s=_percentile(picks, 50),
        goodput=_in_time(record.requests, costs, pace),
        preview_goodput=_in_time(grids, costs, pace),
        image_steps_per_s=image_steps_per_s,
        cancel_ticks_p95=_percentile([float(ticks) for ticks in record.cancel_ticks], 95),
        speculative_hit_rate=_share(request.guessed_steps > 0 for request in finals),
        wasted_step_share=made["wasted"] / max(1, made_steps),
    )


def _seconds(requests: Sequence[TimedRequest]) -> list[float]:
    return [request.seconds for request in requests if request.outcome == "done"]


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def _share(truths: Iterable[bool]) -> float | None:
    values = list(truths)
    return sum(values) / len(values) if values else None


def _in_time(requests: Sequence[TimedRequest], costs: Costs, pace: float) -> float | None:
    return _share(
        request.seconds <= IN_TIME * alone_s(request.kind, costs, pace)
        for request in requests
        if request.outcome != "cancelled"
    )
