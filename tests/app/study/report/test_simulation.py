"""Simulated studies lead back to the effect that was put in."""

import math

import numpy as np
import pytest

from app.study.plan.study_file import EXAMPLE, read_study
from app.study.report.analysis import time_ratio
from app.study.report.simulation import Truth, measure_coverage, simulated_trials


def test_the_mixed_model_and_the_bootstrap_find_the_true_ratio() -> None:
    study = read_study(EXAMPLE)
    truth = Truth(ratio=0.5, effect=0.05, noise=0.2)
    table = simulated_trials(study, 16, truth, np.random.default_rng(3))
    ratio = time_ratio(table, "consistency", "full")
    for interval in (ratio.paired, ratio.mixed, ratio.bootstrap):
        assert interval and interval.low < 0.5 < interval.high and interval.high / interval.low < 1.9
    assert 1 / time_ratio(table, "full", "consistency", full=False).paired.value == pytest.approx(
        ratio.paired.value
    )


def test_the_primary_interval_contains_the_true_ratio_often_enough() -> None:
    *_, last = measure_coverage(read_study(EXAMPLE), 12, 60, Truth())
    assert last.coverage >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / 60)
    assert abs(math.log(last.mean_ratio / 0.54)) < 0.1
