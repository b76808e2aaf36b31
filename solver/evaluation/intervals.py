"""Bootstrap intervals over prompts, and equivalent numbers of evaluations.

Pictures of one prompt are not independent, so every interval resamples prompts, each with all its pictures
(cluster bootstrap, Davison & Hinkley 1997, §3.8). Two solvers are compared on the same prompts and seeds.
Results are deterministic for a seed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean and the ends of its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


class Evaluations(NamedTuple):
    """A number of evaluations, or a bound outside of the measured curve.

    Attributes:
        number: of evaluations, not rounded.
        relation: "=" for an exact number, "≤" if the curve exceeds the quality already at its first point
            `number`, ">" if it stays below at its last point `number`.
    """

    number: float
    relation: str

    def __str__(self) -> str:
        return f"{self.number:.3g}" if self.relation == "=" else f"{self.relation} {self.number:.3g}"


class EvaluationsInterval(NamedTuple):
    """Equivalent evaluations and the ends of their interval, each with its own relation."""

    value: Evaluations
    low: Evaluations
    high: Evaluations

    def __str__(self) -> str:
        return f"{self.value} [{self.low}, {self.high}]"


def mean_interval(
    values: ArrayLike,
    prompts: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the mean over pictures and its percentile bootstrap interval over prompts.

    Args:
        values: one number per picture, [R].
        prompts: the prompt of each picture, as integers, [R].
        level: the interval's coverage, in (0, 1).
        resamples: bootstrap samples. With 10,000, the Monte Carlo error of the ends is about 1 % of the
            width.

    Raises:
        ValueError: different lengths, fewer than two prompts, or values that are not finite.
    """
    v = _finite("values", values)
    sums, counts = _per_prompt(v[:, None] if v.ndim == 1 else v, prompts)
    if sums.shape[1] != 1:
        raise ValueError(f"values must have one number per picture, not the shape {v.shape}.")
    means = _resampled_means(sums, counts, resamples, seed)[:, 0]
    low, high = np.quantile(means, tails(level))
    return Interval(float(v.mean()), float(low), float(high))


