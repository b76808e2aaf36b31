"""Handle of a submitted job: follow its events, cancel it, promote it."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Protocol

from app.jobs.job import LAST_EVENTS, Event, Job, Step

# How often `merge` asks whether anybody still listens.
ASK_S = 1.0


class Maker(Protocol):
    """The backend behind a handle; its methods may be called from any thread."""

    def cancel(self, handle: "Handle") -> None:
        """Stop the job."""
        ...

    def promote(self, handle: "Handle") -> None:
        """Turn a speculative job into a refinement."""
        ...

    def favour(self, handle: "Handle") -> None:
        """Serve a speculative job before the other speculative jobs, and make all of its steps."""
        ...


class Inbox(Protocol):
    """Receiver of events; must neither raise nor block."""

    def put(self, told: "tuple[Handle, Event]", /) -> None:
        """Receive an event of a handle."""
        ...


class Handle:
    """A submitted job: listen to it, cancel it, promote it. Safe to use from any thread.

    Attributes:
        job: the job.
        promoted: `time.monotonic()` of its promotion, or None.
    """

    def __init__(self, maker: Maker, job: Job) -> None:
        self.job = job
        self.promoted: float | None = None
        self._maker = maker
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._listeners: list[Inbox] = []

    def events(self) -> Iterator[Event]:
        """Yield all events, waiting for each, up to the last one (Done, Failed or Cancelled)."""
        for _, event in merge([self]):
            yield event

    @property
    def ended(self) -> bool:
        """Whether the last event has come."""
        with self._lock:
            return self._has_ended()

    def cancel(self) -> None:
        """Stop the job at its next step. Does nothing once the job has ended."""
        self._maker.cancel(self)

    def promote(self) -> None:
        """Turn a speculative job into a refinement."""
        self.promoted = self.promoted or time.monotonic()
        self._maker.promote(self)

    def favour(self) -> None:
        """Serve this speculative job before the others, and make all of its steps."""
        self._maker.favour(self)

    def listen(self, inbox: Inbox) -> None:
        """Put every event, including those so far, into `inbox` as (handle, event)."""
        with self._lock:
            for event in self._events:
                inbox.put((self, event))
            self._listeners.append(inbox)

    def tell(self, event: Event) -> None:
        """Pass an event to the listeners; ignored after the last event. Called by the maker."""
        with self._lock:
            if self._has_ended():
                return
            if isinstance(event, Step) and event.picture:  # a late listener gets the newest sketch only
                self._events = [_without_picture(earlier) for earlier in self._events]
            self._events.append(event)
            for inbox in self._listeners:
                inbox.put((self, event))

    def _has_ended(self) -> bool:
        return bool(self._events) and isinstance(self._events[-1], LAST_EVENTS)


def _without_picture(event: Event) -> Event:
    return replace(event, picture=None) if isinstance(event, Step) and event.picture else event


def merge(
    handles: Sequence[Handle], is_gone: Callable[[], bool] = lambda: False
) -> Iterator[tuple[int, Event]]:
    """Yield the events of several handles as they come, as (position in `handles`, event).

    Ends early when `is_gone`, which is called every ASK_S seconds, says that nobody listens any more.
    """
    inbox: SimpleQueue[tuple[Handle, Event]] = SimpleQueue()
    positions = {id(handle): position for position, handle in enumerate(handles)}
    for handle in handles:
        handle.listen(inbox)
    running, asked = len(handles), time.monotonic()
    while running:
        if time.monotonic() - asked >= ASK_S:
            if is_gone():
                return
            asked = time.monotonic()
        try:
            handle, event = inbox.get(timeout=ASK_S)
        except Empty:
            continue
        running -= isinstance(event, LAST_EVENTS)
        yield positions[id(handle)], event
