"""The report of a study: one HTML page, and the tables behind it as CSV and parquet."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from app.study.log.reading import Faults, Log
from app.study.plan.definition import Study
from app.study.report import plots
from app.study.report.analysis import (
    Estimate,
    LeftOut,
    OddsRatio,
    RatingChange,
    Ratio,
    exclude,
    geometric_mean,
    hazard_ratio,
    holm,
    log_means,
    odds_ratio,
    rating_change,
    survival,
    time_ratio,
)
from app.study.report.trial_table import trial_table

TEMPLATE = Path(__file__).with_name("report.html.jinja")


class ReportError(ValueError):
    """A log that no report can be made of, in words."""


@dataclass(frozen=True)
class ConditionRow:
    """One condition: trials and how they ended, times, tries until satisfied, and how many of the
    pictures that were looked at were opened."""

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
class Hazard:
    """See `app.study.report.analysis.hazard_ratio`."""

    of: str
    over: str
    ratio: Estimate
    p: float
    p_holm: float = math.nan


@dataclass(frozen=True)
class Findings:
    """All that the report says in numbers."""

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
    hazards: list[Hazard]
    warnings: list[str]


def find(study: Study, log: Log, level: float = 0.95) -> tuple[Findings, pd.DataFrame, pd.DataFrame]:
    """The findings, all trials, and those that were analysed.

    Raises ReportError, in words, where there is nothing to analyse.
    """
    mine = [event for event in log.events if event.study == study.digest]
    versions = len({event.study for event in log.events})
    every = trial_table(mine)
    if every.empty:
        other = " It holds events of another version of the study file." if log.events else ""
        raise ReportError(f"The log holds no trial of this study.{other}")
    table, excluded = exclude(every)
    if table.empty:
        raise ReportError("No trial of this study is left after exclusions: nobody has finished yet.")
    sessions = {event.session for event in mine if event.kind == "session"}
    finished = {event.session for event in mine if event.kind == "session_end"}
    names = [each.id for each in study.conditions if (table["condition"] == each.id).any()]
    left_out: list[LeftOut] = []
    control = study.analysis.control
    others = sorted((each for each in names if each != control), key=lambda n: n != study.analysis.treatment)
    ratios = _made(left_out, others, lambda name: time_ratio(table, name, control, level))
    left_out += [
        LeftOut("the mixed model of times", ratio.of, ratio.over, "its model did not converge")
        for ratio in ratios
        if ratio.mixed is None
    ]
    ratings: list[RatingChange] = []
    odds: list[OddsRatio] = []
    for question in study.ratings:
        if f"rating_{question.id}" in table:
            about: dict[str, Any] = {"question": question.id, "over": control, "level": level}
            change = partial(rating_change, table, margin=study.analysis.margin, **about)
            ratings += _made(left_out, others, lambda name, to=change: to(of=name))  # type: ignore[misc]
            likelier = partial(odds_ratio, table, **about)
            odds += _made(left_out, others, lambda name, to=likelier: to(of=name))  # type: ignore[misc]
    hazards = _made(
        left_out, others, lambda name: Hazard(name, control, *hazard_ratio(table, name, control, level))
    )
    people = table["participant"].nunique()
    models, revisions, devices = (
        sorted({value for each in mine if (value := getattr(each.body, name, ""))})
        for name in ("model", "revision", "device")
    )
    warnings = [*_warnings(study, table, people, log.faults, versions)]
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
        analysed=people,
        excluded=excluded,
        faults=log.faults,
        versions=versions,
        models=models,
        revisions=revisions,
        devices=devices,
        conditions=[_condition(table, name, level) for name in names],
        ratios=_corrected(ratios),
        ratings=_corrected(ratings),
        odds=_corrected(odds),
        hazards=_corrected(hazards),
        warnings=[*warnings, *_left_out(left_out)],
    )
    return findings, every, table


def write_report(study: Study, log: Log, out: Path, level: float = 0.95) -> Findings:
    """Write report.html, trials.csv, trials.parquet, conditions.csv and findings.json into a folder."""
    findings, every, table = find(study, log, level)
    out.mkdir(parents=True, exist_ok=True)
    every = every.assign(analysed=every["trial"].isin(set(table["trial"])))
    every.to_csv(out / "trials.csv", index=False)
    every.to_parquet(out / "trials.parquet", index=False)
    rows = [_flat(asdict(each)) for each in findings.conditions]
    pd.DataFrame(rows).to_csv(out / "conditions.csv", index=False)
    text = json.dumps(_plain(asdict(findings)), indent=1, ensure_ascii=False)
    (out / "findings.json").write_text(text + "\n", encoding="utf-8")
    (out / "report.html").write_text(_page(study, findings, table), encoding="utf-8")
    return findings


def _condition(table: pd.DataFrame, name: str, level: float) -> ConditionRow:
    rows = table[table["condition"] == name]
    satisfied = rows[rows["outcome"] == "satisfied"]
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
        float(rows["picked"].sum() / looked) if (looked := rows["looked"].sum()) else math.nan,
        *(float(rows[part].mean()) for part in ("queue_s", "compute_s", "think_s")),
    )


def _made(left_out: list[LeftOut], names: Sequence[str], compare: Callable[[str], Any]) -> list[Any]:
    """The comparisons of these conditions; those that can't be made join `left_out`."""
    made = []
    for name in names:
        try:
            made.append(compare(name))
        except LeftOut as error:
            left_out.append(error)
    return made


