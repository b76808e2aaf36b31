"""Analyse a study's log: all numbers of its report, and its warnings."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from app.study.log.reading import Faults, Log
from app.study.plan import Study
from app.study.report.analysis import (
    HazardRatio,
    LeftOut,
    OddsRatio,
    RatingChange,
    Ratio,
    exclude,
    geometric_mean,
    hazard_ratio,
    log_means,
    odds_ratio,
    rating_change,
    survival,
    time_ratio,
)
from app.study.report.statistics import Estimate, holm
from app.study.report.trial_table import trial_table
from app.study.shared import StudyProblem


class ReportError(StudyProblem):
    """A log without anything to report; the message says why."""


@dataclass(frozen=True)
class ConditionRow:
    """One condition.

    Attributes:
        satisfied, gave_up, timed_out: trials that ended so.
        seconds: geometric mean over participants.
        median: Kaplan and Meier's, in seconds.
        tries: mean number of grids until satisfied.
        first_try: share of satisfied trials with one grid.
        opened: share of the pictures looked at that were opened.
        queue_s, compute_s, think_s: means per trial.
    """

    name: str
    participants: int
    trials: int
    satisfied: int
    gave_up: int
    timed_out: int
    seconds: Estimate
    median: float
    tries: float
    first_try: float
    opened: float
    queue_s: float
    compute_s: float
    think_s: float


@dataclass(frozen=True)
class Findings:
    """All numbers of the report."""

    title: str
    digest: str
    level: float
    simulated: bool
    began: int
    finished: int
    analysed: int
    excluded: dict[str, int]
    faults: Faults
    versions: int
    models: list[str]
    revisions: list[str]
    devices: list[str]
    conditions: list[ConditionRow]
    ratios: list[Ratio]
    ratings: list[RatingChange]
    odds: list[OddsRatio]
    hazards: list[HazardRatio]
    warnings: list[str]


def analyse(study: Study, log: Log, level: float = 0.95) -> tuple[Findings, pd.DataFrame, pd.DataFrame]:
    """Return the findings, all trials, and the trials that were analysed.

    Raises ReportError if there is nothing to analyse.
    """
    mine = [event for event in log.events if event.study == study.digest]
    versions = len({event.study for event in log.events})
    every = trial_table(mine)
    if every.empty:
        other = " It holds events of another version of the study file." if log.events else ""
        raise ReportError(f"The log holds no trial of this study.{other}")
    table, excluded = exclude(every)
    if table.empty:
        raise ReportError("No trial of this study is left after exclusions: no participant has finished yet.")
    sessions = {event.session for event in mine if event.kind == "session"}
    finished = {event.session for event in mine if event.kind == "session_end"}
    names = [each.id for each in study.conditions if (table["condition"] == each.id).any()]
    control = study.analysis.control
    others = sorted((each for each in names if each != control), key=lambda n: n != study.analysis.treatment)
    left_out: list[LeftOut] = []

    def compare(comparison: Callable[..., Any], **about: Any) -> list[Any]:
        """Compare each condition with the control; what can't be compared joins `left_out`."""
        made = []
        for name in others:
            try:
                made.append(comparison(table, of=name, over=control, level=level, **about))
            except LeftOut as error:
                left_out.append(error)
        return made

    ratios = compare(time_ratio)
    left_out += [
        LeftOut("the mixed model of times", ratio.of, ratio.over, "its model did not converge")
        for ratio in ratios
        if ratio.mixed is None
    ]
    ratings, odds = [], []
    for question in study.ratings:
        if f"rating_{question.id}" in table:
            ratings += compare(rating_change, question=question.id, margin=study.analysis.margin)
            odds += compare(odds_ratio, question=question.id)
    hazards = compare(hazard_ratio)
    models, revisions, devices = (
        sorted({value for each in mine if (value := getattr(each.body, name, ""))})
        for name in ("model", "revision", "device")
    )
    warnings = [*_warnings(study, table, log.faults, versions)]
    if len(revisions) > 1 or len(devices) > 1:
        warnings.append(
            "The model or its device changed during the study, and with it, how long pictures take."
        )
    findings = Findings(
        title=study.title,
        digest=study.digest,
        level=level,
        simulated=bool(every["simulated"].any()),
        began=len(sessions),
        finished=len(finished & sessions),
        analysed=table["participant"].nunique(),
        excluded=excluded,
        faults=log.faults,
        versions=versions,
        models=models,
        revisions=revisions,
        devices=devices,
        conditions=[_condition(table, name, level) for name in names],
        ratios=_correct(ratios),
        ratings=_correct(ratings),
        odds=_correct(odds),
        hazards=_correct(hazards),
        warnings=[*warnings, *describe_left_out(left_out)],
    )
    return findings, every, table


