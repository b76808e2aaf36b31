"""One replica of the Ray Serve backend: a worker in a process of the cluster, and its deployment."""

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

# The worker orders and refuses requests itself, so Serve's own limits must never be reached before.
MAX_REQUESTS = 2 * MAX_PICTURES
HEALTH_CHECK_PERIOD_S = 5.0
HEALTH_CHECK_TIMEOUT_S = 30.0
# Jobs of a page without a heartbeat for so long are cancelled: its process must have died.
SILENCE_S = 45.0
# Time for a replica to finish its jobs when it is stopped; another replica makes the rest.
SHUTDOWN_S = 20.0
# Attempts to load the model before the deployment fails.
STARTS = 3
# Sends the requests of one owner to one replica, which has their speculative jobs and embeddings.
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"

# Names of methods of `Handle`, as sent to replicas.
Action = Literal["cancel", "promote", "favour"]
# Items of a stream: first None for "accepted" or the error of a refusal, then (key of a job, event).
Message = None | RequestError | tuple[str, Event]


class ReplicaSettings(BaseModel, extra="forbid"):
    """Which model the replicas run, and how many there are.

    Attributes:
        model to preview_decoder: see `Choice`.
        fewest, most: bounds on the number of replicas.
        requests: open requests per replica that autoscaling aims at. The speculative jobs of a grid count
            as one while somebody looks at it.
        cpus, gpus: reserved for each replica; without a GPU it computes with `cpus` threads.

    Raises:
        pydantic.ValidationError: a value out of range or of the wrong type.
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
    """Work of a replica so far.

    Attributes:
        process: its process id.
        ticks, made: denoiser calls, and steps by kind, see `app.worker.Worker`.
    """

    process: int
    ticks: int
    made: Counter[str]


class Replica:
    """A worker with its model, in a process that Ray Serve starts, watches and restarts."""

    def __init__(self, choice: Choice) -> None:
        self._worker = Worker(open_model(choice))
        self._handles: dict[str, tuple[str, Handle]] = {}  # key of a job -> (page, handle)
        self._heard: dict[str, float] = {}  # page -> time of its last heartbeat

    def facts(self) -> ModelFacts:
        """Return the model's metadata."""
        return self._worker.facts

    def counts(self) -> Counts:
        """Return the work done so far."""
        return Counts(os.getpid(), self._worker.ticks, self._worker.made)

    def check_health(self) -> None:
        """Raise RuntimeError if it cannot work. Serve calls this regularly, and replaces it then."""
        self._cancel_jobs_of_silent_pages()
        if not self._worker.healthy:
            raise RuntimeError("The last steps have all failed, or the worker's thread has ended.")

    async def stream(self, page: str, jobs: Mapping[str, Job]) -> AsyncGenerator[Message, None]:
        """Make one request's jobs; yield a `Message` for its acceptance and each event.

        When this is cancelled, or the page sends no heartbeat for SILENCE_S, the jobs end at their next step.

        Args:
            page: key of the page's process.
            jobs: by keys of the page's choice.
        """
        self._heard[page] = time.monotonic()
        try:
            handles = self._worker.submit_all(list(jobs.values()))
        except RequestError as error:
            yield error  # not raised: Serve would log it as a failure
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
        """Note a page's heartbeat, and apply its actions, (key of a job, action), to jobs that are here."""
        self._heard[page] = time.monotonic()
        for key, action in actions:
            if key in self._handles:
                getattr(self._handles[key][1], action)()

    def _cancel_jobs_of_silent_pages(self) -> None:
        now = time.monotonic()
        self._heard = {page: heard for page, heard in self._heard.items() if now - heard < SILENCE_S}
        for page, handle in self._handles.values():
            if page not in self._heard:
                handle.cancel()


def application(settings: ReplicaSettings) -> serve.Application:
    """Build the Serve application of the replicas, as for `serve run app.backends.replica:application`."""
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
        graceful_shutdown_timeout_s=SHUTDOWN_S,
        max_constructor_retry_count=STARTS,
        logging_config=LoggingConfig(log_level="WARNING"),
    )(Replica)
    return deployment.bind(Choice(**settings.model_dump(include={f.name for f in fields(Choice)})))


async def _unblocked(items: Iterator[T]) -> AsyncIterator[T]:
    """Yield the items of a blocking iterator, which runs to its end in a thread."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[T] | None] = asyncio.Queue()

    def run() -> None:
        with suppress(RuntimeError):  # the loop has ended, so nobody listens
            for item in items:
                loop.call_soon_threadsafe(queue.put_nowait, (item,))
            loop.call_soon_threadsafe(queue.put_nowait, None)

    threading.Thread(target=run, name="stream", daemon=True).start()
    while boxed := await queue.get():
        yield boxed[0]
