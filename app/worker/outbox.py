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

from app.models import ImageModel
from app.models.memory import split_on_oom
from app.models.safety import SafetyChecker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Letter:
    """One thing to tell. latents: of the picture that goes with it, if one does [*latent_shape].

    tell is called with the picture and the seconds that its decoding took; or, where decoding failed, `fail`
    with nothing; or, where the safety checker flagged the picture, `hold_back` (where there is none, `fail`).
    preview: whether the model's preview decoder draws it, where there is one.
    """

    latents: torch.Tensor | None
    tell: Callable[[Image.Image | None, float], None]
    fail: Callable[[], None]
    hold_back: Callable[[], None] | None = None
    preview: bool = False


class Outbox:
    """Decodes what was posted and tells the letters in order: of one post first previews, all in one call of
    their decoder, and then the others.

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

    def _deliver(self, letters: Sequence[Letter]) -> None:
        for preview in (True, False):
            self._deliver_alike([letter for letter in letters if letter.preview is preview], preview)

    @torch.inference_mode()
    def _deliver_alike(self, letters: Sequence[Letter], preview: bool) -> None:
        latents = [letter.latents for letter in letters if letter.latents is not None]
        began = time.perf_counter()
        try:
            made = iter(self._draw(latents, preview))
        except Exception:
            log.exception("Decoding failed for %d pictures", len(latents))
            made = None
        if made is None and len(letters) > 1:  # so that no picture takes others along
            for letter in letters:
                self._deliver_alike([letter], preview)
            return
        seconds = (time.perf_counter() - began) / max(1, len(latents))
        for letter in letters:
            if made is None:
                letter.fail()
                continue
            picture, flagged = next(made) if letter.latents is not None else (None, False)
            if flagged:
                (letter.hold_back or letter.fail)()
            else:
                letter.tell(picture, seconds)

    def _draw(self, latents: Sequence[torch.Tensor], preview: bool) -> list[tuple[Image.Image, bool]]:
        """The pictures of latents, and whether the checker flags them."""
        if not latents:
            return []
        pictures = split_on_oom(
            lambda part: self._model.pictures(torch.stack(list(part)), preview=preview), latents
        )
        flags = self._checker.flagged(pictures) if self._checker else [False] * len(pictures)
        return list(zip(pictures, flags, strict=True))
