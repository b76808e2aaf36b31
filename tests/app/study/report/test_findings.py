"""A report has the right numbers, says what was left out, and warns of what weakens it."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from app.study.__main__ import main
from app.study.log import events
from app.study.log.enrolment import enrol
from app.study.log.events import LogEvent
from app.study.log.reading import read_lines
from app.study.log.store import Store, open_store
from app.study.plan.definition import Study
from app.study.report import analysis
from app.study.report.findings import ReportError, analyse, describe_left_out
from app.study.report.trial_table import trial_table


def timeline(study: Study, store: Store, spans: dict[str, float], finish: bool = True) -> None:
    """One participant, whose trials take so long by condition: 1 s waiting, 2 s computing, then thinking."""
    from app.study.plan.order import trials

    who, clock = enrol(store, study), [1000.0]

    def note(body: events.Body, trial: str, after: float) -> None:
        clock[0] += after
        event = LogEvent(who.participant, who.session, body, trial, study=study.digest, monotonic=clock[0])
        store.append(event)

    for number, trial in enumerate(trials(study, who.place)):
        name, seconds = f"{who.session} {number}", spans[trial.condition.id]
        note(
            events.TrialStart(
                trial.condition.id, trial.task.id, trial.position, trial.practice, False, 600.0
            ),
            name,
            1,
        )
        note(events.Submit("r", "preview", [1, 2], 4, "ddim", "tiny", 3.0), name, 0)
        note(events.ComputeStart("r", "cpu", 2), name, 1)
        note(events.ComputeEnd("r", "done"), name, 2)
        note(events.Submit("g", "speculative", [1], 4, "ddim", "tiny", 3.0), name, 0)
        end = events.GiveUp(True) if seconds >= 600 else events.Satisfied(1)
        note(end, name, seconds - 3)
        note(events.RatingGiven("satisfaction", 5), name, 30)
    if finish:
        note(events.SessionEnded(), "", 1)


def test_queue_computing_and_thinking_add_up(study: Study, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "log"))
    timeline(study, store, {"full": 20.0, "quick": 600.0})
    table = trial_table(read_lines(store.lines()).events)
    rows = table[~table["practice"]].set_index("condition")
    assert rows.loc["full", ["seconds", "queue_s", "compute_s", "think_s"]].tolist() == pytest.approx(
        [20, 1, 2, 17]
    )
    assert rows.loc["full", "outcome"] == "satisfied" and rows.loc["quick", "outcome"] == "timed_out"
    assert rows["tries"].tolist() == [1, 1] and rows["rating_satisfaction"].tolist() == [5, 5]


def test_the_report_command_end_to_end(
    study: Study, study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = str(tmp_path / "log.sqlite")
    store = open_store(log)
    for person in range(5):
        timeline(study, store, {"full": 20.0 + person, "quick": 10.0 + 2 * person}, finish=person != 4)
    store.close()
    main(["report", log, "--study", str(study_file), "--out", str(tmp_path / "out"), "--json"])
    told = json.loads(capsys.readouterr().out)
    d = np.log([(10 + 2 * k) / (20 + k) for k in range(4)])
    assert told["participants"] == 4
    assert told["ratios"]["quick / full"]["value"] == pytest.approx(math.exp(d.mean()))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "5 participants began, 4 finished" in " ".join(page.split())
    assert page.count("<svg") >= 5 and "http://" not in page.replace("http://www.w3.org", "").replace(
        "http://purl", ""
    ).replace("http://creative", "")
    assert "trials of participants who did not finish<td>2" in page
    assert f"With <b>quick</b> a picture took <b>{math.exp(d.mean()):.2f}</b> times as long as" in page
    assert "was no worse by 0.5 of its points is" in page and '<td>2<td class="words">ddim' in page
    assert "Simulated" not in page
    table = pd.read_parquet(tmp_path / "out" / "trials.parquet")
    assert len(table) == len(pd.read_csv(tmp_path / "out" / "trials.csv")) == 15
    assert table["analysed"].sum() == 8
    json.loads((tmp_path / "out" / "findings.json").read_text())


def test_the_report_warns_of_few_and_labels_the_simulated(study: Study, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "log"))
    for _ in range(2):
        timeline(study, store, {"full": 20.0, "quick": 15.0})
    found = analyse(study, read_lines(store.lines()))[0]
    assert any("asks for 4" in words for words in found.warnings)
    with pytest.raises(ReportError, match="no trial"):
        analyse(study, read_lines([]))


def test_each_warning_is_given_once(study: Study, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "log"))
    timeline(study, store, {"full": 20.0, "quick": 15.0})
    (few, left_out) = analyse(study, read_lines([*store.lines(), "{"]))[0].warnings[::2]
    assert "4 participants, and 1 was analysed" in few
    parts = "the ratio of times, the difference in “satisfaction” and the odds ratio of “satisfaction”"
    assert f"at least two participants with both conditions: {parts}, with quick against full." in left_out
    timeline(study, store, {"full": 20.0, "quick": 15.0})
    warnings = analyse(study, read_lines(store.lines()))[0].warnings
    assert len(warnings) == len(set(warnings)) == 4
    same = [words for words in warnings if "every answer was the same" in words]
    assert same and same[0].endswith(": the odds ratio of “satisfaction”, with quick against full.")


def test_left_out_comparisons_are_grouped_by_reason_and_conditions() -> None:
    left_out = [
        analysis.LeftOut(what, of, "full", why)
        for what, of, why in (
            ("the ratio", "a", "x"), ("the ratio", "b", "x"), ("the odds", "a", "x"), ("the odds", "b", "x"),
            ("the hazard", "b", "x"), ("the hazard", "a", "y"),
        )
    ]  # fmt: skip
    assert list(describe_left_out(left_out)) == [
        "Left out, since x: the ratio and the odds, with a and b against full; "
        "the hazard, with b against full.",
        "Left out, since y: the hazard, with a against full.",
    ]


def test_the_report_says_what_made_the_pictures_and_that_it_changed(study: Study, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "log"))
    for _ in range(2):
        timeline(study, store, {"full": 20.0, "quick": 15.0})
    found = analyse(study, read_lines(store.lines()))[0]
    assert (found.models, found.revisions, found.devices) == (["tiny"], [], ["cpu"])
    moved = [line.replace('"device":"cpu"', '"device":"cuda"') for line in store.lines()][-12:]
    changed = analyse(study, read_lines([*list(store.lines())[:-12], *moved]))[0]
    assert changed.devices == ["cpu", "cuda"]
    assert [words for words in changed.warnings if words not in found.warnings] == [
        "The model or its device changed during the study, and with it, how long pictures take."
    ]
