"""Comparisons of conditions agree with published examples and with counts by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from lifelines.datasets import load_waltons

from app.study.report import analysis
from app.study.report.analysis import time_ratio

# Student (1908), The probable error of a mean: extra hours of sleep of ten patients with two drugs.
SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)


def sleep_table() -> pd.DataFrame:
    rows = [
        {"participant": str(who), "condition": drug, "task": "t", "position": place,
         "seconds": math.exp(hours),
         "outcome": "satisfied", "cap_s": 1000.0, "rating_q": hours}
        for place, (drug, column) in enumerate(zip("ab", SLEEP, strict=True))
        for who, hours in enumerate(column)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_students_sleep_data() -> None:
    """t = −4.0621, p = 0.002833, interval of the mean difference −2.4599 … −0.7001 (R's help of t.test)."""
    ratio = time_ratio(sleep_table(), "a", "b", full=False)
    logs = [math.log(each) for each in (ratio.paired.low, ratio.paired.value, ratio.paired.high)]
    assert logs == pytest.approx([-2.4598858, -1.58, -0.7001142], abs=1e-6)
    assert ratio.p == pytest.approx(0.002833, abs=1e-6)
    assert ratio.d * math.sqrt(10) == pytest.approx(-4.0621, abs=1e-4)


def test_ratings_of_the_sleep_data() -> None:
    """All nine differences that are not zero have one sign, so the effect is −1, and p about 2/2⁹."""
    change = analysis.rating_change(sleep_table(), "q", "a", "b", margin=0.5)
    assert change.effect == -1 and change.mean.value == pytest.approx(-1.58)
    assert change.p == pytest.approx(2 / 2**9, abs=0.006)
    assert not change.no_worse
    assert analysis.rating_change(sleep_table(), "q", "b", "a", margin=0.5).no_worse


def test_no_worse_is_what_the_interval_says() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        table = sleep_table()
        table["rating_q"] = rng.normal(4, 1, len(table))
        change = analysis.rating_change(table, "q", "a", "b", margin=0.7)
        assert change.no_worse == (change.mean.low > -0.7)


# Darwin (1876), The effects of cross and self fertilisation: by how many eighths of an inch the crossed plant
# of each of 15 pairs of maize was taller than the self-fertilised one; in Fisher (1935), The design of
# experiments.
MAIZE = (49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)


def maize_table() -> pd.DataFrame:
    rows = [
        {"participant": str(pair), "condition": how, "rating_q": float(inches)}
        for pair, taller in enumerate(MAIZE)
        for how, inches in (("crossed", 100 + taller), ("selfed", 100))
    ]
    return pd.DataFrame(rows)


def test_wilcoxon_and_t_of_darwins_maize() -> None:
    """Fisher (1935), § 17 gives t = 2.148; SciPy's help of `wilcoxon` the exact p of 0.041259765625.

    That p is also counted here: the negative differences have ranks 10 and 14, and of all 2¹⁵ ways to give
    15 ranks a sign, so many have a sum of 24 or less on one side. The effect is (96 − 24) / 120.
    """
    change = analysis.rating_change(maize_table(), "q", "crossed", "selfed", margin=1.0)
    ways = [1] + [0] * 120  # by the sum of the ranks that are negative
    for rank in range(1, 16):
        ways = [count + (ways[total - rank] if total >= rank else 0) for total, count in enumerate(ways)]
    assert change.p == pytest.approx(2 * sum(ways[:25]) / 2**15) == pytest.approx(0.041259765625)
    assert change.effect == pytest.approx(0.6)
    error = np.std(MAIZE, ddof=1) / math.sqrt(15)
    assert change.mean.value / error == pytest.approx(2.148, abs=5e-4)


def test_no_worse_of_darwins_maize_by_hand() -> None:
    """t at 14 degrees is 2.1448 for 95 % (in every table), so the interval is 20.933 ± 2.1448 · 9.746."""
    half = 2.1448 * float(np.std(MAIZE, ddof=1)) / math.sqrt(15)
    low = -314 / 15 - half
    for margin, expected in ((-low - 0.01, False), (-low + 0.01, True)):
        change = analysis.rating_change(maize_table(), "q", "selfed", "crossed", margin=margin)
        assert change.mean.low == pytest.approx(low, abs=1e-3)
        assert change.no_worse is expected and (change.no_worse_p < 0.025) is expected


def test_without_any_spread_being_no_worse_is_not_shown() -> None:
    table = maize_table().assign(rating_q=3.0)
    change = analysis.rating_change(table, "q", "selfed", "crossed", margin=1.0)
    assert math.isnan(change.no_worse_p) and not change.no_worse and change.p == 1


def test_waltons_flies() -> None:
    """lifelines documents a median of 56 for all of these flies, and that the group miR-137 dies sooner."""
    flies = load_waltons()
    table = pd.DataFrame(
        {
            "condition": flies["group"],
            "seconds": flies["T"].astype(float),
            "outcome": np.where(flies["E"] == 1, "satisfied", "timed_out"),
            "participant": [str(i) for i in range(len(flies))],
        }
    )
    assert analysis.survival(table.assign(condition="all"), "all")[1] == 56
    found = analysis.hazard_ratio(table, "miR-137", "control", 0.95)
    assert found.ratio.low > 1 and found.p < 1e-6


def test_give_ups_count_with_the_cap_and_are_censored() -> None:
    table = sleep_table()
    table.loc[table["condition"] == "a", "outcome"] = "gave_up"
    assert (analysis.counted_seconds(table)[:10] == 1000).all()
    assert analysis.survival(table, "a")[1] == math.inf
    with pytest.raises(analysis.LeftOut, match="fewer than two"):
        analysis.hazard_ratio(table, "a", "b", 0.95)


def test_remissions_of_leukaemia() -> None:
    """Freireich (1963): medians of 23 and 8 weeks; hazard ratio exp(1.572) (R's coxph, ties by Efron)."""
    treated = [6, 6, 6, 7, 10, 13, 16, 22, 23]
    censored = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    placebo = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]
    table = pd.DataFrame(
        {
            "condition": ["6-MP"] * 21 + ["placebo"] * 21,
            "seconds": np.array([*treated, *censored, *placebo], dtype=float),
            "outcome": ["satisfied"] * 9 + ["timed_out"] * 12 + ["satisfied"] * 21,
            "participant": [str(n) for n in range(42)],
        }
    )
    assert [analysis.survival(table, each)[1] for each in ("6-MP", "placebo")] == [23, 8]
    found = analysis.hazard_ratio(table, "placebo", "6-MP", 0.95)
    assert math.log(found.ratio.value) == pytest.approx(1.572, abs=1e-3)


@pytest.mark.parametrize(
    ("answers", "words"),
    [({"a": [3, 3, 3], "b": [3, 3, 3]}, "every answer was the same"),
     ({"a": [4, 5, 5], "b": [1, 2, 4]}, "has no bound"), ({"a": [1], "b": [2]}, "two participants")],
)  # fmt: skip
def test_odds_that_cannot_be_estimated_are_left_out_with_the_reason(answers: dict, words: str) -> None:
    rows = [(str(n), name, v) for name, values in answers.items() for n, v in enumerate(values)]
    table = pd.DataFrame(rows, columns=["participant", "condition", "rating_q"])
    with pytest.raises(ValueError, match=words):
        analysis.odds_ratio(table, "q", "a", "b")


def test_one_participant_is_too_few_to_compare() -> None:
    with pytest.raises(analysis.LeftOut, match="at least two"):
        time_ratio(sleep_table()[lambda t: t["participant"] == "0"], "a", "b")
