"""The Ray Serve backend in the page's process: send requests to replicas, and receive their events.

Serve watches the replicas and restarts them. A picture is a function of its job, so the jobs that a dead
replica had not finished are sent again.
"""

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from app.backends.replica import Action
from app.jobs.handle import Handle
from app.jobs.job import Busy, Cancelled, Failed, Job, RequestError
from app.models import ModelFacts

log = logging.getLogger(__name__)

# Pauses before a request is sent again, while Serve replaces a dead replica.
PAUSES_S = (0.2, 1, 2, 4, 8, 15)
# A request that no replica accepts within this time is refused.
ACCEPT_S = 15.0
# Time between heartbeats to the replicas.
BEAT_S = 10.0
# Time limits for sending an action and for closing.
SEND_S = CLOSING_S = 10.0

_GONE = "The picture service is being restarted. Please try again in a minute."


@dataclass(eq=False)
class _OpenJob:
    """An unfinished job.

    Attributes:
        handle: of the job.
        key: by which replicas know it.
        actions: applied to its handle so far, in order.
    """

    handle: Handle
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    actions: list[Action] = field(default_factory=list)


class Replicas:
    """Backend whose pictures are made by the replicas of a Serve deployment.

    Args:
        facts: metadata of the replicas' model.
        calls: their deployment.
        stop: called at the end of `close`.

    Attributes:
        healthy: False after a request that no replica completed, until one is accepted again.
    """

    def __init__(self, facts: ModelFacts, calls: DeploymentHandle, stop: Callable[[], None]) -> None:
        self.facts = facts
        self.speculates = True
        self.healthy = True
        self._calls = calls
        self._stop = stop
        self._closed = False
        self._loop = asyncio.new_event_loop()
        # The following are used in the loop's thread only.
        self._tasks: dict[Handle, _OpenJob] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._unsent: list[tuple[str, Action]] = []
        self._page = secrets.token_hex(8)
        self._loop.call_soon_threadsafe(self._begin, self._beat())
        threading.Thread(target=self._loop.run_forever, name="replicas", daemon=True).start()

    def submit(self, job: Job) -> Handle:
        """Queue a job, and return once a replica has accepted it. See `submit_all`."""
        return self.submit_all([job])[0]

    def submit_all(self, jobs: Sequence[Job]) -> list[Handle]:
        """Queue jobs that start together, such as a grid, on one replica; return once it has accepted them.

        Raises:
            RequestError: the model cannot make them, see `ModelFacts.plan`.
            Busy: they would have to wait for too long, or no replica accepts them within ACCEPT_S.
        """
        for job in jobs:
            self.facts.plan(job)
        if self._closed:
            raise RequestError("The app is shutting down.")
        handles = [Handle(self, job) for job in jobs]
        accepted: Future[None] = Future()
        self._loop.call_soon_threadsafe(self._begin, self._follow(handles, accepted))
        accepted.result()
        return handles

    def cancel(self, handle: Handle) -> None:
        """Cancel a job. Does nothing once it has ended; so do `promote` and `favour`."""
        self._loop.call_soon_threadsafe(self._note, handle, "cancel")

    def promote(self, handle: Handle) -> None:
        """Turn a speculative job into a refinement."""
        self._loop.call_soon_threadsafe(self._note, handle, "promote")

    def favour(self, handle: Handle) -> None:
        """Serve a speculative job before the others, and make all of its steps."""
        self._loop.call_soon_threadsafe(self._note, handle, "favour")

    def cancel_owner(self, owner: str) -> None:
        """Cancel all jobs of an owner, running or waiting."""

        def cancel() -> None:
            for handle in self._tasks:
                if handle.job.owner == owner:
                    self._note(handle, "cancel")

        self._loop.call_soon_threadsafe(cancel)

    def close(self) -> None:
        """Cancel all jobs, and stop."""
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(CLOSING_S)
        self._stop()

    # The following run in the loop's thread.

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine concurrently, and keep a reference to its task, as the loop itself does not."""
        task = self._loop.create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _end(self) -> None:
        """Cancel all requests; replicas then cancel their jobs."""
        running = set(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=CLOSING_S / 2)

    def _note(self, handle: Handle, action: Action) -> None:
        task = self._tasks.get(handle)
        if task and not handle.ended and action not in task.actions:
            task.actions.append(action)
            self._send([(task.key, action)])
            if action == "cancel":  # report it now: no replica may have the job at present
                handle.tell(Cancelled())

    def _send(self, actions: list[tuple[str, Action]]) -> None:
        self._unsent += actions
        self._begin(self._send_unsent())

    async def _send_unsent(self) -> None:
        actions, self._unsent = self._unsent, []
        if actions:
            await self._tell_all(actions)

    async def _beat(self) -> None:
        while True:
            await self._tell_all([])
            await asyncio.sleep(BEAT_S)

    async def _tell_all(self, actions: list[tuple[str, Action]]) -> None:
        """Send a heartbeat and these actions to all replicas, as only the router knows which has a job."""
        try:
            await self._calls.broadcast("hear", self._page, actions).results_async(
                timeout_s=SEND_S, return_exceptions=True
            )
        except Exception as error:  # the actions are sent again with the jobs of a lost replica
            log.info("Sending to the replicas failed: %s", first_line(error))

    async def _follow(self, handles: Sequence[Handle], accepted: Future[None]) -> None:
        """Send jobs to a replica, again if it dies, until all their handles have ended.

        Args:
            accepted: set once a replica has accepted them, or to the RequestError of the refusal.
        """
        tasks = [_OpenJob(handle) for handle in handles]
        self._tasks |= {task.handle: task for task in tasks}
        reason: RequestError = Busy(_GONE)
        try:
            async with asyncio.timeout(ACCEPT_S) as deadline:

                def accept() -> None:
                    self.healthy = True
                    if not accepted.done():
                        deadline.reschedule(None)
                        accepted.set_result(None)

                for pause in (0, *PAUSES_S):
                    await asyncio.sleep(pause)
                    left = {task.key: task for task in tasks if not task.handle.ended}
                    if not left:
                        return
                    try:
                        return await self._try(left, accept)
                    except RequestError as error:
                        reason = error
                        if not accepted.done():
                            return
                    except (Exception, asyncio.CancelledError) as error:
                        if _was_cancelled():  # Serve raises CancelledError too
                            raise
                        log.warning("A replica was lost; its jobs are sent again: %s", first_line(error))
            lost = [handle for handle in handles if not handle.ended]
            if lost:
                self.healthy = False
                log.error("No replica could make a request after %d attempts; it failed", len(PAUSES_S) + 1)
            for handle in lost:
                handle.tell(Failed(str(reason)))
        except TimeoutError:
            log.warning("No replica accepted a request within %.0f s; it was refused", ACCEPT_S)
        finally:
            for handle in handles:
                handle.tell(Cancelled())  # ignored by those that have ended
                del self._tasks[handle]
            if not accepted.done():
                accepted.set_exception(reason)

    async def _try(self, left: Mapping[str, _OpenJob], accept: Callable[[], None]) -> None:
        """Have one replica make these jobs; raise any error on the way, such as its death.

        Args:
            accept: called when the replica has accepted them.
        """
        jobs = {key: task.handle.job for key, task in left.items()}
        owner = next(iter(jobs.values())).owner
        stream: Any = self._calls.stream.options(stream=True, session_id=owner).remote(self._page, jobs)
        try:
            async for message in stream:
                match message:
                    case None:
                        accept()
                        self._send([(key, action) for key, task in left.items() for action in task.actions])
                    case RequestError():
                        raise message
                    case key, event:
                        left[key].handle.tell(event)
        except BackPressureError:
            raise Busy("Too many people are waiting. Please try again in a minute.") from None
        except BaseException:
            stream.cancel()
            raise
        if not all(task.handle.ended for task in left.values()):
            raise RuntimeError("the stream ended before its jobs did")


def _was_cancelled() -> bool:
    """Whether the running task itself was cancelled."""
    task = asyncio.current_task()
    return bool(task and task.cancelling())


def first_line(error: BaseException) -> str:
    """First line of an error's message, or its class."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
