"""Log the actions on the ordinary page, without prompts and pictures, if the operator enables it."""

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

FOOT = "This page logs what is clicked and when, without names, words or pictures."
_WRITTEN: "Future[None]" = Future()
_WRITTEN.set_result(None)


class Usage:
    """Logs the events of ordinary use; each tab is a participant with a random name, of no study.

    Clicks do not wait for the log, and go on if it can't be written.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._begun: set[str] = set()

    @contextmanager
    def watch(self, click: Click) -> Iterator[Click]:
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
        return _WRITTEN


def _body(session: Session, values: Mapping[str, Any]) -> events.Body | None:
    """Return the event of a click; None if it is not about the pictures shown."""
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
