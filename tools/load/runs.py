"""One run: a policy under a load, on either clock."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from app.jobs.job import KINDS
from app.models import ImageModel
from app.worker import Worker
from app.worker.costs import Costs
from tools.load.figures import ROWS
from tools.load.policies import POLICIES
from tools.load.real import RealClock
from tools.load.trace import Visit
from tools.load.virtual import VirtualClock
from tools.load.visitors import Clock, Regular, RequestLog, Visitor

REGULARS = 8
# Seconds from the last arrival to the end of a real run; what is unfinished then is cancelled.
PATIENT_S = 90.0


class Running(Clock, Protocol):
    """A clock with a loop."""

    def run(self, until: float = float("inf")) -> None:
        """Run until no timers and pictures are left, or until a time."""
        ...


@dataclass
class Meter:
    """Measures the duration of a worker's calls in a run; `costs` are their durations on an idle machine."""

    costs: Costs
    taken: dict[int, list[float]] = field(default_factory=dict)

    def __call__(self, seconds: float, pictures: int) -> None:
        self.taken.setdefault(ROWS * pictures, []).append(seconds)

    @property
    def calls(self) -> dict[int, float]:
        """Mean seconds of a call, by its rows."""
        return {rows: sum(times) / len(times) for rows, times in self.taken.items()}

    @property
    def pace(self) -> float:
        """Measured seconds of all calls ÷ their costs."""
        expected = sum(len(times) * self.costs.tick(rows) for rows, times in self.taken.items())
        return sum(map(sum, self.taken.values())) / expected if expected else 1.0


@dataclass(frozen=True)
class Outcome:
    """The results of a run.

    Attributes:
        record: all requests.
        made: steps, as in `Worker.made`.
        meter: durations of calls, on a real clock.
    """

    record: RequestLog
    made: Mapping[str, int]
    meter: Meter


def replay_virtually(
    policy: str,
    meter: Meter,
    visits: Sequence[Visit],
    rate: float,
    first: Costs | None = None,
    call_s: Callable[[int], float] | None = None,
) -> Outcome:
    """Replay `rate` visits per second on the virtual clock.

    Args:
        first: the calibration to start from; by default the meter's costs.
        call_s: seconds of a call by its rows; by default as `meter` measured.
    """
    calls, pace = meter.calls, meter.pace
    call_s = call_s or (lambda rows: calls.get(rows) or pace * meter.costs.tick(rows))
    clock = VirtualClock(POLICIES[policy], first or meter.costs, call_s)
    record = _replay(clock, visits, rate, POLICIES[policy].speculates)
    return Outcome(record, clock.made, meter)


def replay(
    policy: str,
    model: ImageModel,
    costs: Costs,
    visits: Sequence[Visit],
    rate: float,
    longest_s: float = float("inf"),
) -> Outcome:
    """Replay `rate` visits per second on a new worker, for `longest_s` seconds at most."""
    worker, meter = _metered(policy, model, costs)
    until = min(visits[-1].at / rate + PATIENT_S, longest_s)
    record = _replay(RealClock(worker), visits, rate, POLICIES[policy].speculates, until)
    worker.close()
    return Outcome(record, worker.made, meter)


def saturate_virtually(policy: str, costs: Costs, pace: float, seconds: float) -> float:
    """Return the steps of pictures per second at full load, on the virtual clock."""
    clock = VirtualClock(POLICIES[policy], costs, lambda rows: pace * costs.tick(rows))
    _saturate(clock, seconds)
    return sum(clock.made[kind] for kind in KINDS) / seconds


def saturate(policy: str, model: ImageModel, costs: Costs, seconds: float) -> tuple[float, float]:
    """Return the steps of pictures per second at full load, and the pace, see `Meter`."""
    worker, meter = _metered(policy, model, costs)
    _saturate(RealClock(worker), seconds)
    made = sum(worker.made[kind] for kind in KINDS)
    worker.close()
    return made / seconds, meter.pace


def _metered(policy: str, model: ImageModel, costs: Costs) -> tuple[Worker, Meter]:
    worker, meter = Worker(model, POLICIES[policy], costs), Meter(costs)
    worker.on_tick = meter
    return worker, meter


def _replay(
    clock: Running, visits: Sequence[Visit], rate: float, speculate: bool, until: float = float("inf")
) -> RequestLog:
    record = RequestLog()
    for visit in visits:
        clock.call_at(visit.at / rate, Visitor(visit, clock, record, speculate).arrive)
    clock.run(until)
    return record


def _saturate(clock: Running, seconds: float) -> None:
    for number in range(REGULARS):
        Regular(number, clock).arrive()
    clock.run(seconds)
