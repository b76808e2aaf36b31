"""What ticks cost: the curve, its knee, the calibration that measures it, and what the ticks teach."""

import random
import time
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.models.memory import is_out_of_memory, split_on_oom
from app.worker.calibration import measure_costs
from app.worker.costs import EXPLORING, LONGEST_S, MAX_ROWS, WORTH, Costs
from tools.load.starts import DEVICES, STARTS, Noise, calibrated, noisy

TWO_GRIDS, ONE_GRID = DEVICES["two grids"], DEVICES["one grid"]
FULL = 10**6  # rows that wait


def test_times_lie_on_the_line_through_the_measurements() -> None:
    costs = Costs((2, 4, 8), (1.0, 1.5, 2.5), 0.1)
    assert [costs.tick(rows) for rows in (1, 2, 3, 4, 6, 8)] == [1.0, 1.0, 1.25, 1.5, 2.0, 2.5]
    assert costs.tick(16) == pytest.approx(5.0), "and grow in proportion beyond the last"
    assert Costs((2,), (1.0,), 0).tick(6) == 3


def test_the_knee_is_where_more_rows_are_no_faster() -> None:
    assert Costs((1, 2, 4, 8), (0.1, 0.1, 0.1, 0.2), 0).knee == 4
    assert Costs((1, 2, 4, 8), (0.1, 0.2, 0.4, 0.8), 0).knee == 2, "a picture with guidance always fits"
    assert Costs((1, 2, 4), (0.3, 0.4, LONGEST_S + 0.01), 0).knee == 2, "no tick may take too long"


@pytest.mark.parametrize(
    "rows, seconds", [((), ()), ((1, 2), (1.0,)), ((2, 1), (1.0, 1.0)), ((0, 1), (1.0, 1.0)), ((1,), (0.0,))]
)
def test_senseless_costs_are_refused(rows: tuple, seconds: tuple) -> None:
    with pytest.raises(ValueError):
        Costs(rows, seconds, 0.0)


def test_calibration_stops_soon_after_the_knee(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    now = 0.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    def call(rows: int) -> None:
        asked.append(rows)
        wait(0.02 * max(1, rows / 4))

    monkeypatch.setattr("app.worker.calibration.time", SimpleNamespace(perf_counter=lambda: now))
    costs = measure_costs(call, lambda: wait(0.005), lambda: wait(0.002))
    assert costs.knee == 4
    assert max(asked) == 8
    assert costs.encode_s == pytest.approx(0.002) and costs.decode_s == pytest.approx(0.005)


def test_calibration_bears_memory_that_runs_out() -> None:
    def call(rows: int) -> None:
        if rows > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        time.sleep(0.01)

    assert measure_costs(call, lambda: None, lambda: None).rows[-1] == 8

    def broken(rows: int) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="assert"):
        measure_costs(broken, lambda: None, lambda: None)


def test_what_does_not_fit_is_done_in_halves_and_in_order() -> None:
    sizes: list[int] = []

    def work(part: Any) -> Any:
        sizes.append(len(part))
        if len(part) > 3:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate")
        return [2 * item for item in part]

    assert split_on_oom(work, range(10)) == [2 * item for item in range(10)]
    assert sizes == [10, 5, 2, 3, 5, 2, 3]
    assert split_on_oom(work, []) == []


