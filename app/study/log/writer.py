"""Write events to the log, in order, in a thread of its own."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

from app.jobs.job import RequestError
from app.study.log.events import Body, LogEvent
from app.study.log.store import Store

log = logging.getLogger("app.study")


class NotRecorded(RequestError):
    """The log could not be written, so the request is not carried out."""


class Writer:
    """Appends events to a store, one after the other, in a thread of its own.

    The worker posts events and never waits. An answer to a participant waits until its event is on the disk,
    see `wait_for`. A killed process loses at most what was posted a moment before.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._posted: SimpleQueue[tuple[LogEvent, Future[None]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="study-log", daemon=True)
        self._lock = threading.Lock()
        self._closed = False
        self._thread.start()

    def post(self, event: LogEvent) -> "Future[None]":
        """Queue an event for writing; the future ends when it is on the disk, or with the error."""
        written: Future[None] = Future()
        with self._lock:
            if self._closed:  # the thread has ended
                written.set_exception(RuntimeError("the log is closed"))
            else:
                self._posted.put((event, written))
        return written

    def close(self) -> None:
        """Write everything posted so far, and close the store."""
        with self._lock:
            self._closed = True
            self._posted.put(None)
        self._thread.join()
        self.store.close()

    def _run(self) -> None:
        while posted := self._posted.get():
            event, written = posted
            try:
                self.store.append(event)
            except Exception as error:
                log.exception("An event of the kind %s could not be written", event.kind)
                written.set_exception(error)
            else:
                written.set_result(None)


Note = Callable[[Body], "Future[None]"]
"""Logs an event with this body, at the present time."""


def wait_for(written: "Future[None]") -> None:
    """Return once the event is on the disk. Raises NotRecorded if it can't be written."""
    try:
        written.result()
    except Exception as error:
        raise NotRecorded("This could not be recorded. Please try again in a minute.") from error