def _condition(table: pd.DataFrame, name: str, level: float) -> ConditionRow:
    rows = table[table["condition"] == name]
    satisfied = rows[rows["outcome"] == "satisfied"]
    looked = rows["looked"].sum()
    return ConditionRow(
        name,
        rows["participant"].nunique(),
        len(rows),
        len(satisfied),
        int((rows["outcome"] == "gave_up").sum()),
        int((rows["outcome"] == "timed_out").sum()),
        geometric_mean(table, name, level),
        survival(table, name)[1],
        float(satisfied["tries"].mean()),
        float((satisfied["tries"] == 1).mean()),
        float(rows["picked"].sum() / looked) if looked else math.nan,
        *(float(rows[part].mean()) for part in ("queue_s", "compute_s", "think_s")),
    )


def _correct(rows: list[Any]) -> list[Any]:
    """Add Holm's p values over this family of comparisons."""
    adjusted = holm([row.p for row in rows])
    return [replace(row, p_holm=p) for row, p in zip(rows, adjusted, strict=True)]


def describe_left_out(left_out: Sequence[LeftOut]) -> Iterator[str]:
    """Yield a sentence per reason; comparisons of the same conditions are named together."""
    for reason in dict.fromkeys(each.reason for each in left_out):
        conditions: dict[str, tuple[str, ...]] = {}
        for each in left_out:
            if each.reason == reason:
                conditions[each.what] = (*conditions.get(each.what, ()), each.of)
        comparisons = "; ".join(
            f"{_and([what for what in conditions if conditions[what] == names])}, with {_and(names)} against "
            f"{left_out[0].over}"
            for names in dict.fromkeys(conditions.values())
        )
        yield f"Left out, since {reason}: {comparisons}."


def _warnings(study: Study, table: pd.DataFrame, faults: Faults, versions: int) -> Iterator[str]:
    least, people = study.analysis.least_participants, table["participant"].nunique()
    if people < least:
        yield (
            f"The study file asks for {_count(least, 'participant')}, and {people} "
            f"{'was' if people == 1 else 'were'} analysed. With so few, intervals are wide and p values mean "
            "little."
        )
    if versions > 1:
        yield f"The log holds events of {versions} studies; only those of this file were used."
    unread = faults.unreadable + faults.torn + faults.newer
    troubles = [f"{_count(unread, 'event')} could not be read"] if unread else []
    if faults.jumps:
        troubles.append(f"a server's clock jumped {'once' if faults.jumps == 1 else f'{faults.jumps} times'}")
    if troubles:
        words = _and(troubles)
        yield f"{words[0].upper()}{words[1:]}; see the faults of the log below."
    capped = (table["outcome"] != "satisfied").mean()
    if capped > 0.2:
        yield (
            f"{capped * 100:.0f} % of the trials did not end satisfied and count with the time cap, so the "
            "ratios of times lean towards 1. Read the hazard ratios first."
        )
    held = table.drop_duplicates("participant")["place"].value_counts()
    if len(held) and held.max() > held.min() + 1:
        yield "The orders are not balanced: some were followed by more participants than others."
    if log_means(table).isna().any().any():
        yield "Some participants lack trials of a condition; each comparison uses participants with both."


def _and(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _count(count: int, one: str) -> str:
    return f"{count} {one}" if count == 1 else f"{count} {one}s"
