"""Metrics for Prometheus. None of them identifies a person or a prompt."""

from collections.abc import Callable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
    start_http_server,
)

SECONDS = (0.1, 0.25, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120, 300)
TICK_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
PICTURES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """All metrics of one app, in their own registry.

    Label "kind": preview, refine or speculative (a guess). Label "outcome": done, failed or cancelled.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.pictures = self._make(Counter, "pictures", "Pictures that came to an end", "kind", "outcome")
        self.refusals = self._make(Counter, "refusals", "Requests that were refused", "reason")
        self.open = self._make(Gauge, "pictures_open", "Pictures not finished", "kind", "state")
        self.wait = self._make(
            Histogram, "wait_seconds", "From asking to the first step", "kind", buckets=SECONDS
        )
        self.seconds = self._make(
            Histogram, "picture_seconds", "From asking to the finished picture", "kind", buckets=SECONDS
        )
        self.guesses = self._make(Counter, "guesses", "Guesses at what will be picked", "fate")
        self.guess_steps = self._make(Counter, "guess_steps", "Denoiser steps of guesses", "fate")
        self.ticks = self._make(Histogram, "tick_seconds", "One denoiser call", buckets=TICK_SECONDS)
        self.batches = self._make(Histogram, "batch_pictures", "Pictures in one call", buckets=PICTURES)
        self.ready = self._make(Gauge, "ready", "1 while work is accepted")
        self.healthy = self._make(Gauge, "healthy", "1 while pictures can be made")

    def _make(self, kind: Callable, name: str, words: str, *labels: str, **options: object) -> Any:
        return kind(f"diffusion_preview_{name}", words, labels, registry=self.registry, **options)

    def tick(self, seconds: float, pictures: int) -> None:
        """Count a denoiser call: how long it took, and for how many pictures."""
        self.ticks.observe(seconds)
        self.batches.observe(pictures)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def serve(self, port: int, host: str) -> Callable[[], None]:
        """Serve the metrics on their own port; return how to stop that. Raises OSError if it is taken."""
        server, thread = start_http_server(port, host, self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop
