"""The load test: its trace, its two clocks, and what its rows say."""

import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from app.models import ROOT, ImageModel
from app.worker.costs import Costs
from app.worker.scheduling import SPECULATED_SHARE
from tools.load import starts, trace
from tools.load.__main__ import QUICK_S, QUICK_SATURATED_S, QUICK_SPAN_S, quick_span_s
from tools.load.figures import LoadRow, alone_s, make_row, visits_per_second
from tools.load.plots import draw_rows
from tools.load.policies import POLICIES
from tools.load.runs import Meter, replay, replay_virtually, saturate, saturate_virtually
from tools.load.soak import soak
from tools.load.starts import DEVICES, STARTS, calibrated, noisy
from tools.load.trace import Visit
from tools.load.virtual import VirtualClock
from tools.load.visitors import GRID, Regular, RequestLog, Visitor

COSTS = Costs((1, 2, 4, 8, 16, 32), (0.06, 0.07, 0.1, 0.14, 0.23, 0.43), decode_s=0.012, encode_s=0.004)
CALM = Visit(at=0, user=1, seed=0, pick=2, think_s=5)


def row_of(policy: str, busy: float, visits: list[Visit]) -> LoadRow:
    rate = visits_per_second(visits, busy, COSTS, 1.0)
    outcome = replay_virtually(policy, Meter(COSTS), visits, rate)
    span_s = visits[-1].at / rate
    return make_row(policy, "virtual", busy, span_s, outcome.record, outcome.made, COSTS, 1.0, None)


def test_the_shipped_trace_is_what_the_command_writes(tmp_path: Path) -> None:
    trace.save(trace.make_trace(trace.VISITS, trace.SEED), tmp_path / "trace.jsonl")
    assert trace.load() == trace.load(tmp_path / "trace.jsonl")


def test_arrivals_are_bursty_and_picks_uniform() -> None:
    visits = trace.make_trace(5000, 1)
    gaps = [b.at - a.at for a, b in itertools.pairwise(visits)]
    assert statistics.mean(gaps) == pytest.approx(1, rel=0.01)
    assert statistics.pstdev(gaps) > 1.02, "a Poisson process has 1"
    picks = [visit.pick for visit in visits if visit.pick is not None]
    assert len(picks) / len(visits) == pytest.approx(trace.PICKING, abs=0.03)
    assert all(
        picks.count(position) / len(picks) == pytest.approx(1 / GRID, abs=0.04) for position in range(4)
    )
    assert all(2 <= visit.think_s <= 10 for visit in visits)
    assert any(visit.cancel_s for visit in visits) and any(visit.leave_s for visit in visits)


@pytest.mark.parametrize("text", ["", "nonsense", '{"at": 1}', '{"at": 1, "colour": "red"}'])
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not a trace"):
        trace.load(path)


@pytest.mark.parametrize("policy", POLICIES)
def test_alone_a_visitor_waits_for_nobody(policy: str) -> None:
    outcome = replay_virtually(policy, Meter(COSTS), [CALM], 1.0)
    grid, final = outcome.record.requests
    # Nobody else waits, so pictures in between are shown; they may cost a tenth.
    assert alone_s("preview", COSTS, 1.0) <= grid.seconds <= 1.15 * alone_s("preview", COSTS, 1.0)
    if POLICIES[policy].speculates:
        assert final.guessed_steps == SPECULATED_SHARE * 40, "there was time enough"
        assert final.seconds < 0.5 * alone_s("refine", COSTS, 1.0)
    else:
        assert final.seconds <= 1.15 * alone_s("refine", COSTS, 1.0)


def test_every_request_ends() -> None:
    visits = trace.make_trace(60, 2)
    for policy in POLICIES:
        rate = visits_per_second(visits, 1.5, COSTS, 1.0)
        outcome = replay_virtually(policy, Meter(COSTS), visits, rate)
        outcomes = {request.outcome for request in outcome.record.requests}
        assert outcomes <= {"done", "refused", "cancelled"}
        grids = [request for request in outcome.record.requests if request.kind == "preview"]
        assert len(grids) == len(visits)


def test_cancelling_takes_effect_at_the_next_tick() -> None:
    record = RequestLog()
    clock = VirtualClock(POLICIES["speculative"], COSTS)
    for number in range(20):
        visit = replace(CALM, seed=1000 * number, cancel_s=0.05 * number)
        clock.call_at(0.1 * number, Visitor(visit, clock, record, True).arrive)
    clock.run()
    assert record.cancel_ticks
    assert max(record.cancel_ticks) <= 1


