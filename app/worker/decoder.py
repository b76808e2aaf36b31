"""Turn latents into pictures and deliver the events that carry them, in the order in which they were made."""

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from queue import SimpleQueue

import torch
from PIL import Image

from app.jobs.handle import Handle
from app.jobs.job import Done, Event, Failed, Record, Step
from app.models import ImageModel
from app.models.memory import split_on_oom
from app.models.safety import HELD_BACK
from app.worker.costs import FORGETTING

log = logging.getLogger(__name__)

FAILED = Failed("Something went wrong while making this picture. Please try again.")


@dataclass(frozen=True)
class DecodeRequest:
    """One event to deliver to a job's handle, once the picture that it carries is decoded.

    Attributes:
        handle: of the job.
        result: a step, which a picture may go with, or the record of the finished picture.
        latents: of the picture [C, H, W]; None for a step without one.
        preview: whether the model's preview decoder draws it, where there is one.
    """

    handle: Handle
    result: Step | Record
    latents: torch.Tensor | None = None
    preview: bool = False

    def event(self, picture: Image.Image, seconds: float) -> Event:
        """The event with its picture, which took so many seconds to decode."""
        if isinstance(self.result, Step):
            return replace(self.result, picture=picture)
        return Done(picture, replace(self.result, seconds=self.result.seconds + seconds))

    def event_without(self, instead: Failed) -> Event:
        """The event where there is no picture to show: a step goes without, a finished picture fails."""
        return self.result if isinstance(self.result, Step) else instead


class Decoder:
    """Decodes pictures, has the model's safety checker look at them, and delivers their events.

    On a CPU that happens within `submit`. On other devices a thread with a stream of its own does it, beside
    the next steps of the denoiser.

    Args:
        model: whose decoders and safety checker to use.
        seconds: estimate for one picture.
        beside: whether to use a thread; by default as described above.

    Attributes:
        seconds: what decoding a picture on the way takes, as a running mean.
    """

    def __init__(self, model: ImageModel, seconds: float = 0.0, beside: bool | None = None) -> None:
        self.seconds = seconds
        self._model = model
        self._submitted: SimpleQueue[Sequence[DecodeRequest] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        device = model.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if device.type != "cpu" and not model.offloaded if beside is None else beside:
            self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
            self._thread.start()

    def submit(self, requests: Sequence[DecodeRequest]) -> None:
        """Deliver the requests' events, those of previews first; their latents must no longer change."""
        if not requests:
            return
        if self._thread:
            if self._stream:
                self._stream.wait_stream(torch.cuda.current_stream(self._model.device))
            self._submitted.put(requests)
        else:
            self._deliver(requests)

    def close(self) -> None:
        """Deliver what was submitted, and end."""
        if self._thread:
            self._submitted.put(None)
            self._thread.join()

    def _run(self) -> None:
        while requests := self._submitted.get():
            with self._on_stream():
                self._deliver(requests)

    def _on_stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def _deliver(self, requests: Sequence[DecodeRequest]) -> None:
        for preview in (True, False):
            self._deliver_together([request for request in requests if request.preview is preview], preview)

    @torch.inference_mode()
    def _deliver_together(self, requests: Sequence[DecodeRequest], preview: bool) -> None:
        """Decode the latents of all requests in one call, and deliver the events in order."""
        latents = [request.latents for request in requests if request.latents is not None]
        began = time.perf_counter()
        try:
            decoded = iter(self._decode(latents, preview))
        except Exception:
            log.exception("Decoding failed for %d pictures", len(latents))
            if len(requests) > 1:  # one by one, so that a broken picture fails alone
                for request in requests:
                    self._deliver_together([request], preview)
                return
            decoded = iter([(None, False)])
        seconds = (time.perf_counter() - began) / max(1, len(latents))
        for request in requests:
            picture, flagged = next(decoded) if request.latents is not None else (None, False)
            if picture and not flagged:
                request.handle.tell(request.event(picture, seconds))
                if isinstance(request.result, Step):
                    self.seconds += FORGETTING * (seconds - self.seconds)
            else:
                request.handle.tell(request.event_without(HELD_BACK if flagged else FAILED))

    def _decode(
        self, latents: Sequence[torch.Tensor], preview: bool
    ) -> list[tuple[Image.Image | None, bool]]:
        """The pictures of latents, and whether the safety checker flags each."""
        if not latents:
            return []
        pictures = split_on_oom(
            lambda part: self._model.pictures(torch.stack(list(part)), preview=preview), latents
        )
        checker = self._model.safety
        flags = checker.flagged(pictures) if checker else [False] * len(pictures)
        return list(zip(pictures, flags, strict=True))
