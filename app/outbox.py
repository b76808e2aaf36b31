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

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Letter:
    """One thing to tell. latents: of the picture that goes with it, if one does [*latent_shape].

    tell is called with the picture and the seconds that its decoding took, or, where decoding failed, `fail`
    with nothing.
    """

    latents: torch.Tensor | None
    tell: Callable[[Image.Image | None, float], None]
    fail: Callable[[], None]


class Outbox:
    """Decodes what was posted, all pictures of a post in one call, and tells the letters in order.

    On a CPU that happens at once, within `post`. Elsewhere it happens in a thread with a stream of its own,
    so that decoding goes on beside the next steps of the denoiser.
    """

    def __init__(self, model: ImageModel, beside: bool | None = None) -> None:
        self._model = model
        self._posted: SimpleQueue[Sequence[Letter] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        device = model.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if device.type != "cpu" if beside is None else beside:
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
            pictures = iter(in_halves(lambda part: self._model.pictures(torch.stack(list(part))), latents))
        except Exception:
            log.exception("Decoding failed; %d pictures are given up", len(latents))
            for letter in letters:
                letter.fail() if letter.latents is not None else letter.tell(None, 0.0)
            return
        seconds = (time.perf_counter() - began) / max(1, len(latents))
        for letter in letters:
            letter.tell(next(pictures) if letter.latents is not None else None, seconds)
