"""What a participation logs and in which order; junk is refused; without a log nothing is done."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from app.history.shelf import History
from app.jobs.job import Job, RequestError
from app.models import ModelFacts
from app.page.session import Sessions
from app.page.sketches import Sketches
from app.server.limits import Limits
from app.study.log.events import LogEvent
from app.study.log.reading import read_log
from app.study.log.store import SqlStore, open_store
from app.study.log.writer import Writer
from app.study.page.actions import perform, report
from app.study.page.conditions import check_conditions
from app.study.page.layout import build_study_page
from app.study.page.participation import Lab, Participation, Participations
from app.study.plan.definition import Study
from app.study.plan.study_file import StudyError
from app.study.report.trial_table import trial_table
from app.worker import Worker

ID = "0" * 64


@pytest.fixture
def lab(worker: Worker, study: Study, tmp_path: Path) -> Iterator[Lab]:
    log = str(tmp_path / "log.sqlite")
    writer = Writer(open_store(log))
    yield Lab(study, writer, log, worker, Sketches(), Limits(100))
    writer.close()


@pytest.fixture
def visit(lab: Lab, tmp_path: Path) -> Participation:
    return Participations(lab).of(Sessions(History(tmp_path / "now")).of(ID, ID))


def do(visit: Participation, what: str, **more: Any) -> None:
    session = visit.session
    about = {"trial": visit.trial, "grid": session.grid.id if session.grid else None}
    about["stage"] = session.stage.id if session.stage else None
    perform(visit, about | {"do": what, "at": 1.5} | more)
    session.settle()


def kinds(visit: Participation) -> list[str]:
    return [event.kind for event in read_log(visit.lab.log).events]


def open_first(visit: Participation) -> None:
    do(visit, "preview", prompt="a lake")
    assert visit.session.grid
    do(visit, "refine", seed=visit.session.grid.tiles[0].seed)


def through(visit: Participation, until: str) -> None:
    """Go on until a trial of a condition is on."""
    do(visit, "agree", agree=True)
    while visit.now.condition.id != until or visit.now.practice:
        open_first(visit)
        do(visit, "satisfied")
        do(visit, "rate", answers={"satisfaction": 3, "match": 3})


def test_queue_and_computing_are_logged_apart(visit: Participation) -> None:
    through(visit, "quick")
    open_first(visit)
    do(visit, "satisfied")
    events = [event for event in read_log(visit.lab.log).events if event.trial == visit.trial]
    expected = ["trial_start", "submit", "queued", "compute_start", "compute_end", "select", "refine"]
    expected += ["submit", "queued", "compute_start", "compute_end", "satisfied"]
    assert [event.kind for event in events] == expected
    times = [event.monotonic for event in events]
    assert times == sorted(times)
    start = next(event.body for event in events if event.kind == "compute_start")
    assert start.batch in (1, 2) and start.device == "cpu"  # type: ignore[attr-defined]
    row = trial_table(read_log(visit.lab.log).events).iloc[-1]
    assert row["compute_s"] > 0 and row["queue_s"] >= 0 and row["think_s"] > 0
    assert abs(row["queue_s"] + row["compute_s"] + row["think_s"] - row["seconds"]) < 1e-6


def test_an_opened_speculative_refinement_is_logged_as_refinement(lab: Lab, tmp_path: Path) -> None:
    conditions = tuple(replace(each, speculate=each.id == "quick") for each in lab.study.conditions)
    lab = replace(lab, study=replace(lab.study, conditions=conditions))
    visit = Participations(lab).of(Sessions(History(tmp_path / "now")).of(ID, ID))
    through(visit, "quick")
    open_first(visit)
    submits = [event.body for event in read_log(lab.log).events if event.trial == visit.trial]
    assert [body.purpose for body in submits if body.kind == "submit"] == [  # type: ignore[attr-defined]
        "preview", "speculative", "refine",
    ]  # fmt: skip


def test_full_step_pictures_are_finals_and_nothing_is_refined(visit: Participation) -> None:
    through(visit, "full")
    open_first(visit)
    grid, stage = visit.session.grid, visit.session.stage
    assert grid and stage and stage.state == "done"
    assert {(tile.job.steps, tile.job.solver) for tile in grid.tiles} == {(6, "dpm++2m")}
    assert (len(grid.tiles), stage.name) == (2, grid.tiles[0].name)
    trial = [event.kind for event in read_log(visit.lab.log).events if event.trial == visit.trial]
    assert "refine" not in trial and trial.count("submit") == 1


@pytest.mark.parametrize("condition", ["quick", "full"])
def test_a_picture_is_painted_once_in_however_many_pages(visit: Participation, condition: str) -> None:
    through(visit, condition)
    paintings = []
    for _ in range(2):
        open_first(visit)
        grid, stage = visit.session.grid, visit.session.stage
        assert grid and stage
        paintings += [("preview", tile.seed) for tile in grid.tiles] + [("final", stage.tile.seed)]
        for _ in range(3):  # the page, a refreshed and a duplicated one
            for what, seed in paintings[-len(grid.tiles) - 1 :]:
                body = {"what": what, "seed": seed}
                report(visit, {"kind": "painted", "trial": visit.trial, "at": 1, "body": body})
    assert kinds(visit).count("painted") == len(paintings)


def test_a_cancel_that_overtakes_a_click_calls_it_off(visit: Participation) -> None:
    through(visit, "quick")
    do(visit, "cancel", calls=["1-1"])
    do(visit, "preview", prompt="a lake", call="1-1")
    assert visit.session.grid is None
    assert visit.session.notices[-1]["text"] == visit.lab.study.labels["called_off"]
    submitted = [event for event in read_log(visit.lab.log).events if event.trial == visit.trial]
    assert [event.kind for event in submitted] == ["trial_start", "cancel"]
    do(visit, "preview", prompt="a lake", call="1-2")
    assert visit.session.grid


def test_an_address_enrols_so_many_and_the_next_is_told(lab: Lab, tmp_path: Path) -> None:
    lab = replace(lab, enrolments=Limits(2, per_s=3600))
    visits, sessions = Participations(lab), Sessions(History(tmp_path / "now"))

    def agrees(number: int, address: str) -> Participation:
        visit = visits.of(sessions.of(f"{number:064x}", f"{number:064x}"))
        perform(visit, {"do": "agree", "agree": True}, address)
        return visit

    assert [agrees(number, "1.2.3.4").phase for number in range(3)] == ["trial", "trial", "consent"]
    refused = agrees(2, "1.2.3.4")
    assert refused.who is None and refused.session.notices[-1]["text"] == lab.study.labels["crowded"]
    assert [event.kind for event in read_log(lab.log).events].count("session") == 2
    assert agrees(2, "1.2.3.5").phase == "trial", "another address has its own share"
    assert agrees(0, "1.2.3.4").phase == "trial", "who takes part goes on"


def test_the_page_passes_the_address_on(lab: Lab, worker: Worker, tmp_path: Path) -> None:
    page = build_study_page(worker, tmp_path, lab.study, lab.writer, lab.log, enrolments=1)
    (act,) = {each.fn for each in page.fns.values() if each.fn and each.fn.__name__ == "act"}

    def agree(number: int, host: str) -> str:
        tab = f"{number:064x}"
        values = {"do": "agree", "agree": True, "browser": tab, "tab": tab}
        event = gr.EventData(None, values)
        act(event, SimpleNamespace(username=None, client=SimpleNamespace(host=host)))
        notices = page.sessions.of(tab, tab).notices
        return notices[-1]["text"] if notices else ""

    assert [agree(1, "2001:db8::1"), agree(2, "2001:db8::2"), agree(3, "2001:db8:0:1::1")] == [
        "", lab.study.labels["crowded"], "",
    ]  # fmt: skip


def test_junk_is_refused_and_changes_nothing(visit: Participation) -> None:
    do(visit, "agree")
    do(visit, "agree", agree="yes")
    assert visit.phase == "consent" and kinds(visit) == []
    do(visit, "agree", agree=True)
    before = visit.trial
    for what in ("report", "_end", None, 3, "do"):
        with pytest.raises(RequestError, match="out of date"):
            perform(visit, {"do": what, "trial": visit.trial})
    for wish in (
        {"do": "keep", "seed": 1}, {"do": "refine", "seed": []}, {"do": "reroll", "grid": {}},
        {"do": "satisfied", "stage": None}, {"do": "rate", "answers": []}, {"do": "close"},
        {"do": "preview", "at": "soon"}, {"do": "give_up", "at": -3}, {"do": "satisfied", "trial": "other"},
    ):  # fmt: skip
        perform(visit, {"trial": visit.trial} | wish)
    assert (visit.trial, visit.phase) == (before, "trial")
    assert set(kinds(visit)) <= {
        "session",
        "trial_start",
        "error",
        "submit",
        "queued",
        "compute_start",
        "compute_end",
    }


def test_ratings_need_all_answers_within_their_points(visit: Participation) -> None:
    do(visit, "agree", agree=True)
    open_first(visit)
    do(visit, "satisfied")
    good = {"satisfaction": 5, "match": 1}
    for wrong in (None, {}, {"match": 1}, good | {"match": 0}, good | {"match": 6}, good | {"match": True}):
        do(visit, "rate", answers=wrong)
        assert visit.phase == "rating" and "rating" not in kinds(visit)
    do(visit, "rate", answers=good)
    assert kinds(visit).count("rating") == 2 and visit.number == 1


def test_what_cannot_be_recorded_is_not_done(visit: Participation, monkeypatch: pytest.MonkeyPatch) -> None:
    do(visit, "agree", agree=True)
    append = SqlStore.append

    def fail(self: SqlStore, event: LogEvent) -> None:
        if event.kind != "error":
            raise OSError("the disk is full")
        append(self, event)

    monkeypatch.setattr(SqlStore, "append", fail)
    do(visit, "preview")
    assert visit.session.grid is None and visit.session.notices
    do(visit, "give_up")
    assert visit.phase == "trial"
    monkeypatch.undo()
    do(visit, "give_up")
    assert visit.phase == "rating" and kinds(visit).count("give_up") == 1


def test_the_worker_never_waits_for_the_log(visit: Participation, monkeypatch: pytest.MonkeyPatch) -> None:
    do(visit, "agree", agree=True)
    append, released = SqlStore.append, threading.Event()

    def stuck(self: SqlStore, event: LogEvent) -> None:
        if event.kind in ("queued", "compute_start", "compute_end"):
            assert released.wait(60)
        append(self, event)

    monkeypatch.setattr(SqlStore, "append", stuck)
    do(visit, "preview")
    assert not {"queued", "compute_start", "compute_end"} & set(kinds(visit)), "pictures first"
    released.set()
    visit.lab.writer.close()
    assert kinds(visit)[-3:] == ["queued", "compute_start", "compute_end"]


def test_clicks_after_the_log_is_closed_do_nothing(visit: Participation) -> None:
    do(visit, "agree", agree=True)
    visit.lab.writer.close()
    before = kinds(visit)
    do(visit, "give_up")
    assert visit.phase == "trial" and kinds(visit) == before


def test_conditions_impossible_for_the_model_are_named(
    worker: Worker, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_conditions(study, worker)
    plan = ModelFacts.plan

    def fussy(self: ModelFacts, job: Job) -> Any:
        if job.solver == "ddim":
            raise RequestError("It has no ddim.")
        return plan(self, job)

    monkeypatch.setattr(ModelFacts, "plan", fussy)
    with pytest.raises(StudyError, match="'quick': It has no ddim"):
        check_conditions(study, worker)