def test_what_fits_not_even_alone_and_other_errors_are_raised() -> None:
    def full(part: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def broken(part: Any) -> Any:
        raise RuntimeError("shapes do not match")

    with pytest.raises(torch.OutOfMemoryError):
        split_on_oom(full, [1, 2, 3])
    with pytest.raises(RuntimeError, match="shapes"):
        split_on_oom(broken, [1, 2])
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("true", [TWO_GRIDS, ONE_GRID], ids=["two grids", "one grid"])
@pytest.mark.parametrize("factor, rows", STARTS[1:])
def test_a_wrong_calibration_is_forgotten_within_a_minute(true: Costs, factor: float, rows: int) -> None:
    for seed in range(5):
        costs, now, call = calibrated(true, factor, rows), 0.0, noisy(true, seed)
        while now < 60:
            seconds = call(costs.room(FULL))
            costs, now = costs.learn(costs.room(FULL), seconds), now + seconds
        assert costs.knee / costs.tick(costs.knee) > true.knee / true.tick(true.knee) / (1 + WORTH)
        assert true.knee <= costs.knee <= 2 * true.knee
        assert costs.tick(costs.knee) == pytest.approx(true.tick(costs.knee), rel=0.2)


def test_times_stay_positive_and_increase_whatever_is_measured() -> None:
    rng = random.Random(1)
    for seed in range(20):
        costs = calibrated(TWO_GRIDS, rng.choice((1 / 3, 1, 3)), 4)
        for _ in range(500):
            costs = costs.learn(rng.randint(1, 100), 10 ** rng.uniform(-6, 3))
            assert all(0 < a <= b for a, b in pairwise(costs.seconds)), seed
            assert 2 <= costs.knee <= costs.rows[-1] <= MAX_ROWS


@pytest.mark.parametrize("slower", [0.01, 3.0, 10.0, 1000.0])
def test_a_single_slow_call_never_moves_the_knee(slower: float) -> None:
    for seed in range(100):
        rng = random.Random(seed)
        seconds = [0.02 * rng.uniform(0.5, 2)]
        while len(seconds) < 6:
            seconds.append(seconds[-1] * rng.uniform(1.05, 2))
        costs = Costs((1, 2, 4, 8, 16, 32), tuple(seconds), 0.01)
        knee, size = costs.knee, rng.choice(costs.rows)
        sizes = [*rng.choices(costs.rows, k=20)]
        for rows in (*sizes, size, *sizes):
            costs = costs.learn(rows, costs.tick(rows))
        assert costs.knee == knee
        costs = costs.learn(size, slower * costs.tick(size))
        for rows in sizes:
            assert costs.knee == knee
            costs = costs.learn(rows, costs.tick(rows))


def test_the_knee_does_not_flap() -> None:
    for true in (TWO_GRIDS, ONE_GRID):
        for seed in range(5):
            rng, call = random.Random(seed), noisy(true, seed, Noise(jitter=0.1, slow=0.02))
            costs, moves = calibrated(true, 1.0, 1), 0
            for _ in range(5000):
                rows = rng.choice((2, 4, 8, costs.room(FULL)))
                before, costs = costs.knee, costs.learn(rows, call(rows))
                moves += costs.knee != before
            assert moves <= 2, "of 5,000 calls"


def test_where_everything_gets_slower_times_follow_and_the_knee_stays() -> None:
    costs = TWO_GRIDS
    for rows in 30 * (2, 8, 16):
        costs = costs.learn(rows, 1.8 * TWO_GRIDS.tick(rows))
    assert costs.tick(8) == pytest.approx(1.8 * TWO_GRIDS.tick(8), rel=0.05)
    assert costs.tick(4) == pytest.approx(1.8 * TWO_GRIDS.tick(4), rel=0.15), "not called, but a neighbour"
    assert costs.knee == 16
    for rows in 30 * (2, 8, 16):
        costs = costs.learn(rows, 5 * TWO_GRIDS.tick(rows))
    assert costs.knee == 4, "previews that arrive meanwhile would wait for too long"


def test_now_and_then_a_call_may_be_larger_than_the_knee() -> None:
    costs, called = ONE_GRID, []
    for _ in range(10 * EXPLORING):
        assert costs.room(costs.knee) == costs.knee, "only where more wait than fit"
        called.append(costs.room(FULL))
        costs = costs.learn(called[-1], ONE_GRID.tick(called[-1]))
    assert set(called) == {4, 8, 16}
    assert 8 <= called.count(4) <= 10 and 8 <= called.count(16) <= 10
    slow = replace(ONE_GRID, seconds=tuple(3 * s for s in ONE_GRID.seconds), unseen=(EXPLORING,) * 6)
    assert 2 * slow.tick(slow.knee) > LONGEST_S
    assert slow.room(FULL) < slow.knee, "the larger one could take too long"


def test_where_memory_has_room_sizes_go_on_beyond_those_measured() -> None:
    costs = Costs((1, 2, 4), (0.01, 0.03, 0.06), 0.01)
    for _ in range(60 * EXPLORING):
        costs = costs.learn(costs.room(FULL), 0.01)
    assert costs.knee >= MAX_ROWS // 2 and costs.rows[-1] == MAX_ROWS
