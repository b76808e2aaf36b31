"""Soak test: many users over a long time, with cancels, lost tabs, invalid requests and failing steps."""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import torch
from tqdm import tqdm

from app.jobs.handle import Handle, merge
from app.jobs.job import Busy, Cancelled, Done, Failed, Job, RequestError
from app.models import ImageModel
from app.page.prompts import EXAMPLES
from app.worker import Worker
from app.worker.costs import Costs
from solver.diffusion import LatentDiffusion

USERS = 50
FAILING = 1 / 300  # share of the calls
CANCELLING, LEAVING, NONSENSE, PICKING = 0.1, 0.05, 0.05, 0.5
THINKING_S = 1.0
SAMPLE_S = 2.0
# Memory is compared after this share of the time; before, buffers and caches fill.
SETTLED = 0.2


@dataclass(frozen=True)
class Soaked:
    """The results of a soak test.

    Attributes:
        outcomes: number of pictures by outcome, and of refused and invalid (nonsense) requests.
        lost: pictures that never ended.
        memory_growth: of the process after SETTLED of the time, as a share: median of the last tenth of the
            samples ÷ median of the first tenth − 1.
    """

    minutes: float
    users: int
    outcomes: dict[str, int]
    lost: int
    failing_calls: int
    memory_mb: float
    memory_growth: float


@dataclass
class _Tally:
    outcomes: Counter[str] = field(default_factory=Counter)
    open: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, outcome: str, open_now: int = 0) -> None:
        with self.lock:
            if outcome != "asked":
                self.outcomes[outcome] += 1
            self.open += open_now


class _Failing:
    """A network whose calls fail at random, as a device may."""

    def __init__(self, diffusion: LatentDiffusion) -> None:
        self.failed = 0
        self._diffusion = diffusion

    def __getattr__(self, name: str) -> Any:
        return getattr(self._diffusion, name)

    def denoise(self, *args: Any) -> torch.Tensor:
        if random.random() < FAILING:
            self.failed += 1
            raise RuntimeError("a failing call, made for the soak")
        return self._diffusion.denoise(*args)


def soak(model: ImageModel, costs: Costs, seconds: float) -> Soaked:
    """Run the users for this time."""
    failing: Any = _Failing(model.diffusion)
    worker = Worker(replace(model, diffusion=failing), costs=costs)
    tally, stop = _Tally(), threading.Event()
    users = [threading.Thread(target=_use, args=(worker, number, tally, stop)) for number in range(USERS)]
    process, memory = psutil.Process(), []
    for user in users:
        user.start()
    began = time.monotonic()
    with tqdm(total=round(seconds), unit="s", desc="soaking") as bar:
        while (passed := time.monotonic() - began) < seconds:
            time.sleep(min(SAMPLE_S, seconds - passed))
            memory.append(process.memory_info().rss)
            bar.update(round(time.monotonic() - began) - bar.n)
    stop.set()
    worker.close()  # cancels what is left
    for user in users:
        user.join()
    settled = memory[round(SETTLED * len(memory)) :] or memory
    tenth = max(1, len(settled) // 10)
    first, last = sorted(settled[:tenth])[tenth // 2], sorted(settled[-tenth:])[tenth // 2]
    return Soaked(
        minutes=seconds / 60,
        users=USERS,
        outcomes=dict(tally.outcomes),
        lost=tally.open,
        failing_calls=failing.failed,
        memory_mb=last / 2**20,
        memory_growth=last / first - 1,
    )


def _use(worker: Worker, number: int, tally: _Tally, stop: threading.Event) -> None:
    """Act as one user until `stop` is set."""
    rng = random.Random(number)
    owner = f"user {number}"
    while not stop.is_set():
        if stop.wait(rng.expovariate(1 / THINKING_S)):
            return
        if rng.random() < NONSENSE:
            _ask(worker, rng, owner, tally, "preview", prompt="word " * 500)
            continue
        done = _ask(worker, rng, owner, tally, "preview")
        if done and rng.random() < PICKING:
            guesses = _submit(worker, rng, owner, tally, "speculative", rng.choice(EXAMPLES))
            stop.wait(rng.expovariate(1 / THINKING_S))
            for guess in guesses[1:]:
                guess.cancel()
            for guess in guesses[:1]:
                guess.promote()
            _follow(worker, rng, owner, tally, guesses)


def _ask(worker: Worker, rng: random.Random, owner: str, tally: _Tally, kind: str, prompt: str = "") -> bool:
    handles = _submit(worker, rng, owner, tally, kind, prompt or rng.choice(EXAMPLES))
    return _follow(worker, rng, owner, tally, handles)


def _submit(
    worker: Worker, rng: random.Random, owner: str, tally: _Tally, kind: str, prompt: str
) -> list[Handle]:
    facts = worker.facts
    steps, solver = (6, "consistency") if kind == "preview" else (40, "dpm++2m")
    seed = rng.randrange(2**31)
    try:
        jobs = [
            Job(
                kind,  # type: ignore[arg-type]
                prompt,
                seed + i,
                steps,
                facts.name,
                facts.width,
                facts.height,
                solver=solver,
                owner=owner,
            )
            for i in range(4)
        ]
        handles = worker.submit_all(jobs)
    except Busy:
        tally.note("refused")
        return []
    except RequestError:
        tally.note("nonsense")
        return []
    tally.note("asked", len(handles))
    return handles


def _follow(worker: Worker, rng: random.Random, owner: str, tally: _Tally, handles: list[Handle]) -> bool:
    """Read the events to the end, or cancel or leave at random; return whether all pictures were done."""
    fate = rng.random()
    done = bool(handles)
    for _, event in merge(handles):
        match event:
            case Done():
                tally.note("done", -1)
            case Failed():
                tally.note("failed", -1)
            case Cancelled():
                tally.note("cancelled", -1)
        done &= not isinstance(event, Failed | Cancelled)
        if fate < CANCELLING:
            for handle in handles:
                handle.cancel()
        elif fate < CANCELLING + LEAVING:
            worker.cancel_owner(owner)
    return done
