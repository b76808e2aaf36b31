"""Write the report of a study: one HTML page, and the tables behind it as CSV and parquet."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from app.study.log.reading import Log
from app.study.plan import Study
from app.study.report import plots
from app.study.report.findings import Findings, analyse
from app.study.report.statistics import Estimate

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def write_report(study: Study, log: Log, out: Path, level: float = 0.95) -> Findings:
    """Write report.html, trials.csv, trials.parquet, conditions.csv and findings.json into a folder.

    Raises ReportError if there is nothing to report.
    """
    findings, every, table = analyse(study, log, level)
    out.mkdir(parents=True, exist_ok=True)
    every = every.assign(analysed=every["trial"].isin(set(table["trial"])))
    every.to_csv(out / "trials.csv", index=False)
    every.to_parquet(out / "trials.parquet", index=False)
    rows = [_flatten(asdict(each)) for each in findings.conditions]
    pd.DataFrame(rows).to_csv(out / "conditions.csv", index=False)
    # JSON has neither infinity nor NaN.
    values = json.loads(json.dumps(asdict(findings)), parse_constant=lambda _: None)
    text = json.dumps(values, indent=1, ensure_ascii=False)
    (out / "findings.json").write_text(text + "\n", encoding="utf-8")
    (out / "report.html").write_text(_page(study, findings, table), encoding="utf-8")
    return findings


def _flatten(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= (
            {f"{name}_{part}": v for part, v in value.items()} if isinstance(value, dict) else {name: value}
        )
    return flat


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
    # The comparison that the study is about, if it could be made; all are over the control.
    about = study.analysis
    primary = [each for each in findings.ratios if each.of == about.treatment]
    quality = [
        each for each in findings.ratings if (each.of, each.question) == (about.treatment, about.quality)
    ]
    return template.render(
        study=study,
        found=findings,
        drawn=drawn,
        answers=answers,
        primary=primary[0] if primary else None,
        quality=quality[0] if quality else None,
    )


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
