"""The Ray Serve backend beside the page: requests go to the replicas, and are followed to their end.

Serve watches the replicas and restarts them. A picture is a function of its job, so what a replica had not
finished when it died is simply asked for again.
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

# Before each further try to have a request made, while Serve replaces what has died.
PAUSES_S = (0.2, 1, 2, 4, 8, 15)
# Whom no replica takes within this time is told to come back.
ACCEPT_S = 15.0
# Replicas hear of this page so often.
BEAT_S = 10.0
# The longest that sending an action, or closing, may be held up.
SEND_S = CLOSING_S = 10.0

_GONE = "What makes the pictures is being restarted. Please try again in a minute."


@dataclass(eq=False)
class _OpenJob:
    """A job on its way: the key under which replicas know it, and what was done to it."""

    handle: Handle
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    actions: list[Action] = field(default_factory=list)


class Replicas:
    """Has pictures made by the replicas of a Serve deployment.

    facts: what the replicas tell of their model. calls: their deployment. stop: called at the end of `close`.

    healthy: False after a request that no replica could be brought to make, until one is made again.
    """

    def __init__(self, facts: ModelFacts, calls: DeploymentHandle, stop: Callable[[], None]) -> None:
        self.facts = facts
        self.speculates = True
        self.healthy = True
        self._calls = calls
        self._stop = stop
        self._closed = False
        self._loop = asyncio.new_event_loop()
        # From here on, only what runs in the loop touches these.
        self._tasks: dict[Handle, _OpenJob] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._unsent: list[tuple[str, Action]] = []
        self._page = secrets.token_hex(8)
        self._loop.call_soon_threadsafe(self._begin, self._beat())
        threading.Thread(target=self._loop.run_forever, name="replicas", daemon=True).start()

    def submit(self, job: Job) -> Handle:
        """Queue a job; returns once a replica has it. See `submit_all`."""
        return self.submit_all([job])[0]

    def submit_all(self, jobs: Sequence[Job]) -> list[Handle]:
        """Queue jobs that start together, such as a grid, on one replica; returns once it has them.

        Raises RequestError, in words, when they can't be done (see `ModelFacts.plan`), and Busy where they
        would have to wait for too long or no replica takes them within ACCEPT_S.
        """
        for job in jobs:
            self.facts.plan(job)
        if self._closed:
            raise RequestError("The app is shutting down.")
        handles = [Handle(self, job) for job in jobs]
        accepted: Future[None] = Future()
        self._loop.call_soon_threadsafe(self._begin, self._see_through(handles, accepted))
        accepted.result()
        return handles

    def cancel(self, handle: Handle) -> None:
        """Give a job up. Does nothing for one that has ended, as all of these."""
        self._loop.call_soon_threadsafe(self._note, handle, "cancel")

    def promote(self, handle: Handle) -> None:
        """Turn a speculative job into a refinement."""
        self._loop.call_soon_threadsafe(self._note, handle, "promote")

    def favour(self, handle: Handle) -> None:
        """Serve a speculative job before the others of its kind, and to the end."""
        self._loop.call_soon_threadsafe(self._note, handle, "favour")

    def cancel_owner(self, owner: str) -> None:
        """Cancel all jobs of an owner, running or waiting."""

        def cancel() -> None:
            for handle in self._tasks:
                if handle.job.owner == owner:
                    self._note(handle, "cancel")

        self._loop.call_soon_threadsafe(cancel)

    def close(self) -> None:
        """Cancel everything, and end."""
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(CLOSING_S)
        self._stop()

    # ---- from here on, all in the loop

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run it beside everything else. (The loop by itself forgets what it runs.)"""
        task = self._loop.create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _end(self) -> None:
        """Give up all requests: replicas cancel what nobody waits for."""
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
            if action == "cancel":  # told at once, since just now there may be no replica that has it
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
        """Send a heartbeat and these actions to all replicas.

        All, because which of them has a job is known to the router alone, and changes with their number.
        """
        try:
            await self._calls.broadcast("hear", self._page, actions).results_async(
                timeout_s=SEND_S, return_exceptions=True
            )
        except Exception as error:  # where a replica is gone, the actions are sent again to the next
            log.info("The replicas could not be told: %s", first_line(error))

    async def _see_through(self, handles: Sequence[Handle], accepted: Future[None]) -> None:
        """Have jobs made, and made again where a replica dies over them, until their handles have ended.

        accepted: set once a replica has them; holds the RequestError where none is willing.
        """
        tasks = [_OpenJob(handle) for handle in handles]
        self._tasks |= {task.handle: task for task in tasks}
        why: RequestError = Busy(_GONE)
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
                        why = error
                        if not accepted.done():
                            return
                    except (Exception, asyncio.CancelledError) as error:
                        if _was_cancelled():  # Serve's own cancelling looks the same from here
                            raise
                        log.warning("A replica was lost; its pictures are made anew: %s", first_line(error))
            lost = [handle for handle in handles if not handle.ended]
            if lost:
                self.healthy = False
                log.error("No replica could make a request, again and again: it is given up")
            for handle in lost:
                handle.tell(Failed(str(why)))
        except TimeoutError:
            log.warning("No replica took a request within %.0f s: it is refused", ACCEPT_S)
        finally:
            for handle in handles:
                handle.tell(Cancelled())  # says nothing to those that have ended otherwise
                del self._tasks[handle]
            if not accepted.done():
                accepted.set_exception(why)

    async def _try(self, left: Mapping[str, _OpenJob], accept: Callable[[], None]) -> None:
        """Have these jobs made by one replica; raises whatever comes between, such as its death.

        accept: called when it has them.
        """
        jobs = {key: task.handle.job for key, task in left.items()}
        owner = next(iter(jobs.values())).owner
        stream: Any = self._calls.stream.options(stream=True, session_id=owner).remote(self._page, jobs)
        try:
            async for said in stream:
                match said:
                    case None:
                        accept()
                        self._send([(key, action) for key, task in left.items() for action in task.actions])
                    case RequestError():
                        raise said
                    case key, event:
                        left[key].handle.tell(event)
        except BackPressureError:
            raise Busy("Too many people are waiting. Please try again in a minute.") from None
        except BaseException:
            stream.cancel()
            raise
        if not all(task.handle.ended for task in left.values()):
            raise RuntimeError("its stream ended too early")


def _was_cancelled() -> bool:
    """Whether the running task has been told to end."""
    task = asyncio.current_task()
    return bool(task and task.cancelling())


def first_line(error: BaseException) -> str:
    """An error, short enough for one line."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
