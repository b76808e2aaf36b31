"""Estimates with intervals, models and corrections: the statistics behind the comparisons of a report."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

RESAMPLES = 5000
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """An estimate and its interval."""

    value: float
    low: float
    high: float

    def exp(self) -> Estimate:
        """Return the estimate of a ratio from that of its logarithm."""
        return Estimate(*(math.exp(x) if x < 700 else math.inf for x in (self.value, self.low, self.high)))


def around(value: float, half: float) -> Estimate:
    """Return an estimate with a symmetric interval."""
    return Estimate(value, value - half, value + half)


def mean_interval(values: np.ndarray, level: float) -> Estimate:
    """Return the mean with Student's t interval, which is infinite for fewer than two values."""
    mean = float(np.mean(values)) if len(values) else math.nan
    if len(values) < 2:
        return Estimate(mean, -math.inf, math.inf)
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return around(mean, float(half))


def bootstrap_mean(values: np.ndarray, level: float) -> Estimate:
    """Return the mean with its bias-corrected and accelerated bootstrap interval (Efron 1987)."""
    if np.ptp(values) == 0:
        return Estimate(float(values[0]), float(values[0]), float(values[0]))
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=level, rng=np.random.default_rng(SEED)
    ).confidence_interval
    return Estimate(float(np.mean(values)), float(result.low), float(result.high))


def mixed_effect(values: pd.Series, fixed: pd.DataFrame, random: pd.DataFrame) -> tuple[float, float] | None:
    """Fit a mixed model by restricted maximum likelihood, with crossed random intercepts for `random`.

    Returns the effect of the first column of `fixed` and its standard error; None if the fit fails.
    """
    import statsmodels.formula.api as smf

    rows = pd.concat([values.rename("value"), fixed, random], axis=1).assign(everything=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as a variance at its bound: tasks have no effect
        try:
            model = smf.mixedlm(
                f"value ~ {' + '.join(fixed)}", rows, groups="everything", re_formula="0",
                vc_formula={name: f"0 + C({name})" for name in random},
            )  # fmt: skip
            fit = model.fit(reml=True, method=["lbfgs", "powell"])
        except (np.linalg.LinAlgError, ValueError):
            return None
    value, error = float(fit.params[fixed.columns[0]]), float(fit.bse[fixed.columns[0]])
    return (value, error) if fit.converged and math.isfinite(value) and math.isfinite(error) else None


def proportional_odds(
    answers: np.ndarray, features: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a cumulative-link model with the logit link (McCullagh 1980).

    Returns the coefficient of each column of `features`, and their standard errors, clustered by `groups`.
    Raises ValueError if it does not converge.
    """
    from statsmodels.miscmodels.ordinal_model import OrderedModel

    _, codes = np.unique(answers, return_inverse=True)
    _, clusters = np.unique(groups, return_inverse=True)
    count = features.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence is checked below
        try:
            fit = OrderedModel(codes, features, distr="logit").fit(
                method="bfgs", maxiter=500, disp=0, cov_type="cluster", cov_kwds={"groups": clusters}
            )
            values, errors = fit.params[:count], fit.bse[:count]
        except (np.linalg.LinAlgError, ValueError) as error:
            raise ValueError("its model can't be fitted") from error
    if not fit.mle_retvals["converged"] or not np.all(
        np.isfinite([*values, *errors]) & (np.abs([*values, *errors]) > 0)
    ):
        raise ValueError("its model did not converge")
    return values, errors


def rank_biserial(differences: np.ndarray) -> float:
    """Return the matched-pairs rank-biserial correlation (Kerby 2014).

    It is (positive ranks − negative ranks) ÷ all ranks, without the differences of 0.
    """
    d = differences[differences != 0]
    if len(d) == 0:
        return 0.0
    ranks = stats.rankdata(np.abs(d))
    return float((ranks[d > 0].sum() - ranks[d < 0].sum()) / ranks.sum())


def holm(ps: Sequence[float]) -> list[float]:
    """Return Holm's (1979) adjusted p values; NaN stays NaN and does not count."""
    from statsmodels.stats.multitest import multipletests

    known = [p for p in ps if not math.isnan(p)]
    adjusted = iter(multipletests(known, method="holm")[1] if known else ())
    return [p if math.isnan(p) else float(next(adjusted)) for p in ps]
