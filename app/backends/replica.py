"""One replica of the Ray Serve backend: a worker in a process of the cluster, and how Serve is to run it."""

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, Field
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import LoggingConfig

from app.catalogue.fitting import Offload
from app.jobs.handle import Handle, merge
from app.jobs.job import Event, Job, RequestError
from app.models import Choice, ModelFacts, open_model
from app.worker.loop import Worker
from app.worker.queue import MAX_PICTURES

T = TypeVar("T")

# The worker orders everything and refuses what is too much, so Serve is to hold nothing back before it does.
MAX_REQUESTS = 2 * MAX_PICTURES
HEALTH_CHECK_PERIOD_S = 5.0
HEALTH_CHECK_TIMEOUT_S = 30.0
# The jobs of a page that has not been heard for so long are given up: it must have died.
SILENCE_S = 45.0
# A replica that is to end may finish this long what it has; what is left is made by others.
FAREWELL_S = 20.0
# A model that can't be loaded is tried this often before the deployment is called a failure.
STARTS = 3
# Keeps the requests of one owner on one replica, where their guesses and embeddings are.
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"

# A method of `Handle`, as it is sent to replicas.
Action = Literal["cancel", "promote", "favour"]
# What a stream says: first None for "accepted", or why not; then keys of jobs, and their events.
Said = None | RequestError | tuple[str, Event]


class ReplicaSettings(BaseModel, extra="forbid"):
    """How many replicas of what.

    model to preview_decoder: as `python app.py` takes them, see `Choice`. fewest, most: the number of
    replicas; between these it is such that each has about `requests` open. (While somebody looks at a grid,
    its guesses are one.) cpus, gpus: what Ray sets aside for each replica; without a GPU, it computes with so
    many threads.

    Raises pydantic.ValidationError where a value makes no sense.
    """

    model: str = "landscapes"
    device: str = "auto"
    solver: Path | None = None
    safety_checker: bool = True
    offload: Offload = "none"
    configs: Path | None = None
    compiled: bool = True
    preview_decoder: str = "auto"
    fewest: int = Field(default=1, ge=1)
    most: int = Field(default=1, ge=1)
    requests: float = Field(default=16, gt=0)
    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)


@dataclass(frozen=True)
class Counts:
    """What a replica has done: denoiser calls, and steps by kind, see `app.worker.Worker`; and who it is."""

    process: int
    ticks: int
    made: Counter[str]


class Replica:
    """A worker with its model, in a process that Ray Serve starts, watches and restarts."""

    def __init__(self, choice: Choice) -> None:
        self._worker = Worker(open_model(choice))
        self._handles: dict[str, tuple[str, Handle]] = {}  # by the jobs' keys, with whose they are
        self._heard: dict[str, float] = {}  # when each page last was

    def facts(self) -> ModelFacts:
        """What there is to know of the model."""
        return self._worker.facts

    def counts(self) -> Counts:
        """What it has done so far."""
        return Counts(os.getpid(), self._worker.ticks, self._worker.made)

    def check_health(self) -> None:
        """Asked by Serve now and then; a replica that raises here is replaced."""
        self._forget_the_silent()
        if not self._worker.healthy:
            raise RuntimeError("The last steps have all failed, or the worker's thread has ended.")

    async def stream(self, page: str, jobs: Mapping[str, Job]) -> AsyncGenerator[Said, None]:
        """Make a page's jobs that belong together, by keys of its choice; see `Said`.

        When this is cancelled, or nothing is heard of the page for SILENCE_S, they end at their next step.
        """
        self._heard[page] = time.monotonic()
        try:
            handles = self._worker.submit_all(list(jobs.values()))
        except RequestError as error:
            yield error  # said, not raised: Serve would put it into the log as an accident
            return
        mine = dict(zip(jobs, handles, strict=True))
        self._handles |= {key: (page, handle) for key, handle in mine.items()}
        keys = list(jobs)
        try:
            yield None
            async for position, event in _unblocked(merge(handles)):
                yield keys[position], event
        finally:
            for key, handle in mine.items():
                handle.cancel()  # does nothing to those that have ended
                self._handles.pop(key, None)

    def hear(self, page: str, actions: Sequence[tuple[str, Action]]) -> None:
        """Take a heartbeat of a page, and apply actions to those of its jobs that are here, by their keys."""
        self._heard[page] = time.monotonic()
        for key, action in actions:
            if key in self._handles:
                getattr(self._handles[key][1], action)()

    def _forget_the_silent(self) -> None:
        now = time.monotonic()
        self._heard = {page: heard for page, heard in self._heard.items() if now - heard < SILENCE_S}
        for page, handle in self._handles.values():
            if page not in self._heard:
                handle.cancel()


def application(settings: ReplicaSettings) -> serve.Application:
    """The replicas as an application, for `serve run app.backends.replica:application` and the like."""
    if settings.fewest == settings.most:
        number: dict = {"num_replicas": settings.most}
    else:
        number = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=settings.fewest,
                max_replicas=settings.most,
                target_ongoing_requests=settings.requests,
            )
        }
    deployment = serve.deployment(
        **number,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        max_ongoing_requests=MAX_REQUESTS,
        max_queued_requests=MAX_REQUESTS,
        request_router_config={"request_router_class": ROUTER},
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=FAREWELL_S,
        max_constructor_retry_count=STARTS,
        logging_config=LoggingConfig(log_level="WARNING"),
    )(Replica)
    return deployment.bind(Choice(**settings.model_dump(include={f.name for f in fields(Choice)})))


async def _unblocked(items: Iterator[T]) -> AsyncIterator[T]:
    """The items of an iterator that blocks, which a thread of its own runs to the end."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[T] | None] = asyncio.Queue()

    def run() -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it whoever listens
            for item in items:
                loop.call_soon_threadsafe(queue.put_nowait, (item,))
            loop.call_soon_threadsafe(queue.put_nowait, None)

    threading.Thread(target=run, name="stream", daemon=True).start()
    while boxed := await queue.get():
        yield boxed[0]
