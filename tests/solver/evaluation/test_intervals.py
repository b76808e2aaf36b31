"""How sure means over prompts are, and what bounds say that curves cannot."""

import math

import numpy as np
import pytest

from solver.evaluation import intervals


def clustered(seed: int, prompts: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures that share most of their value with those of the same prompt; their mean is 0."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(prompts, 1)) + 0.3 * rng.normal(size=(prompts, each))
    return values.ravel(), np.repeat(np.arange(prompts), each)


def test_the_interval_covers_the_truth_as_often_as_it_says_because_it_resamples_prompts() -> None:
    def covered(by_prompt: bool) -> float:
        hits = []
        for seed in range(200):
            values, prompts = clustered(seed, prompts=40, each=4)
            index = prompts if by_prompt else np.arange(len(values))
            interval = intervals.mean_interval(values, index, resamples=400)
            hits.append(interval.low <= 0 <= interval.high)
        return float(np.mean(hits))

    assert 0.89 <= covered(by_prompt=True) <= 0.99
    assert covered(by_prompt=False) < 0.8  # as if every picture of a prompt told something new


def test_the_interval_is_that_of_the_normal_law_for_many_prompts() -> None:
    values, prompts = clustered(0, prompts=300, each=2)
    interval = intervals.mean_interval(values, prompts)
    error = values.reshape(300, 2).mean(axis=1).std() / math.sqrt(300)
    assert interval.value == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.04)
    wider = intervals.mean_interval(values, prompts, level=0.99)
    assert wider.low < interval.low < interval.high < wider.high


def test_an_interval_depends_on_its_seed_alone_and_not_on_order_or_names_of_prompts() -> None:
    values, prompts = clustered(2, prompts=20, each=3)
    first = intervals.mean_interval(values, prompts, resamples=400, seed=5)
    assert first == intervals.mean_interval(values, prompts + 7, resamples=400, seed=5)
    order = np.random.default_rng(0).permutation(len(values))
    assert first == pytest.approx(
        intervals.mean_interval(values[order], prompts[order], resamples=400, seed=5)
    )
    assert first != intervals.mean_interval(values, prompts, resamples=400, seed=6)


def test_a_paired_difference_is_surer_than_its_two_sides() -> None:
    values, prompts = clustered(3, prompts=60, each=4)
    better = values + 0.1 + 0.05 * np.random.default_rng(4).normal(size=len(values))
    difference = intervals.difference_interval(better, values, prompts, resamples=1000)
    side = intervals.mean_interval(values, prompts, resamples=1000)
    assert 0.08 < difference.low < difference.value < difference.high < 0.12
    assert difference.high - difference.low < 0.1 * (side.high - side.low)
    same = intervals.difference_interval(values, values, prompts, resamples=100)
    assert same == (0, 0, 0)


def test_prompts_with_more_pictures_weigh_more_as_in_the_mean() -> None:
    values, prompts = [0.0, 1, 1, 1], [0, 1, 1, 1]
    interval = intervals.mean_interval(values, prompts, resamples=2000)
    assert interval == (0.75, 0, 1)


def test_intervals_refuse_what_has_none() -> None:
    for values, prompts, message in [
        (np.array([1.0, 2]), [0, 0], "at least two"),
        (np.array([1.0, 2]), [0, 1, 2], "one per value"),
        (np.array([1.0, math.inf]), [0, 1], "not finite"),
        (np.array([[1.0, 2], [3, 4]]), [0, 1], "one number per picture"),
    ]:
        with pytest.raises(ValueError, match=message):
            intervals.mean_interval(values, prompts, resamples=10)
    with pytest.raises(ValueError, match="between 0 and 1"):
        intervals.mean_interval([1.0, 2], [0, 1], level=95)
    with pytest.raises(ValueError, match="as many rows in a as in b"):
        intervals.difference_interval([1.0, 2], [1.0], [0, 1])


NFE = np.array([4, 5, 6, 8, 10, 15])


def test_equivalent_evaluations_are_exact_on_a_curve_that_is_linear_in_the_logarithm() -> None:
    curve = 20 + 10 * np.log(NFE)
    for n in (4, 4.5, 7, 10, 14, 15):
        found = intervals.equivalent_evaluations(NFE, curve, 20 + 10 * math.log(n))
        assert found.relation == "=" and found.number == pytest.approx(n)
    assert str(intervals.equivalent_evaluations(NFE, curve, curve[3])) == "8"


def test_beyond_the_measured_range_there_are_bounds_only() -> None:
    curve = 20 + 10 * np.log(NFE)
    assert intervals.equivalent_evaluations(NFE, curve, curve[0] - 1) == (4, "≤")
    assert intervals.equivalent_evaluations(NFE, curve, curve[-1] + 0.01) == (15, ">")
    assert str(intervals.equivalent_evaluations(NFE, curve, 99)) == "> 15"
    assert intervals.equivalent_evaluations([7], [1.0], 1.0) == (7, "=")


def test_a_curve_that_dips_is_the_best_within_a_budget() -> None:
    curve = [1.0, 3, 2, 2.5, 4, 5]
    assert intervals.equivalent_evaluations(NFE, curve, 2.9).number < 5
    assert 8 < intervals.equivalent_evaluations(NFE, curve, 3.1).number < 10
    numbers = [intervals.equivalent_evaluations(NFE, curve, q).number for q in np.linspace(1, 5, 30)]
    assert (np.diff(numbers) > 0).all()


def test_equivalent_evaluations_have_an_interval_around_the_truth_that_is_paired() -> None:
    base, prompts = clustered(5, prompts=80, each=3)
    rng = np.random.default_rng(6)
    curves = 20 + 10 * np.log(NFE) + 5 * base[:, None] + 0.5 * rng.normal(size=(len(base), len(NFE)))
    qualities = 20 + 10 * math.log(9) + 5 * base + 0.5 * rng.normal(size=len(base))
    found = intervals.equivalent_evaluations_interval(NFE, curves, qualities, prompts, resamples=1000)
    assert [end.relation for end in found] == ["=", "=", "="]
    assert found.low.number < found.value.number < found.high.number
    assert found.low.number < 9 < found.high.number < found.low.number + 1
    alone = intervals.equivalent_evaluations_interval(
        NFE, curves, rng.permutation(qualities), prompts, resamples=1000
    )
    assert alone.high.number - alone.low.number > 2 * (found.high.number - found.low.number)


def test_an_end_of_the_interval_beyond_the_range_is_said_as_a_bound() -> None:
    rng = np.random.default_rng(7)
    prompts = np.arange(50)
    curves = 20 + 10 * np.log(NFE) + np.zeros((50, 1))
    spread = rng.normal(size=50)
    near = curves[:, -1] - 0.1 + 3 * (spread - spread.mean())
    found = intervals.equivalent_evaluations_interval(NFE, curves, near, prompts, resamples=500)
    assert found.low.relation == "=" and found.high == (15, ">")
    below = intervals.equivalent_evaluations_interval(NFE, curves, near - 30, prompts, resamples=500)
    assert str(below) == "≤ 4 [≤ 4, ≤ 4]"
    for bad in ([4, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5]):
        with pytest.raises(ValueError, match="at least 1 and increase"):
            intervals.equivalent_evaluations(bad, curves[0], 30.0)
    with pytest.raises(ValueError, match="3 numbers of evaluations"):
        intervals.equivalent_evaluations(NFE[:3], curves[0], 30.0)
    with pytest.raises(ValueError, match="same number of pictures"):
        intervals.equivalent_evaluations_interval(NFE, curves, near[:9], prompts)
