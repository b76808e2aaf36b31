"""The log of ordinary use has clicks, without words or pictures, and holds nobody up."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.history.shelf import History
from app.page import handlers
from app.page.click import Click, Form, Studio
from app.page.session import Session, Sessions
from app.page.sketches import Sketches
from app.study.log.reading import read_log
from app.study.log.store import SqlStore, open_store
from app.study.log.writer import Writer
from app.study.page.usage import Usage
from app.worker import Worker

WORDS = "snowy mountains"
FORM = Form(WORDS, count=2, steps=2, solver="ddim", full_steps=4)
Ask = Callable[..., None]


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Sessions(History(tmp_path / "history")).of("0" * 64, "1" * 64)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(open_store(str(tmp_path / "log.sqlite")))
    yield writer
    writer.close()


@pytest.fixture
def ask(worker: Worker, session: Session, writer: Writer) -> Ask:
    """Does something for a click with these values, and waits for its jobs."""
    usage, studio = Usage(writer), Studio(worker, Sketches())

    def ask(action: Callable[[Click], None], values: dict[str, Any]) -> None:
        shown = {"grid": session.grid.id if session.grid else None}
        with usage.watch(Click(studio, session, shown | values, FORM)) as click:
            action(click)
        session.settle()

    return ask


def do(ask: Ask, name: str, **values: Any) -> None:
    """Does what the page does when its script asks for the action of that name."""
    ask(handlers.ACTIONS[name], {"do": name} | values)


def see(ask: Ask, session: Session) -> int:
    """Asks for two previews; gives the first one's seed."""
    do(ask, "preview")
    assert session.grid and not session.grid.busy
    return session.grid.tiles[0].seed


def test_clicks_are_logged_under_a_random_name_without_words(
    ask: Ask, session: Session, writer: Writer, tmp_path: Path
) -> None:
    seed = see(ask, session)
    for name in ("point_at", "keep", "refine"):
        do(ask, name, seed=seed)
    do(ask, "cancel")
    writer.close()
    log = tmp_path / "log.sqlite"
    events = read_log(str(log)).events
    clicked = ("session", "hover", "keep", "refine", "cancel")
    assert [event.kind for event in events if event.kind in clicked] == list(clicked)
    submits: list[Any] = [event.body for event in events if event.kind == "submit"]
    assert {"preview", "refine"} <= {body.purpose for body in submits}
    assert {event.participant for event in events} == {session.name} and {e.study for e in events} == {""}
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("log.sqlite*"))
    for secret in (WORDS, session.secret, session.shelf.name):
        assert secret.encode() not in stored


def test_nonsense_is_not_logged(ask: Ask, session: Session, writer: Writer, tmp_path: Path) -> None:
    see(ask, session)
    for values in (
        {},
        {"do": "nothing"},
        {"do": "keep", "seed": []},
        {"do": "refine", "grid": {}},
        {"do": "keep"},
    ):
        ask(lambda click: None, values)
    writer.close()
    kinds = {event.kind for event in read_log(str(tmp_path / "log.sqlite")).events}
    assert kinds == {"session", "submit", "queued", "compute_start", "compute_end"}


def test_a_log_that_fails_stops_no_click(ask: Ask, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(SqlStore, "append", full)
    see(ask, session)
    assert session.notices == []
