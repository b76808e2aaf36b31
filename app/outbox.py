"""From latents to pictures, and to whoever waits for them, in the order in which they were made."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from PIL import Image

from app.memory import in_halves
from app.models import ImageModel
from app.safety import SafetyChecker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Letter:
    """One thing to tell. latents: of the picture that goes with it, if one does [*latent_shape].

    tell is called with the picture and the seconds that its decoding took; or, where decoding failed, `fail`
    with nothing; or, where the safety checker flagged the picture, `hold_back` (where there is none, `fail`).
    """

    latents: torch.Tensor | None
    tell: Callable[[Image.Image | None, float], None]
    fail: Callable[[], None]
    hold_back: Callable[[], None] | None = None


class Outbox:
    """Decodes what was posted, all pictures of a post in one call, and tells the letters in order.

    On a CPU that happens at once, within `post`. Elsewhere it happens in a thread with a stream of its own,
    so that decoding goes on beside the next steps of the denoiser. What `checker` flags is held back.
    """

    def __init__(
        self, model: ImageModel, beside: bool | None = None, checker: SafetyChecker | None = None
    ) -> None:
        self._model = model
        self._checker = checker
        self._posted: SimpleQueue[Sequence[Letter] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        device = model.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        beside = device.type != "cpu" and not model.offloaded if beside is None else beside
        if beside:
            self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
            self._thread.start()

    def post(self, letters: Sequence[Letter]) -> None:
        """Have the letters told; their latents must not be changed any more."""
        if not letters:
            return
        if self._thread:
            if self._stream:
                self._stream.wait_stream(torch.cuda.current_stream(self._model.device))
            self._posted.put(letters)
        else:
            self._deliver(letters)

    def close(self) -> None:
        """Tell what was posted, and end."""
        if self._thread:
            self._posted.put(None)
            self._thread.join()

    def _run(self) -> None:
        while letters := self._posted.get():
            with self._on_stream():
                self._deliver(letters)

    def _on_stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    @torch.inference_mode()
    def _deliver(self, letters: Sequence[Letter]) -> None:
        latents = [letter.latents for letter in letters if letter.latents is not None]
        began = time.perf_counter()
        try:
            pictures = in_halves(lambda part: self._model.pictures(torch.stack(list(part))), latents)
            flags = self._checker.flagged(pictures) if self._checker else [False] * len(pictures)
        except Exception:
            log.exception("Decoding failed; %d pictures are given up", len(latents))
            for letter in letters:
                letter.fail() if letter.latents is not None else letter.tell(None, 0.0)
            return
        seconds = (time.perf_counter() - began) / max(1, len(latents))
        made = iter(zip(pictures, flags, strict=True))
        for letter in letters:
            picture, flagged = next(made) if letter.latents is not None else (None, False)
            if flagged:
                (letter.hold_back or letter.fail)()
            else:
                letter.tell(picture, seconds)
