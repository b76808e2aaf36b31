"""Write events to the log in the order in which they happened, in a thread of their own."""

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
    """The log could not be written, and so what was asked for is not done."""


class Writer:
    """Appends events to a store in a thread of its own, one after the other.

    Whoever makes pictures posts, and never waits; whoever answers a person writes, and goes on once the event
    is on the disk. A process that is killed so loses at most what was posted a moment ago.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._posted: SimpleQueue[tuple[LogEvent, Future[None]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="study-log", daemon=True)
        self._lock = threading.Lock()
        self._closed = False
        self._thread.start()

    def post(self, event: LogEvent) -> "Future[None]":
        """Have the event written next; the future says when it is, or why it can't be."""
        written: Future[None] = Future()
        with self._lock:
            if self._closed:  # nobody would ever come to write it
                written.set_exception(RuntimeError("the log is closed"))
            else:
                self._posted.put((event, written))
        return written

    def close(self) -> None:
        """Write what was posted, and close the store."""
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
"""Has an event with this body written, as happening now."""


def wait_for(written: "Future[None]") -> None:
    """Go on once the event is on the disk. Raises NotRecorded where it can't be."""
    try:
        written.result()
    except Exception as error:
        raise NotRecorded("This could not be recorded. Please try again in a minute.") from error
