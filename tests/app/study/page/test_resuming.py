"""After an end of the app, a tab finds its place again, and interrupted trials are marked."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.backends.base import Backend
from app.backends.loading import Loading
from app.history.shelf import History
from app.jobs.job import RequestError
from app.page.session import Sessions
from app.page.sketches import Sketches
from app.server.limits import Limits
from app.study.log.events import LogEvent
from app.study.log.reading import read_log
from app.study.log.store import SqlStore, open_store
from app.study.log.withdrawal import participant_of
from app.study.log.writer import Writer
from app.study.page.layout import PlainShelf
from app.study.page.participation import Lab, Participation, Participations
from app.study.page.views import page_view
from app.study.plan.definition import Study
from app.study.report.analysis import exclude
from app.study.report.trial_table import trial_table
from app.worker import Worker
from tests.app.study.page.test_participation import do, kinds, open_first

ID, OTHER = "0" * 64, "1" * 64
GOOD = {"satisfaction": 3, "match": 3}
Start = Callable[..., Participation]


@pytest.fixture
def start(worker: Worker, study: Study, tmp_path: Path) -> Iterator[Start]:
    """Starts the app anew, as after a kill, and gives the visit of a tab."""
    writers = []

    def start(tab: str = ID, study: Study = study, backend: Backend = worker) -> Participation:
        log = str(tmp_path / "log.sqlite")
        writers.append(Writer(open_store(log)))
        lab = Lab(study, writers[-1], log, backend, Sketches(), Limits(100))
        sessions = Sessions(History(tmp_path / "now", shelves=PlainShelf))
        return Participations(lab).of(sessions.of(tab, tab))

    yield start
    for writer in writers:
        writer.close()


def refuse(monkeypatch: pytest.MonkeyPatch, which: Callable[[LogEvent], bool]) -> None:
    """Have the disk be full for such events."""
    append = SqlStore.append

    def full(self: SqlStore, event: LogEvent) -> None:
        if which(event):
            raise OSError("the disk is full")
        append(self, event)

    monkeypatch.setattr(SqlStore, "append", full)


def test_an_interrupted_trial_starts_again_and_neither_is_analysed(start: Start) -> None:
    visit = start()
    do(visit, "agree", agree=True)
    open_first(visit)
    do(visit, "satisfied")
    do(visit, "rate", answers=GOOD)
    open_first(visit)
    before = visit
    visit = start()
    assert (visit.phase, visit.number, visit.who) == ("trial", 1, before.who)
    assert visit.trial != before.trial and visit.now == before.now
    assert visit.session.grid is None and visit.session.notices
    assert [event.kind for event in read_log(visit.lab.log).events if event.trial == before.trial][-1] == (
        "interrupted"
    )
    while visit.phase != "closing":
        open_first(visit)
        do(visit, "satisfied")
        do(visit, "rate", answers=GOOD)
    do(visit, "close", answers={})
    table = trial_table(read_log(visit.lab.log).events)
    assert table["outcome"].to_list() == ["satisfied", "interrupted", "satisfied", "satisfied"]
    assert table["again"].to_list() == [False, False, True, False]
    assert kinds(visit).count("session") == 1
    analysed, left_out = exclude(table)
    assert len(analysed) == 1
    assert list(left_out.values()) == [1, 0, 1, 1, 0, 0]


def test_every_phase_is_resumed_with_the_same_code(start: Start) -> None:
    visit = start()
    assert visit.phase == "consent"
    do(visit, "agree", agree=True, free_text=True)
    assert visit.who
    for _ in visit.plan:
        open_first(visit)
        do(visit, "satisfied")
        final = visit.final
        visit = start()
        assert (visit.phase, visit.outcome, visit.final) == ("rating", "satisfied", final)
        assert visit.session.shelf.path(final).is_file()
        do(visit, "rate", answers=GOOD)
    visit = start()
    assert visit.phase == "closing" and visit.who and visit.who.free_text
    do(visit, "close", answers={"remarks": "Nice."})
    visit = start()
    assert visit.phase == "thanks" and visit.who
    count = len(kinds(visit))
    assert visit.lab.writer.store.withdraw(participant_of(visit.who.code)) == count
    assert kinds(visit) == []


def test_an_end_between_answer_and_trial_resumes_with_the_next_trial(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = start()
    do(visit, "agree", agree=True)
    open_first(visit)
    do(visit, "satisfied")
    refuse(monkeypatch, lambda event: event.kind == "trial_start")
    do(visit, "rate", answers=GOOD)
    with pytest.raises(RequestError):
        start()
    monkeypatch.undo()
    visit = start()
    assert (visit.phase, visit.number) == ("trial", 1)
    assert not trial_table(read_log(visit.lab.log).events)["again"].any()


@pytest.mark.parametrize("left_at", ["consent", "trial", "rating", "gave_up"])
def test_trials_wait_for_the_model_and_then_begin_by_themselves(
    start: Start, worker: Worker, left_at: str
) -> None:
    arrived = threading.Event()

    def load() -> Worker:
        arrived.wait()
        return worker

    before = start()
    if left_at != "consent":
        do(before, "agree", agree=True)
    if left_at == "rating":
        open_first(before)
        do(before, "satisfied")
    if left_at == "gave_up":
        do(before, "give_up")
    loading = Loading(load)
    visit = start(backend=loading)
    if left_at == "consent":
        do(visit, "agree", agree=True)
    if left_at in ("rating", "gave_up"):
        do(visit, "rate", answers=GOOD)
    number = int(left_at in ("rating", "gave_up"))
    assert (visit.phase, visit.number) == ("before", number)
    do(visit, "preview")
    assert page_view(visit)["phase"] == "before"
    assert kinds(visit).count("submit") == int(left_at == "rating")
    assert kinds(visit).count("trial_start") == int(left_at != "consent"), "the clock does not run"
    once_more = start(backend=loading)
    assert once_more.phase == ("rating" if left_at == "gave_up" else "before")
    arrived.set()
    loading.wait()
    assert page_of(visit) == ("trial", number)
    open_first(visit)
    do(visit, "satisfied")
    assert visit.phase == "rating"
    table = trial_table(read_log(visit.lab.log).events)
    assert table["again"].any() == (left_at == "trial")


def test_a_trial_whose_start_could_not_be_logged_begins_at_the_next_try(
    start: Start, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = threading.Event()
    loading = Loading(lambda: arrived.wait() and worker)  # type: ignore[arg-type, return-value]
    visit = start(backend=loading)
    do(visit, "agree", agree=True)
    refuse(monkeypatch, lambda event: event.kind == "trial_start")
    arrived.set()
    loading.wait()
    assert page_of(visit) == ("before", 0)
    monkeypatch.undo()
    assert page_of(visit) == ("trial", 0)


def page_of(visit: Participation) -> tuple[str, int]:
    """Where the visit is once a page has asked."""
    visit.catch_up()
    return visit.phase, visit.number


def test_half_written_answers_are_asked_for_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    visit = start()
    do(visit, "agree", agree=True)
    open_first(visit)
    do(visit, "satisfied")
    refuse(
        monkeypatch,
        lambda event: event.kind == "rating" and getattr(event.body, "question", "") == "match",
    )
    do(visit, "rate", answers=GOOD)
    monkeypatch.undo()
    visit = start()
    assert visit.phase == "rating"
    do(visit, "rate", answers=GOOD | {"satisfaction": 5})
    row = trial_table(read_log(visit.lab.log).events).iloc[0]
    assert (row["rating_satisfaction"], row["rating_match"]) == (5, 3)


def test_a_given_up_trial_stays_given_up(start: Start) -> None:
    visit = start()
    do(visit, "agree", agree=True)
    do(visit, "give_up")
    visit = start()
    assert (visit.phase, visit.outcome, visit.final) == ("rating", "gave_up", "")


def test_another_tab_or_study_is_a_new_participant(start: Start, study: Study) -> None:
    visit = start()
    do(visit, "agree", agree=True)
    assert start(OTHER).phase == "consent"
    assert start(study=replace(study, digest="other")).phase == "consent"


def test_an_unreadable_log_is_an_error_and_read_again_later(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = start()
    do(visit, "agree", agree=True)

    def gone(self: SqlStore, participant: str | None = None) -> Any:
        raise OSError("the server is gone")

    monkeypatch.setattr(SqlStore, "lines", gone)
    with pytest.raises(RequestError, match="try again"):
        start()
    monkeypatch.undo()
    assert start().phase == "trial"
