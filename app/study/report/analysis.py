"""Compare conditions by a table of trials: times, ratings and how trials ended, each with its interval.

Logarithms of times are compared within each participant, so a result is a ratio. A trial that was given up or
timed out counts with the time cap: its time would have been at least that.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from app.study.report.statistics import (
    Estimate,
    around,
    bootstrap_mean,
    mean_interval,
    mixed_effect,
    proportional_odds,
    rank_biserial,
)

UNFINISHED = ("gave_up", "timed_out")
TOO_FEW = "it takes at least two participants with both conditions"


class LeftOut(ValueError):
    """Two conditions can't be compared; `what` names the comparison."""

    def __init__(self, what: str, of: str, over: str, reason: str) -> None:
        super().__init__(f"{what} of {of} and {over} is left out: {reason}.")
        self.what, self.of, self.over, self.reason = what, of, over, reason


@dataclass(frozen=True)
class Ratio:
    """Time in the condition `of` ÷ time in `over`, by three methods.

    Attributes:
        paired: by Student's t on the participants' mean logarithms; the primary estimate.
        mixed: by a linear mixed model with effects of participant and task; None if it does not converge.
        bootstrap: by resampling participants.
        p: of the paired t test.
        d: its effect size, mean ÷ standard deviation of the differences (Cohen's d_z).
    """

    of: str
    over: str
    participants: int
    paired: Estimate
    mixed: Estimate | None
    bootstrap: Estimate
    p: float
    d: float
    p_holm: float = math.nan


@dataclass(frozen=True)
class RatingChange:
    """A rating in the condition `of` minus the rating in `over`, on the participants' means.

    Attributes:
        mean: of the differences.
        effect: the matched-pairs rank-biserial correlation, −1 to 1.
        p: of the Wilcoxon signed-rank test.
        no_worse_p: of a one-sided t test against −margin; NaN if all differences are the same.
        no_worse: whether the lower end of the two-sided interval lies above −margin.
    """

    question: str
    of: str
    over: str
    participants: int
    mean: Estimate
    effect: float
    p: float
    margin: float
    no_worse_p: float
    no_worse: bool
    p_holm: float = math.nan


@dataclass(frozen=True)
class OddsRatio:
    """How much likelier higher answers are in one condition, by a proportional-odds model.

    Attributes:
        odds: the odds of an answer above any given one, with `of` ÷ with `over`.
        p: of equal odds.
    """

    question: str
    of: str
    over: str
    participants: int
    odds: Estimate
    p: float
    p_holm: float = math.nan


@dataclass(frozen=True)
class HazardRatio:
    """How much sooner trials end satisfied with `of` than with `over` (Cox; above 1: sooner)."""

    of: str
    over: str
    ratio: Estimate
    p: float
    p_holm: float = math.nan


