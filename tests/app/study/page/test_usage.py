"""A log of ordinary use: what was clicked, without words and pictures; and nobody is kept by it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.history.shelf import History
from app.page import handlers
from app.page.handlers import Form, Studio
from app.page.live import Sketches
from app.page.session import Session, Sessions
from app.study.log.reading import read_log
from app.study.log.store import SqlStore, open_store
from app.study.log.writer import Writer
from app.study.page.usage import Usage
from app.worker import Worker

WORDS = "snowy mountains"
Click = Callable[..., None]


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Sessions(History(tmp_path / "history")).of("0" * 64, "1" * 64)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(open_store(str(tmp_path / "log.sqlite")))
    yield writer
    writer.close()


@pytest.fixture
def click(worker: Worker, session: Session, writer: Writer) -> Click:
    """Does what a click asks for, as the page does, and waits for what comes of it."""
    usage, studio = Usage(writer), Studio(worker, Sketches())

    def click(action: Callable[[Studio], Any], **wish: Any) -> None:
        about = {"grid": session.grid.id if session.grid else None} | wish
        with usage.watch(studio, session, about) as watched:
            action(watched)
        session.settle()

    return click


def see(click: Click, session: Session) -> int:
    """Asks for two previews; gives the first one's seed."""
    form = Form(WORDS, count=2, steps=2, solver="ddim", full_steps=4)
    click(lambda studio: handlers.preview(studio, session, form), do="preview")
    assert session.grid and not session.grid.busy
    return session.grid.tiles[0].seed


def test_what_was_clicked_is_there_under_a_random_name_and_no_word_of_it(
    click: Click, session: Session, writer: Writer, tmp_path: Path
) -> None:
    seed = see(click, session)
    assert session.grid
    grid = session.grid.id
    click(lambda _: handlers.point_at(session, {"grid": grid, "seed": seed}), do="point_at", seed=seed)
    click(lambda _: handlers.keep(session, {"grid": grid, "seed": seed}), do="keep", seed=seed)
    wish = {"grid": grid, "seed": seed}
    click(lambda studio: handlers.refine(studio, session, wish, 4), do="refine", seed=seed)
    click(lambda _: handlers.cancel(session), do="cancel")
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


def test_nonsense_is_no_event(click: Click, session: Session, writer: Writer, tmp_path: Path) -> None:
    see(click, session)
    for wish in ({}, {"do": None}, {"do": "keep", "seed": []}, {"do": "refine", "grid": {}}, {"do": "keep"}):
        click(lambda _: None, **wish)
    writer.close()
    kinds = {event.kind for event in read_log(str(tmp_path / "log.sqlite")).events}
    assert kinds == {"session", "submit", "queued", "compute_start", "compute_end"}


def test_nobody_is_refused_anything_because_of_the_log(
    click: Click, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(SqlStore, "append", full)
    see(click, session)
    assert session.notices == []
