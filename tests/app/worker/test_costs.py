"""What ticks cost: the curve, its knee, and the calibration that measures it."""

import time
from typing import Any

import pytest
import torch

from app.models.memory import is_out_of_memory, split_on_oom
from app.worker.calibration import measure_costs
from app.worker.costs import LONGEST_S, Costs


def test_times_lie_on_the_line_through_the_measurements() -> None:
    costs = Costs((2, 4, 8), (1.0, 1.5, 2.5), 0.1)
    assert [costs.tick(rows) for rows in (1, 2, 3, 4, 6, 8)] == [1.0, 1.0, 1.25, 1.5, 2.0, 2.5]
    assert costs.tick(16) == pytest.approx(4.5), "and go on beyond the last"
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


def test_calibration_stops_soon_after_the_knee() -> None:
    asked: list[int] = []

    def call(rows: int) -> None:
        asked.append(rows)
        time.sleep(0.02 * max(1, rows / 4))

    costs = measure_costs(call, lambda: time.sleep(0.005), lambda: time.sleep(0.002))
    assert costs.knee == 4
    assert max(asked) == 8
    assert 0.002 <= costs.encode_s < 0.005 <= costs.decode_s < 0.05


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
