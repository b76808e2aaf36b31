"""Intervals, models and corrections agree with published examples and with counts by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from app.study.report import statistics
from app.study.report.statistics import holm, mean_interval, rank_biserial


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, math.nan, 0.9])[0] == 1.0 and math.isnan(holm([math.nan])[0])


def test_rank_biserial_by_hand() -> None:
    assert rank_biserial(np.array([1.0, 2, -3, 4, 0])) == pytest.approx((7 - 3) / 10)
    assert rank_biserial(np.zeros(3)) == 0


def test_the_interval_of_a_single_value_is_infinite() -> None:
    assert mean_interval(np.array([1.0]), 0.95).high == math.inf


def test_a_normal_sample_has_students_interval() -> None:
    values = np.array([1.0, 2, 3, 4])
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    mine = mean_interval(values, 0.9)
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high))


# Randall (1989): bitterness of wine, 1 to 5, counted by temperature and contact with the skins.
WINE = {(0, 0): [4, 9, 5, 0, 0], (0, 1): [1, 7, 8, 2, 0], (1, 0): [0, 5, 8, 3, 2], (1, 1): [0, 1, 5, 7, 5]}


# Wretenberg and others (1993): effort to arise from four stools, one row for each of nine people.
STOOLS = [[12, 15, 12, 10], [10, 14, 13, 12], [7, 14, 13, 9], [7, 11, 10, 9], [8, 11, 8, 7], [9, 11, 11, 10],
          [8, 12, 12, 11], [7, 11, 8, 7], [9, 13, 10, 8]]  # fmt: skip


def test_odds_of_the_wine_data() -> None:
    """2.503 for warmth and 1.528 for contact (Christensen's vignette of R's package ordinal)."""
    rows = [(*key, n) for key, counts in WINE.items() for n, c in enumerate(counts, 1) for _ in range(c)]
    values = np.array(rows, dtype=float)
    found, errors = statistics.proportional_odds(values[:, 2], values[:, :2], np.arange(len(values)))
    assert found == pytest.approx([2.503, 1.528], abs=5e-4) and (errors > 0).all()


def test_the_mixed_model_of_the_stools() -> None:
    """Stool 2 against stool 1: 3.8889, standard error 0.5187 (Pinheiro and Bates 2000, section 1.2)."""
    rows = pd.DataFrame(
        [(str(who), n, effort) for who, row in enumerate(STOOLS) for n, effort in enumerate(row)],
        columns=["participant", "stool", "effort"],
    )
    fixed = pd.DataFrame({f"stool_{n}": (rows["stool"] == n).astype(float) for n in (1, 2, 3)})
    found = statistics.mixed_effect(rows["effort"].astype(float), fixed, rows[["participant"]])
    assert found == pytest.approx((3.8889, 0.5187), abs=1e-4)