def _left_out(all_: Sequence[LeftOut]) -> Iterator[str]:
    """What is left out, each reason once, and with it what has the same conditions together."""
    for why in dict.fromkeys(each.why for each in all_):
        whats: dict[str, list[str]] = {}
        for each in all_:
            if each.why == why:
                whats.setdefault(each.what, []).append(each.of)
        pairs: dict[tuple[str, ...], list[str]] = {}
        for what, names in whats.items():
            pairs.setdefault(tuple(names), []).append(what)
        told = "; ".join(
            f"{_and(what)}, with {_and(names)} against {all_[0].over}" for names, what in pairs.items()
        )
        yield f"Left out, since {why}: {told}."


def _and(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _counted(count: int, one: str) -> str:
    return f"{count} {one}" if count == 1 else f"{count} {one}s"


def _corrected(rows: list[Any]) -> list[Any]:
    """The rows with Holm's p values, over this family of comparisons."""
    adjusted = holm([row.p for row in rows])
    return [replace(row, p_holm=p) for row, p in zip(rows, adjusted, strict=True)]


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _warnings(study: Study, table: pd.DataFrame, people: int, faults: Faults, versions: int) -> Iterator[str]:
    least = study.analysis.least_participants
    if people < least:
        yield (
            f"The study file asks for {_counted(least, 'participant')}, and {people} {_were(people)} "
            "analysed. Intervals this wide settle little; p values of so few mean little."
        )
    if versions > 1:
        yield f"The log holds events of {versions} studies; only those of this file were used."
    unread = faults.unreadable + faults.torn + faults.newer
    troubles = [f"{_counted(unread, 'event')} could not be read"] if unread else []
    if faults.jumps:
        troubles.append(f"a server's clock jumped {'once' if faults.jumps == 1 else f'{faults.jumps} times'}")
    if troubles:
        words = _and(troubles)
        yield f"{words[0].upper()}{words[1:]}; see the log's condition below."
    capped = (table["outcome"] != "satisfied").mean()
    if capped > 0.2:
        yield (
            f"{_share(capped)} of the trials did not end satisfied and count with the time cap, so the "
            "ratios of times lean towards 1. Read the hazard ratios first."
        )
    held = table.drop_duplicates("participant")["place"].value_counts()
    if len(held) and held.max() > held.min() + 1:
        yield "The orders are not balanced: some were followed by more participants than others."
    if log_means(table).isna().any().any():
        yield "Some participants lack trials of a condition; each comparison uses those with both."


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{name}_{part}": each for part, each in value.items()}
        else:
            flat[name] = value
    return flat


def _plain(value: Any) -> Any:
    """For JSON, which knows neither infinity nor NaN."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _page(study: Study, findings: Findings, table: pd.DataFrame) -> str:
    names = [row.name for row in findings.conditions]
    drawn = {
        "times": plots.times_plot(table, names, {row.name: row.seconds for row in findings.conditions}),
        "survival": plots.survival_plot(table, names),
        "parts": plots.parts_plot(table, names),
    }
    if findings.ratios:
        drawn["ratios"] = plots.ratios_plot(findings.ratios)
        drawn["residuals"] = plots.residuals_plot(table, findings.ratios[0].of, findings.ratios[0].over)
    answers = [
        plots.ratings_plot(table, names, question.id, question.points)
        for question in study.ratings
        if f"rating_{question.id}" in table
    ]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "share": _share, "interval": _interval, "p": _p}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    shown = {"study": study, "found": findings, "drawn": drawn, "answers": answers}
    return template.render(
        **shown, primary=_primary(study, findings.ratios), quality=_quality(study, findings)
    )


def _primary(study: Study, ratios: Sequence[Ratio]) -> Ratio | None:
    """The comparison that the study is about, where it could be made."""
    pair = (study.analysis.treatment, study.analysis.control)
    return next((each for each in ratios if (each.of, each.over) == pair), None)


def _quality(study: Study, findings: Findings) -> RatingChange | None:
    """The rating that must not get worse, in the comparison that the study is about."""
    wanted = (study.analysis.quality, study.analysis.treatment, study.analysis.control)
    return next((each for each in findings.ratings if (each.question, each.of, each.over) == wanted), None)


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def _share(value: float) -> str:
    return f"{value:.0%}".replace("%", " %") if math.isfinite(value) else "–"


def _interval(interval: Estimate | None, digits: int = 2) -> str:
    if interval is None or not math.isfinite(interval.value):
        return "–"
    low, high = (
        _number(each, digits) if math.isfinite(each) else "?" for each in (interval.low, interval.high)
    )
    return f"{_number(interval.value, digits)} [{low}, {high}]"


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