def difference_interval(
    a: ArrayLike,
    b: ArrayLike,
    prompts: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the mean of a − b, and its paired bootstrap interval over prompts.

    Args:
        a, b: one number per picture for two solvers; equal rows have the same prompt and noise, [R].
        prompts, level, resamples, seed: as in `mean_interval`.

    Raises:
        ValueError: as `mean_interval`.
    """
    x, y = _finite("a", a), _finite("b", b)
    if x.shape != y.shape:
        raise ValueError(f"A paired difference needs as many rows in a as in b, not {len(x)} and {len(y)}.")
    return mean_interval(x - y, prompts, level=level, resamples=resamples, seed=seed)


def equivalent_evaluations(nfe: ArrayLike, curve: ArrayLike, quality: float) -> Evaluations:
    """Return the number of evaluations at which a baseline reaches a quality.

    The curve is replaced by its running maximum, since a larger budget may be left unused; this never makes
    the baseline look worse. Between the measured points it is linear in log(evaluations), as PSNR in dB
    approximately is for solvers whose error is a power of the step size.

    Args:
        nfe: evaluations, increasing, [M].
        curve: the baseline's quality at each, higher is better (negate a distance), [M].
        quality: the quality to reach, in the same unit.

    Returns:
        The number, or a bound at an end of the measured range; nothing is extrapolated.

    Raises:
        ValueError: different lengths, or numbers of evaluations that do not increase or are below 1.
    """
    n = _evaluations(nfe)
    q = _finite("quality", quality)
    return _bounded(float(_crossing(n, _finite("curve", curve)[None], q.reshape(1))[0]), n)


def equivalent_evaluations_interval(
    nfe: ArrayLike,
    curves: ArrayLike,
    qualities: ArrayLike,
    prompts: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> EvaluationsInterval:
    """Return `equivalent_evaluations` of the mean quality, with a bootstrap interval over prompts.

    The baseline's curve and the solver's quality are resampled together. An end of the interval is a bound if
    its quantile of the bootstrap samples lies outside of the measured range.

    Args:
        nfe: the baseline's evaluations, increasing, [M].
        curves: its quality for every picture, higher is better, [R, M].
        qualities: the quality of the tested solver for the same pictures, [R].
        prompts, level, resamples, seed: as in `mean_interval`.

    Raises:
        ValueError: as `equivalent_evaluations` and `mean_interval`.
    """
    c, q = _finite("curves", curves), _finite("qualities", qualities)
    if c.ndim != 2 or q.shape != c.shape[:1]:
        raise ValueError(f"Qualities {q.shape} and curves {c.shape} must have the same number of pictures.")
    sums, counts = _per_prompt(np.column_stack([c, q]), prompts)
    means = _resampled_means(sums, counts, resamples, seed)
    value = equivalent_evaluations(nfe, c.mean(axis=0), float(q.mean()))
    return resampled_evaluations_interval(nfe, value, means[:, :-1], means[:, -1], level=level)


def resampled_evaluations_interval(
    nfe: ArrayLike, value: Evaluations, curves: ArrayLike, qualities: ArrayLike, *, level: float = 0.95
) -> EvaluationsInterval:
    """Return the interval of equivalent evaluations from joint bootstrap samples of curve and quality.

    Args:
        nfe: the baseline's evaluations, increasing, [M].
        value: the equivalent evaluations on the whole test set.
        curves: the baseline's quality in each bootstrap sample, higher is better, [S, M].
        qualities: the quality of the tested solver in the same samples, [S].
        level: the interval's coverage, in (0, 1).
    """
    n = _evaluations(nfe)
    crossings = _crossing(n, _finite("curves", curves), _finite("qualities", qualities))
    ends = tails(level)
    # Order statistics, as infinite values cannot be interpolated.
    low = float(np.quantile(crossings, ends[0], method="lower"))
    high = float(np.quantile(crossings, ends[1], method="higher"))
    return EvaluationsInterval(value, _bounded(low, n), _bounded(high, n))


def _evaluations(nfe: ArrayLike) -> Floats:
    n = _finite("nfe", nfe)
    if n.ndim != 1 or len(n) == 0 or n[0] < 1 or (np.diff(n) <= 0).any():
        raise ValueError(f"Numbers of evaluations must be at least 1 and increase, not {n.tolist()}.")
    return n


def _crossing(nfe: Floats, curves: Floats, qualities: Floats) -> Floats:
    """Return where each curve [S, M] first reaches its quality [S]; −∞ before the range, ∞ beyond it."""
    if curves.shape[1] != len(nfe):
        raise ValueError(
            f"A curve has {curves.shape[1]} points, but there are {len(nfe)} numbers of evaluations."
        )
    best = np.maximum.accumulate(curves, axis=1)
    reached = best >= qualities[:, None]
    right = reached.argmax(axis=1)
    left = np.maximum(right - 1, 0)
    rows = np.arange(len(best))
    low, high = best[rows, left], best[rows, right]
    share = np.divide(qualities - low, high - low, out=np.zeros(len(best)), where=high > low)
    count = np.exp(np.log(nfe[left]) + share * (np.log(nfe[right]) - np.log(nfe[left])))
    count = np.where(best[:, 0] > qualities, -math.inf, np.where(best[:, 0] == qualities, nfe[0], count))
    return np.where(reached[:, -1], count, math.inf)


def _bounded(count: float, nfe: Floats) -> Evaluations:
    if math.isinf(count):
        return Evaluations(float(nfe[0]), "≤") if count < 0 else Evaluations(float(nfe[-1]), ">")
    return Evaluations(count, "=")


def _finite(name: str, values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} contains a value that is not finite.")
    return array


def _per_prompt(values: Floats, prompts: ArrayLike) -> tuple[Floats, Floats]:
    """Return the sums over the pictures of each prompt, [P, columns], and their numbers, [P]."""
    index = np.asarray(prompts)
    if index.shape != values.shape[:1]:
        raise ValueError(f"prompts has the shape {index.shape} for {len(values)} values; give one per value.")
    names, inverse = np.unique(index, return_inverse=True)
    if len(names) < 2:
        raise ValueError("An interval over prompts needs at least two prompts.")
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, inverse, values)
    return sums, np.bincount(inverse).astype(np.float64)


def _resampled_means(sums: Floats, counts: Floats, resamples: int, seed: int) -> Floats:
    """Return the means of bootstrap samples of prompts, each with all its pictures, [resamples, columns]."""
    times = times_drawn(len(counts), resamples, seed)
    return (times @ sums) / (times @ counts)[:, None]


@lru_cache(maxsize=1)
def times_drawn(prompts: int, resamples: int, seed: int) -> Floats:
    """Return how often each prompt is drawn, [resamples, prompts]; cached, as a test set has many
    measures."""
    drawn = np.random.default_rng(seed).integers(prompts, size=(resamples, prompts))
    drawn += prompts * np.arange(resamples)[:, None]
    times = np.bincount(drawn.ravel(), minlength=resamples * prompts).astype(np.float64)
    times.flags.writeable = False
    return times.reshape(resamples, prompts)


def tails(level: float) -> tuple[float, float]:
    """Return the two quantiles that bound an interval of this coverage; raise ValueError outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"The level of an interval must be between 0 and 1, not {level}.")
    return (1 - level) / 2, (1 + level) / 2
