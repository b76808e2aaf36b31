"""A metered backend, and what is logged."""

import io
import logging
from collections.abc import Iterator

import pytest

from app.server.logs import start_logging
from app.server.metered import MeteredBackend
from app.server.metrics import Metrics
from app.worker import Worker


@pytest.fixture
def metered(worker: Worker) -> MeteredBackend:
    metrics = Metrics()
    worker.on_tick = metrics.tick
    return MeteredBackend(worker, metrics)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged, as JSON."""
    root, mine = logging.getLogger(), logging.getLogger("app")
    before = root.handlers, root.level, mine.level
    stream = io.StringIO()
    start_logging("json", "info", stream)
    yield stream
    root.handlers = before[0]
    root.setLevel(before[1])
    mine.setLevel(before[2])
