"""What whoever asks for a picture holds in hand: its events, and the ways to change one's mind."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import Protocol

from app.jobs.job import LAST_EVENTS, Event, Job, Step


class Maker(Protocol):
    """The backend behind a handle; its methods may be called from any thread."""

    def cancel(self, handle: "Handle") -> None:
        """Give the job up."""
        ...

    def promote(self, handle: "Handle") -> None:
        """Turn a speculative job into a refinement."""
        ...

    def favour(self, handle: "Handle") -> None:
        """Serve a speculative job before the others of its kind, and to the end."""
        ...


class Inbox(Protocol):
    """Where events go; must not fail, nor take long."""

    def put(self, told: "tuple[Handle, Event]", /) -> None:
        """A handle was told an event."""
        ...


class Handle:
    """A submitted job: listen to it, cancel it, promote it. Safe to use from any thread.

    promoted: when it was, by `time.monotonic`, if it was.
    """

    def __init__(self, maker: Maker, job: Job) -> None:
        self.job = job
        self.promoted: float | None = None
        self._maker = maker
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._listeners: list[Inbox] = []

    def events(self) -> Iterator[Event]:
        """All events from the first to the last (Done, Failed or Cancelled), waiting for each."""
        for _, event in merge([self]):
            yield event

    @property
    def ended(self) -> bool:
        """Whether the last event has come."""
        with self._lock:
            return self._has_ended()

    def cancel(self) -> None:
        """Give up; takes effect at the next step. Does nothing once the job has ended."""
        self._maker.cancel(self)

    def promote(self) -> None:
        """Turn a speculative refinement into one that somebody waits for."""
        self.promoted = self.promoted or time.monotonic()
        self._maker.promote(self)

    def favour(self) -> None:
        """Say that this guess is the likely one: it goes first among its like, and to the end."""
        self._maker.favour(self)

    def listen(self, inbox: Inbox) -> None:
        """Have all events, those so far included, put into `inbox` as (handle, event)."""
        with self._lock:
            for event in self._events:
                inbox.put((self, event))
            self._listeners.append(inbox)

    def tell(self, event: Event) -> None:
        """Pass an event on to the listeners (called by the maker). After the last, nothing more is said."""
        with self._lock:
            if self._has_ended():
                return
            if isinstance(event, Step) and event.picture:  # whoever comes late sees the newest sketch alone
                self._events = [_without_picture(earlier) for earlier in self._events]
            self._events.append(event)
            for inbox in self._listeners:
                inbox.put((self, event))

    def _has_ended(self) -> bool:
        return bool(self._events) and isinstance(self._events[-1], LAST_EVENTS)


def _without_picture(event: Event) -> Event:
    return replace(event, picture=None) if isinstance(event, Step) and event.picture else event


def merge(handles: Sequence[Handle]) -> Iterator[tuple[int, Event]]:
    """The events of several handles as they come, each with its handle's position in `handles`."""
    inbox: SimpleQueue[tuple[Handle, Event]] = SimpleQueue()
    positions = {id(handle): position for position, handle in enumerate(handles)}
    for handle in handles:
        handle.listen(inbox)
    running = len(handles)
    while running:
        handle, event = inbox.get()
        running -= isinstance(event, LAST_EVENTS)
        yield positions[id(handle)], event