def test_the_ladder_does_what_it_is_for() -> None:
    visits = trace.load()[:300]
    fifo, best = row_of("fifo", 0.8, visits), row_of("step-priority", 0.8, visits)
    assert fifo.preview_p95_s and best.preview_p95_s and fifo.refine_p95_s and best.refine_p95_s
    assert best.preview_p95_s <= fifo.preview_p95_s / 4
    assert best.refine_p95_s <= 1.5 * fifo.refine_p95_s
    calm, guessing = row_of("step-priority", 0.3, visits), row_of("speculative", 0.3, visits)
    assert calm.preview_p95_s and guessing.preview_p95_s
    assert calm.pick_to_final_p50_s and guessing.pick_to_final_p50_s
    assert guessing.pick_to_final_p50_s < calm.pick_to_final_p50_s
    assert guessing.preview_p95_s <= calm.preview_p95_s + COSTS.tick(COSTS.knee)
    assert 0 < guessing.wasted_step_share < 1
    assert calm.wasted_step_share == 0


@pytest.mark.parametrize("factor, rows", STARTS[1:])
def test_a_wrong_calibration_is_forgotten_within_a_minute(factor: float, rows: int) -> None:
    clock = VirtualClock(
        POLICIES["speculative"],
        calibrated(DEVICES["two grids"], factor, rows),
        noisy(DEVICES["two grids"], rows),
    )
    for number in range(8):
        clock.call_at(random.Random(number).uniform(0, 5), Regular(number, clock).arrive)
    clock.run(60)
    assert clock.costs.knee in (16, 32), "32 rows do 9 % more a second than 16"
    assert clock.costs.tick(16) == pytest.approx(DEVICES["two grids"].tick(16), rel=0.2)


def test_the_page_says_what_was_measured_from_wrong_calibrations() -> None:
    rows = json.loads((ROOT / "docs/results/starts.json").read_text(encoding="utf-8"))
    assert starts.table(rows) in (ROOT / "docs/worker.md").read_text(encoding="utf-8")
    assert {(row["factor"], row["from_rows"]) for row in rows} == set(starts.MEASURED)


def test_a_wrong_calibration_is_measured_in_the_load_that_it_says() -> None:
    row = starts.measure("idle", "two grids", "speculative", (3.0, 4), seed=0, busy=0.3)
    assert row.preview_goodput and row.preview_goodput > 0.98
    for noise in starts.MACHINES.values():
        call_s = noisy(COSTS, 1, noise)
        mean_s = statistics.mean(call_s(8) for _ in range(20_000))
        assert mean_s == pytest.approx(noise.pace * COSTS.tick(8), rel=0.03)


def test_batches_make_more_of_a_second() -> None:
    alone = saturate_virtually("fifo", COSTS, 1.0, 60)
    assert saturate_virtually("step-priority", COSTS, 1.0, 60) > 1.2 * alone
    assert saturate_virtually("fifo", COSTS, 2.0, 60) == pytest.approx(alone / 2, rel=0.1)


def test_refusals_and_late_ones_are_misses_and_cancelled_ones_are_not_counted() -> None:
    record = RequestLog()
    for outcome, seconds in (("done", 0.5), ("done", 500.0), ("refused", None), ("cancelled", 0.1)):
        request = record.ask("preview", 0.0)
        request.outcome, request.ended = outcome, seconds  # type: ignore[assignment]
    made = {"preview": 10, "refine": 0, "speculative": 30, "wasted": 20}
    row = make_row("fifo", "real", 0.3, 10, record, made, COSTS, 1.0, 5.0)
    assert row.goodput == row.preview_goodput == pytest.approx(1 / 3)
    assert (row.requests, row.refused, row.rate_rps) == (4, 1, 0.4)
    assert row.wasted_step_share == 0.5
    assert row.refine_p95_s is None and row.cancel_ticks_p95 is None


def test_a_quick_run_is_short_on_a_slow_machine_too() -> None:
    longest_s = (QUICK_S - 6 * QUICK_SATURATED_S) / 18
    spans = [quick_span_s(longest_s, COSTS, pace) for pace in (0.1, 1.0, 3.0, 30.0)]
    assert spans[0] == QUICK_SPAN_S and spans == sorted(spans, reverse=True)
    assert longest_s / 4 == spans[-1] < spans[1] <= QUICK_SPAN_S
    assert 18 * longest_s + 6 * QUICK_SATURATED_S <= 600


