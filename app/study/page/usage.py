"""What visitors of the ordinary page do, written down where the operator wants it: no words, no pictures."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from app.page.click import Click
from app.page.session import Session
from app.study.log import events
from app.study.log.recording import RecordingBackend
from app.study.log.writer import Writer

FOOT = "What is clicked here, and when, is written down, without names, words and pictures."
_NOBODY_WAITS: "Future[None]" = Future()
_NOBODY_WAITS.set_result(None)


class Usage:
    """Writes the events of ordinary use. A tab is a participant, under a random name, of no study.

    Nobody waits for the log here, and nobody is refused anything because of it.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._begun: set[str] = set()

    @contextmanager
    def watch(self, click: Click) -> Iterator[Click]:
        """See `app.page.handlers.Watch`."""
        session = click.session
        note = partial(self._note, session.name)
        if session.name not in self._begun:
            self._begun.add(session.name)
            note(events.SessionBegan(0, [], ""))
        body = _body(session, click.values)
        if body:
            note(body)
        recording = RecordingBackend(click.studio.backend, note)
        before = session.refinement
        yield replace(click, studio=replace(click.studio, backend=recording))
        handle = session.refinement
        if handle and handle is not before and handle.job.kind == "speculative":
            recording.record([handle], "refine")

    def _note(self, name: str, body: events.Body) -> "Future[None]":
        self._writer.post(events.LogEvent(name, name, body))
        return _NOBODY_WAITS


def _body(session: Session, values: Mapping[str, Any]) -> events.Body | None:
    """What a click asks for, where it is about the pictures that are shown."""
    grid = session.grid
    if values.get("do") == "cancel":
        return events.Cancel()
    if grid is None or values.get("grid") != grid.id:
        return None
    if values.get("do") == "reroll":
        return events.Reroll([] if values.get("all") else [tile.seed for tile in grid.tiles if tile.kept])
    tile = grid.find(values.get("seed"))
    if tile is None:
        return None
    match values.get("do"):
        case "keep":
            return events.Keep(tile.seed, not tile.kept)
        case "refine":
            return events.Refine(tile.seed)
        case "point_at":
            return events.Hover(tile.seed)
    return None