def exclude(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the trials to analyse, and how many each rule left out; the rules apply in this order."""
    left_out = {}
    rules = (
        ("practice trials", table["practice"]),
        ("trials of participants who did not finish", ~table["finished"]),
        ("trials interrupted by an end of the app", table["outcome"] == "interrupted"),
        ("trials that started again after that, with a known task", table["again"]),
        ("trials without an end in the log", table["outcome"] == "left"),
        ("trials with the page hidden for over half the time", table["hidden_s"] > table["seconds"] / 2),
    )
    gone = pd.Series(False, index=table.index)
    for words, rule in rules:
        left_out[words] = int((rule.astype(bool) & ~gone).sum())
        gone |= rule.astype(bool)
    return table[~gone].reset_index(drop=True), left_out


def counted_seconds(table: pd.DataFrame) -> pd.Series:
    """Return the seconds that each trial counts with: its own or, if it did not end satisfied, the cap."""
    unfinished = table["outcome"].isin(UNFINISHED)
    return table["seconds"].where(~unfinished, table["cap_s"]).clip(lower=0.05)


def log_means(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean logarithm of seconds, participants × conditions."""
    seconds = np.log(counted_seconds(table))
    return seconds.groupby([table["participant"], table["condition"]]).mean().unstack()


def geometric_mean(table: pd.DataFrame, condition: str, level: float) -> Estimate:
    """Return the geometric mean of a condition's seconds, with Student's interval over participants."""
    return mean_interval(log_means(table)[condition].dropna().to_numpy(), level).exp()


def differences(what: str, means: pd.DataFrame, of: str, over: str) -> np.ndarray:
    """Return each participant's mean with `of` minus that with `over`, for those who have both.

    Args:
        what: names the comparison in the error.
        means: participants × conditions.

    Raises:
        LeftOut: fewer than two participants have both.
    """
    found = (means[of] - means[over]).dropna().to_numpy() if {of, over} <= {*means} else np.empty(0)
    if len(found) < 2:
        raise LeftOut(what, of, over, TOO_FEW)
    return found


def time_ratio(table: pd.DataFrame, of: str, over: str, level: float = 0.95, full: bool = True) -> Ratio:
    """Compare times; `full` adds the mixed model and the bootstrap.

    Raises LeftOut if fewer than two participants have both conditions.
    """
    d = differences("the ratio of times", log_means(table), of, over)
    spread = float(np.std(d, ddof=1))
    p = float(stats.ttest_1samp(d, 0).pvalue) if spread > 0 else math.nan
    none = Estimate(math.nan, math.nan, math.nan)
    return Ratio(
        of,
        over,
        len(d),
        mean_interval(d, level).exp(),
        _mixed_ratio(table, of, over, level) if full else None,
        bootstrap_mean(d, level).exp() if full else none,
        p,
        float(np.mean(d)) / spread if spread > 0 else math.nan,
    )


def _mixed_ratio(table: pd.DataFrame, of: str, over: str, level: float) -> Estimate | None:
    """log seconds ~ condition + position, with random intercepts of participants and of tasks (crossed)."""
    both = table[table["condition"].isin([of, over])]
    treated = (both["condition"] == of).astype(float)
    fixed = pd.DataFrame({"treated": treated, "position": both["position"].astype(float)})
    found = mixed_effect(np.log(counted_seconds(both)), fixed, both[["participant", "task"]])
    if found is None:
        return None
    return around(found[0], float(stats.norm.ppf((1 + level) / 2)) * found[1]).exp()


def rating_change(
    table: pd.DataFrame, question: str, of: str, over: str, margin: float, level: float = 0.95
) -> RatingChange:
    """Compare a rating between two conditions. Raises LeftOut as `time_ratio` does."""
    column = f"rating_{question}"
    rated = table[["participant", "condition", column]].dropna()
    means = rated.groupby(["participant", "condition"])[column].mean().unstack()
    d = differences(f"the difference in “{question}”", means, of, over)
    mean = mean_interval(d, level)
    spread = float(np.std(d, ddof=1))
    worse = (float(np.mean(d)) + margin) / (spread / math.sqrt(len(d))) if spread > 0 else math.nan
    p = float(stats.wilcoxon(d).pvalue) if np.any(d != 0) else 1.0
    no_worse_p = float(stats.t.sf(worse, len(d) - 1))
    no_worse = bool(no_worse_p < (1 - level) / 2)
    return RatingChange(question, of, over, len(d), mean, rank_biserial(d), p, margin, no_worse_p, no_worse)


def odds_ratio(table: pd.DataFrame, question: str, of: str, over: str, level: float = 0.95) -> OddsRatio:
    """Compare the answers to a question between two conditions as ordered categories.

    Errors are clustered by participant; the interval is Student's t. Raises LeftOut if there is no estimate.
    """
    column, who = f"rating_{question}", "participant"
    rated = table.loc[table["condition"].isin([of, over]), [who, "condition", column]].dropna()
    answers = {name: rated.loc[rated["condition"] == name, column] for name in (of, over)}
    about = (f"the odds ratio of “{question}”", of, over)
    if min(len(each) for each in answers.values()) < 2 or rated[who].nunique() < 2:
        raise LeftOut(*about, TOO_FEW)
    if rated[column].nunique() == 1:
        raise LeftOut(*about, "every answer was the same")
    if any(answers[high].min() >= answers[low].max() for high, low in ((of, over), (over, of))):
        raise LeftOut(
            *about,
            "no answer with one condition lies below one with the other, so that it has no bound; see the "
            "mean difference",
        )
    treated = (rated["condition"] == of).to_numpy(float)[:, None]
    try:
        values, errors = proportional_odds(rated[column].to_numpy(), treated, rated[who].to_numpy())
    except ValueError as failure:
        raise LeftOut(*about, str(failure)) from failure
    people = rated[who].nunique()
    value, error = float(values[0]), float(errors[0])
    half = float(stats.t.ppf((1 + level) / 2, people - 1)) * error
    p = float(2 * stats.t.sf(abs(value) / error, people - 1))
    return OddsRatio(question, of, over, people, around(value, half).exp(), p)


def survival(table: pd.DataFrame, condition: str) -> tuple[Any, float]:
    """Return Kaplan and Meier's curve of the share not yet satisfied, and its median in seconds.

    Trials that were given up or timed out are censored at their end.
    """
    from lifelines import KaplanMeierFitter

    rows = table[table["condition"] == condition]
    fitter = KaplanMeierFitter(label=condition)
    fitter.fit(rows["seconds"], event_observed=rows["outcome"] == "satisfied")
    return fitter, float(fitter.median_survival_time_)


def hazard_ratio(table: pd.DataFrame, of: str, over: str, level: float = 0.95) -> HazardRatio:
    """Compare when trials end satisfied, by Cox regression with errors clustered by participant.

    Raises LeftOut if too few trials ended satisfied, or the model does not converge.
    """
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError

    both = table[table["condition"].isin([of, over])]
    rows = pd.DataFrame(
        {
            "seconds": both["seconds"].clip(lower=1e-3).astype(float),
            "done": (both["outcome"] == "satisfied").astype(int),
            "treated": (both["condition"] == of).astype(int),
            "participant": both["participant"],
        }
    )
    about = ("the hazard ratio", of, over)
    if rows.groupby("treated")["done"].sum().min() < 2:
        raise LeftOut(*about, "fewer than two trials of a condition ended satisfied")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lifelines warns about pandas, and about what is checked below
        try:
            fit = CoxPHFitter(alpha=1 - level).fit(rows, "seconds", "done", cluster_col="participant")
        except (ConvergenceError, np.linalg.LinAlgError, ValueError) as error:
            raise LeftOut(*about, "its model did not converge") from error
    low, high = np.exp(fit.confidence_intervals_.loc["treated"].to_numpy())
    value = float(fit.hazard_ratios_["treated"])
    if not 1e-3 < value < 1e3:
        raise LeftOut(*about, "its model did not converge")
    ratio = Estimate(value, float(low), float(high))
    return HazardRatio(of, over, ratio, float(fit.summary.loc["treated", "p"]))
