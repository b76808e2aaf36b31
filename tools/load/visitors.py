"""Simulated visitors: they request a grid, look at it, and may pick, cancel or leave."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from app.jobs.job import Kind
from tools.load.trace import Visit

GRID, PREVIEW_STEPS, FULL_STEPS = 4, 6, 40

Picture = Any
"""A clock's handle of one requested picture."""
Ending = Literal["done", "cancelled", "failed"]


class Clock(Protocol):
    """The time and the maker of pictures in a run: `RealClock` or `VirtualClock`."""

    @property
    def now(self) -> float:
        """Seconds since the start."""
        ...

    @property
    def ticks(self) -> int:
        """Denoiser calls so far."""
        ...

    def call_at(self, time: float, action: Callable[[], None]) -> None:
        """Call `action` at a time; at once if it has passed."""
        ...

    def submit(
        self, kind: Kind, owner: str, seeds: Sequence[int], ended: Callable[[Picture, Ending], None]
    ) -> list[Picture] | None:
        """Request pictures together; return None if they are refused. `ended` is called for each picture."""
        ...

    def cancel(self, picture: Picture) -> None:
        """Cancel one picture."""
        ...

    def promote(self, picture: Picture) -> int:
        """Turn a speculative job into a refinement; return the steps it has made."""
        ...


@dataclass
class TimedRequest:
    """A grid or a refinement.

    Attributes:
        asked, ended: times in seconds; `ended` is None until it ends.
        guessed_steps: steps made before it was picked.
    """

    kind: Kind
    asked: float
    outcome: Literal["running", "done", "refused", "cancelled", "failed"] = "running"
    ended: float | None = None
    guessed_steps: int = 0

    @property
    def seconds(self) -> float:
        """Seconds from the request to the last picture; infinite if it is not done."""
        return self.ended - self.asked if self.ended is not None and self.outcome == "done" else float("inf")


@dataclass
class RequestLog:
    """All requests of one run.

    Attributes:
        cancel_ticks: ticks from each cancel to its effect.
    """

    requests: list[TimedRequest] = field(default_factory=list)
    cancel_ticks: list[int] = field(default_factory=list)

    def ask(self, kind: Kind, now: float) -> TimedRequest:
        """Record a new request."""
        self.requests.append(TimedRequest(kind, now))
        return self.requests[-1]


class Visitor:
    """One visit; with `speculate`, all previews are refined speculatively, as on the page."""

    def __init__(self, visit: Visit, clock: Clock, record: RequestLog, speculate: bool) -> None:
        self._visit = visit
        self._clock = clock
        self._record = record
        self._speculate = speculate
        self._owner = f"user {visit.user}"
        self._seeds = [visit.seed + position for position in range(GRID)]
        self._grid: TimedRequest | None = None
        self._final: TimedRequest | None = None
        self._left: set[Picture] = set()
        self._guesses: dict[int, Picture] = {}
        self._wanted: Picture | None = None
        self._cancelled_at: dict[Picture, int] = {}
        self._gone = False

    def arrive(self) -> None:
        """Request the grid."""
        clock, visit = self._clock, self._visit
        self._grid = self._record.ask("preview", clock.now)
        pictures = clock.submit("preview", self._owner, self._seeds, self._ended)
        if pictures is None:
            self._grid.outcome = "refused"
            return
        self._left = set(pictures)
        if visit.cancel_s is not None:
            clock.call_at(clock.now + visit.cancel_s, self._cancel_grid)
        if visit.leave_s is not None:
            clock.call_at(clock.now + visit.leave_s, self._leave)

    def _ended(self, picture: Picture, ending: Ending) -> None:
        if picture in self._cancelled_at:
            self._record.cancel_ticks.append(self._clock.ticks - self._cancelled_at.pop(picture))
        if picture in self._left:
            self._left.discard(picture)
            self._end(self._grid, ending, whole=not self._left)
            if self._grid and self._grid.outcome == "done":
                self._look()
        elif picture == self._wanted:
            self._end(self._final, ending, whole=True)

    def _end(self, request: TimedRequest | None, ending: Ending, whole: bool) -> None:
        if request and request.outcome == "running" and (whole or ending != "done"):
            request.outcome, request.ended = ending, self._clock.now

    def _look(self) -> None:
        if self._gone:
            return
        if self._speculate:
            guesses = self._clock.submit("speculative", self._owner, self._seeds, self._ended)
            self._guesses = dict(zip(self._seeds, guesses or [], strict=False))
        if self._visit.pick is not None:
            self._clock.call_at(self._clock.now + self._visit.think_s, self._pick)
        else:
            # A visitor who picks nothing requests the next grid, which cancels the guesses.
            self._clock.call_at(self._clock.now + self._visit.think_s, self._drop_guesses)

    def _pick(self) -> None:
        if self._gone or self._visit.pick is None:
            return
        clock, visit = self._clock, self._visit
        seed = self._seeds[self._visit.pick]
        self._final = self._record.ask("refine", clock.now)
        guess = self._guesses.pop(seed, None)
        self._drop_guesses()
        if guess is not None:
            self._wanted = guess
            self._final.guessed_steps = clock.promote(guess)
            if self._final.guessed_steps >= FULL_STEPS:
                self._end(self._final, "done", whole=True)
        else:
            pictures = clock.submit("refine", self._owner, [seed], self._ended)
            if pictures is None:
                self._final.outcome = "refused"
                return
            (self._wanted,) = pictures
        if visit.cancel_final_s is not None:
            clock.call_at(clock.now + visit.cancel_final_s, self._cancel_final)

    def _cancel_grid(self) -> None:
        self._cancel(self._left)

    def _cancel_final(self) -> None:
        if self._wanted is not None and self._final and self._final.outcome == "running":
            self._cancel([self._wanted])

    def _drop_guesses(self) -> None:
        self._cancel(self._guesses.values())
        self._guesses.clear()

    def _leave(self) -> None:
        self._gone = True
        self._cancel_grid()
        self._cancel_final()
        self._drop_guesses()

    def _cancel(self, pictures: Iterable[Picture]) -> None:
        for picture in list(pictures):
            self._cancelled_at.setdefault(picture, self._clock.ticks)
            self._clock.cancel(picture)


class Regular:
    """A visitor without pauses: a grid, the refinement of a preview, the next grid, until the run ends."""

    def __init__(self, number: int, clock: Clock) -> None:
        self._owner = f"regular {number}"
        self._clock = clock
        self._seed = 1_000_000 * (number + 1)
        self._left = 0

    def arrive(self, picture: Picture = None, ending: Ending = "done") -> None:
        """Request the next grid, unless the last refinement was cancelled."""
        if ending == "cancelled":
            return
        self._seed += 1000
        seeds = [self._seed + position for position in range(GRID)]
        self._left = GRID
        self._clock.submit("preview", self._owner, seeds, self._previewed)

    def _previewed(self, picture: Picture, ending: Ending) -> None:
        self._left -= 1
        if self._left == 0 and ending != "cancelled":
            self._clock.submit("refine", self._owner, [self._seed], self.arrive)