@pytest.mark.slow
def test_a_run_ends_in_time_whatever_is_left(model: ImageModel) -> None:
    began = time.monotonic()
    visits = [replace(CALM, at=0.01 * n, seed=1000 * n, user=n) for n in range(200)]
    outcome = replay("fifo", model, COSTS, visits, rate=1.0, longest_s=1.0)
    assert time.monotonic() - began < 10
    assert any(request.outcome == "running" for request in outcome.record.requests)


@pytest.mark.slow
def test_the_worker_itself_runs_the_trace(model: ImageModel) -> None:
    visits = [replace(CALM, at=0.1 * n, seed=1000 * n, think_s=0.05) for n in range(6)]
    visits[3] = replace(visits[3], cancel_s=0.001)
    visits[4] = replace(visits[4], leave_s=0.001)
    outcome = replay("fifo", model, COSTS, visits, rate=2.0)
    assert {request.outcome for request in outcome.record.requests} <= {"done", "cancelled"}
    assert sum(request.outcome == "done" for request in outcome.record.requests) >= 8
    assert outcome.made["speculative"] == 0
    guessed = replay("speculative", model, COSTS, [replace(CALM, think_s=1.0)], rate=1.0)
    assert [request.outcome for request in guessed.record.requests] == ["done", "done"]
    assert guessed.made["speculative"] >= guessed.record.requests[1].guessed_steps > 0
    rate, pace = saturate("fifo", model, COSTS, 0.5)
    assert rate > 0 and pace > 0


@pytest.mark.slow
def test_the_soak_loses_nothing(model: ImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.load.soak.USERS", 6)
    monkeypatch.setattr("tools.load.soak.THINKING_S", 0.05)
    monkeypatch.setattr("tools.load.soak.FAILING", 1 / 20)
    soaked = soak(model, COSTS, 4)
    assert soaked.lost == 0
    assert soaked.failing_calls > 0
    assert soaked.outcomes["failed"] > 0 and soaked.outcomes["done"] > 0


@pytest.mark.slow
def test_the_command_tells_draws_and_refuses(tmp_path: Path, tiny_folder: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "tools.load",
            "--model",
            str(tiny_folder),
            "--device",
            "cpu",
            *options,
        ]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)

    out = tmp_path / "rows.json"
    done = run("--virtual", "--visits", "40", "--busy", "0.5", "--json", str(out), "--plots", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    assert [row["policy"] for row in rows] == list(POLICIES)
    assert all(row["clock"] == "virtual" and row["image_steps_per_s"] > 0 for row in rows)
    assert (tmp_path / "load.png").stat().st_size > 10_000
    for nonsense in (["--busy", "0"], ["--visits", "0"], ["--policies", "magic"]):
        refused = run(*nonsense)
        assert refused.returncode == 2
        assert "Traceback" not in refused.stderr
    missing = run("--model", str(tmp_path / "nowhere"))
    assert missing.returncode == 1
    assert "Can't start" in missing.stderr and "Traceback" not in missing.stderr


def test_rows_without_a_measure_can_be_drawn(tmp_path: Path) -> None:
    rows = [row_of("fifo", 0.3, [replace(CALM, pick=None), replace(CALM, at=2, seed=1000, pick=None)])]
    draw_rows(rows, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").exists()


def test_on_the_virtual_clock_calls_take_what_they_took() -> None:
    meter = Meter(COSTS)
    for seconds in (0.9, 1.1):
        meter(seconds, GRID)
    assert meter.calls == {2 * GRID: 1.0} and meter.pace == pytest.approx(1 / COSTS.tick(2 * GRID))
    grid = replay_virtually("step-priority", meter, [replace(CALM, pick=None)], 1.0).record.requests[0]
    shown_s = 6 * GRID * COSTS.decode_s  # once with every call at most
    assert 6.0 <= grid.seconds <= 6.0 + shown_s + COSTS.encode_s + 1e-9
    slower = Meter(COSTS)
    slower(2 * COSTS.tick(2), 1)  # of calls with more rows it knows the pace alone
    assert replay_virtually("step-priority", slower, [CALM], 1.0).record.requests[0].seconds == pytest.approx(
        2 * 6 * COSTS.tick(2 * GRID), rel=0.2
    )
