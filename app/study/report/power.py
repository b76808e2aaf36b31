"""Compute how many participants a study needs, exactly for the paired t test on log times."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from app.study.shared import StudyProblem


@dataclass(frozen=True)
class Power:
    """The fewest participants that reach a power.

    Attributes:
        power: the probability that the test finds the effect.
        simulated: the same by simulation, with the standard error `error`.
    """

    participants: int
    power: float
    simulated: float
    error: float


def power_of(participants: int, ratio: float, spread: float, alpha: float = 0.05) -> float:
    """Return the power of the two-sided paired t test, by the noncentral t distribution.

    Args:
        ratio: of times, such as 1.85 or 0.54.
        spread: standard deviation of the participants' log ratios.
    """
    df = participants - 1
    shift = abs(math.log(ratio)) / spread * math.sqrt(participants)
    critical = stats.t.ppf(1 - alpha / 2, df)
    return float(stats.nct.sf(critical, df, shift) + stats.nct.cdf(-critical, df, shift))


def participants_needed(
    ratio: float, spread: float, power: float = 0.8, alpha: float = 0.05, most: int = 100_000
) -> Power:
    """Return the fewest participants with at least this power.

    Raises StudyProblem for impossible values, or if `most` participants are not enough.
    """
    if not (ratio > 0 and ratio != 1 and math.isfinite(ratio)):
        raise StudyProblem(f"the ratio must be above 0 and not 1, such as 1.85; it is {ratio:g}.")
    if not (spread > 0 and math.isfinite(spread)):
        raise StudyProblem(f"the spread must be above 0, such as 0.5; it is {spread:g}.")
    if not (0 < alpha < 1 and alpha < power < 1):
        raise StudyProblem("alpha and power must be between 0 and 1, and power above alpha.")
    low, high = 1, 2
    while power_of(high, ratio, spread, alpha) < power:
        low, high = high, 2 * high
        if high > most:
            raise StudyProblem(f"more than {most:,} participants would be needed.")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle, ratio, spread, alpha) >= power else (middle, high)
    simulated, error = simulate_power(high, ratio, spread, alpha)
    return Power(high, power_of(high, ratio, spread, alpha), simulated, error)


def simulate_power(
    participants: int, ratio: float, spread: float, alpha: float = 0.05, studies: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """Return the share of simulated studies whose test finds the effect, and its standard error."""
    drawn = np.random.default_rng(seed).normal(math.log(ratio), spread, (studies, participants))
    share = float((stats.ttest_1samp(drawn, 0, axis=1).pvalue < alpha).mean())
    return share, math.sqrt(share * (1 - share) / studies)
