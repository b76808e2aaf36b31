"""A function that can be stopped in its middle: it runs in a thread, and only while its caller waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch


class Abandoned(BaseException):
    """Raised within a coroutine that nobody will continue; no `except Exception` catches it."""


class Coroutine:
    """Runs `body(coroutine)` in a thread, which takes turns with the caller of `send`.

    For code that calls back where it should give way, such as a pipeline with a loop of its own. Never two
    sides run at once, so neither needs locks.

    Args:
        body: called with this object; what it returns is in `result` then.
        device: the body works in this device's current stream.

    Attributes:
        question: what the body waits for an answer to; None before it begins and once it has ended.
        result: what the body returned.
        done: whether it has ended.
    """

    def __init__(self, body: Callable[[Coroutine], Any], device: torch.device | None = None) -> None:
        self.question: Any = None
        self.result: Any = None
        self.done = False
        self._body, self._device = body, device
        self._error: BaseException | None = None
        self._answer: Any = None
        self._closed = False
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._stream = torch.cuda.current_stream(device) if device and device.type == "cuda" else None

    def send(self, answer: Any = None) -> Any:
        """Begin, or go on with the answer to its question; return the next question, None at the end.

        Raises what the body raises.
        """
        self._answer = answer
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="picture", daemon=True)
            self._thread.start()
        self._turn.release()
        self._back.acquire()
        if self._error is not None:
            raise self._error
        return self.question

    def ask(self, question: Any) -> Any:
        """Within the body: give way, and return what the other side answers."""
        self.question = question
        self._back.release()
        self._turn.acquire()
        if self._closed:
            raise Abandoned
        answer, self._answer, self.question = self._answer, None, None
        return answer

    def close(self) -> None:
        """End the body where it waits, and wait until it has ended. It may be called more than once."""
        self._closed = True
        if self._thread is not None and not self.done:
            self._turn.release()
            self._thread.join()

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self._closed:
                stream = torch.cuda.stream(self._stream) if self._stream else nullcontext()
                with torch.inference_mode(), stream:
                    self.result = self._body(self)
        except Abandoned:
            pass
        except BaseException as error:
            self._error = error
        self.question, self.done = None, True
        self._back.release()
