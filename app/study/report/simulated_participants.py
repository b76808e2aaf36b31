"""Simulated participants: programs that use the running app as a person might. No person takes part.

A program looks at each picture for a fixed time, and accepts it if the judging reader finds every attribute
that is wanted; otherwise it requests others. It makes each prompt's picture in all conditions, from the same
seeds. The log and the report say that the participants are simulated.
"""

import argparse
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
from gradio_client import Client
from gradio_client.client import Job
from gradio_client.exceptions import AppError
from tqdm import tqdm

from app.study.log import events
from app.study.log.enrolment import enrol
from app.study.log.events import Body, LogEvent, read_events
from app.study.log.reading import read_log
from app.study.log.store import Store, open_store
from app.study.log.withdrawal import code_of, participant_of
from app.study.plan.definition import Analysis, Condition, RatingQuestion, Study, StudyTask
from app.study.plan.order import order_of
from app.study.report.analysis import exclude, time_ratio
from app.study.report.document import write_report
from app.study.report.goals import MODEL, Faithful, Goal, read_goals, reader_of
from app.study.report.trial_table import trial_table
from app.study.shared import StudyProblem

PAPER_SPEED_UP = 1.85
"""Full-step ÷ preview-and-refine in the study of arXiv 2512.13592, with people."""
LOOK_S = 0.4
TIME_CAP_S = 120.0
GUIDANCE = 3.0
# No participant requests so many pictures of a prompt that the seeds run out.
LAST_SEED = 10**9
CONDITIONS = (
    Condition("one", "full", count=1),
    Condition("full", "full"),
    Condition("classical", "preview", solver="dpm++2m"),
    Condition("consistency", "preview"),
    Condition("speculative", "preview", speculate=True),
)
QUALITY = RatingQuestion("quality", "Share of what was wanted that is in the picture", "none", "all", 11)


@dataclass(frozen=True)
class Turn:
    """A picture to make; all conditions start from the same `seed` and count up from it."""

    condition: Condition
    task: str
    position: int
    seed: int


def turns_of(study: Study, number: int) -> list[Turn]:
    """Return everything a participant does: each task in every condition, right after each other.

    A program remembers no task, so nothing carries over. The order of the conditions continues through the
    balanced square from task to task.
    """
    turns: list[Turn] = []
    for place, task in enumerate(study.tasks):
        mark = hashlib.sha256(f"{number} {task.id}".encode()).digest()
        seed = int.from_bytes(mark[:4]) % LAST_SEED
        for condition in order_of(study, number + place):
            turns.append(Turn(condition, task.id, len(turns), seed))
    return turns


@dataclass
class SimulatedParticipants:
    """Programs that take part one after the other, each with a number.

    Attributes:
        judge: decides whether a picture is accepted.
        reader: a different network that rates accepted pictures.
        look_s: seconds spent on each picture.
    """

    app: Client
    store: Store
    study: Study
    judge: Faithful
    reader: Faithful
    look_s: float = LOOK_S

    def left(self, number: int) -> list[Turn]:
        """Return what a participant has not done yet, by the log."""
        table = trial_table(self._known(number))
        done = set(table.loc[table["outcome"] != "left", "position"])
        return [turn for turn in turns_of(self.study, number) if turn.position not in done]

    def take_part(self, number: int, goals: Mapping[str, Goal]) -> Iterator[None]:
        """Do what is left for a participant; yield after each picture."""
        known = self._known(number)
        if any(event.kind == "session_end" for event in known):
            return
        if known:
            participant, session = known[0].participant, known[0].session
        else:
            who = enrol(self.store, self.study, self._secret(number), simulated=True)
            participant, session = who.participant, who.session
        for turn in self.left(number):
            name = secrets.token_hex(8)

            def note(body: Body, name: str = name) -> None:
                self.store.append(LogEvent(participant, session, body, name, study=self.study.digest))

            start = (turn.condition.id, turn.task, turn.position, False, False, self.study.time_cap_s)
            note(events.TrialStart(*start))
            self._do(turn, goals[turn.task], note)
            yield
        self.store.append(LogEvent(participant, session, events.SessionEnded(), study=self.study.digest))

    def _secret(self, number: int) -> str:
        return f"{self.study.digest} {number}"

    def _known(self, number: int) -> list[LogEvent]:
        return list(read_events(self.store.lines(participant_of(code_of(self._secret(number))))))

    def _do(self, turn: Turn, goal: Goal, note: Callable[[Body], None]) -> None:
        condition, seed, end = turn.condition, turn.seed, time.monotonic() + self.study.time_cap_s
        first = True
        while time.monotonic() < end:
            if not first:
                note(events.Reroll([]))
            first = False
            files = self._pictures(condition, goal, seed, note)
            if self._look_through(condition, goal, dict(enumerate(files, seed)), note):
                return
            seed += condition.count
        note(events.GiveUp(True))

    def _look_through(
        self, condition: Condition, goal: Goal, files: Mapping[int, Path], note: Callable[[Body], None]
    ) -> bool:
        """Look at pictures, by their seeds, until one is accepted; return whether one was."""
        ahead: Job | None = None
        for seed, file in files.items():
            until = time.monotonic() + self.look_s
            note(events.Hover(seed))
            if condition.speculate:
                self._drop(ahead)
                ahead = self._refine(condition, goal, seed)
            time.sleep(max(0.0, until - time.monotonic()))
            if self.judge(file, goal.attributes) < 1:
                continue
            note(events.Select(seed))
            final = file
            if condition.mode == "preview":
                final = self._final(condition, ahead or self._refine(condition, goal, seed), seed, note)
                ahead = None
                time.sleep(self.look_s)
                if self.judge(final, goal.attributes) < 1:
                    continue
            note(events.Satisfied(seed))
            share = self.reader(final, goal.attributes)
            note(events.RatingGiven(QUALITY.id, 1 + round((QUALITY.points - 1) * share)))
            return True
        self._drop(ahead)
        return False

    def _pictures(
        self, condition: Condition, goal: Goal, seed: int, note: Callable[[Body], None]
    ) -> list[Path]:
        (solver, steps), request = condition.shown, secrets.token_hex(8)
        seeds = list(range(seed, seed + condition.count))
        note(events.Submit(request, "preview", seeds, steps, solver, MODEL.name, GUIDANCE))
        files, records = self.app.predict(
            prompt=goal.prompt, seed=seed, count=condition.count, steps=steps, solver=solver,
            api_name="/preview",
        )  # fmt: skip
        evaluations = sum(each["evaluations"] for each in records)
        note(events.ComputeEnd(request, "done", records[0]["revision"], evaluations))
        return [_path(file) for file in files]

    def _refine(self, condition: Condition, goal: Goal, seed: int) -> Job:
        solver, steps = condition.final
        return self.app.submit(prompt=goal.prompt, seed=seed, steps=steps, solver=solver, api_name="/refine")

    def _drop(self, ahead: Job | None) -> None:
        """Cancel a speculative refinement, and wait until the app is free."""
        if ahead is not None:
            self.app.predict(api_name="/cancel")
            wait([ahead.future])

    def _final(self, condition: Condition, job: Job, seed: int, note: Callable[[Body], None]) -> Path:
        (solver, steps), request = condition.final, secrets.token_hex(8)
        note(events.Refine(seed))
        note(events.Submit(request, "refine", [seed], steps, solver, MODEL.name, GUIDANCE))
        file, record = job.result()
        note(events.ComputeEnd(request, "done", record["revision"], record["evaluations"]))
        return _path(file)


def make_study(
    goals: Mapping[str, Goal], conditions: Sequence[Condition] = CONDITIONS, look_s: float = LOOK_S
) -> Study:
    """Return the programs' study: every goal in each of the conditions.

    The digest is computed from all of these, so an interrupted run continues the same study.
    """
    study = Study(
        title="Simulated participants: no person took part",
        consent="",
        tasks=tuple(StudyTask(name, goal.prompt) for name, goal in goals.items()),
        conditions=tuple(conditions),
        ratings=(QUALITY,),
        analysis=Analysis("full", "consistency", QUALITY.id, 0.5),
        time_cap_s=TIME_CAP_S,
    )
    mark = hashlib.sha256(f"{study} {[*goals.items()]} {look_s}".encode())
    return replace(study, digest="simulated-" + mark.hexdigest()[:8])


def summarise(study: Study, log: str, look_s: float) -> dict[str, Any]:
    """Summarise a log: speed-ups over four full pictures, and shares of accepted pictures and finals."""
    mine = [event for event in read_log(log).events if event.study == study.digest]
    table = exclude(trial_table(mine))[0]
    summary: dict[str, Any] = {
        "simulated": True,
        "paper_speed_up_with_people": PAPER_SPEED_UP,
        "look_s": look_s,
        "participants": int(table["participant"].nunique()),
        "trials": len(table),
        "accepted": {},
        "finals_accepted": {},
        "speed_up_over_full": {},
        "when_first_try_will_do": {},
    }
    for name, rows in table.groupby("condition", sort=False):
        summary["accepted"][name] = _share(rows["picked"].sum(), rows["looked"].sum())
        refined = rows["refinements"].sum()
        if refined:
            summary["finals_accepted"][name] = _share((rows["outcome"] == "satisfied").sum(), refined)
    for name in (each.id for each in study.conditions if each.id != "full"):
        summary["speed_up_over_full"][name] = _speed_up(table, name)
        summary["when_first_try_will_do"][name] = _speed_up(_at_first_try(table, name), name)
    return summary


def _share(part: int, of: int) -> float:
    return round(float(part / of), 3)


def _at_first_try(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the trials of prompts for which one try was enough both in this condition and with `full`."""
    both = table[table["condition"].isin([name, "full"])]
    enough = (both["tries"] == 1) & (both["outcome"] == "satisfied")
    return both[enough.groupby([both["participant"], both["task"]]).transform("sum") == 2]


def _speed_up(table: pd.DataFrame, name: str) -> list[float] | str:
    """Return time with `full` ÷ time with the condition and its interval, or why there is no estimate."""
    try:
        ratio = time_ratio(table, "full", name, full=False).paired
    except ValueError as error:
        return str(error)
    return [round(each, 3) for each in (ratio.value, ratio.low, ratio.high)]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the command `participants`; continue an earlier run with the same options and folder.

    Raises StudyProblem if the app does not answer.
    """
    try:
        client = Client(options.url, verbose=False)
    except Exception as error:  # any error of httpx and gradio_client
        raise StudyProblem(f"no app answers at {options.url}: start it with `python app.py`.") from error
    goals = read_goals(options.prompts, options.unsaid)
    study = make_study(goals, look_s=options.look)
    options.out.mkdir(parents=True, exist_ok=True)
    log = str(options.out / "simulated.sqlite")
    with closing(open_store(log)) as store:
        programs = SimulatedParticipants(
            client, store, study, reader_of("judge"), reader_of("reward"), options.look
        )
        every = options.participants * len(goals) * len(study.conditions)
        left = sum(len(programs.left(number)) for number in range(options.participants))
        with tqdm(total=every, initial=every - left, desc="simulated", unit="picture") as bar:
            try:
                for number in range(options.participants):
                    for _ in programs.take_part(number, goals):
                        bar.update()
            except (httpx.HTTPError, AppError, OSError) as error:
                reason = str(error) or type(error).__name__
                raise StudyProblem(
                    f"the app at {options.url} has stopped answering ({reason}). Start it again, and then "
                    "this command: it continues where it stopped."
                ) from error
    write_report(study, read_log(log), options.out)
    summary = summarise(study, log, options.look)
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _path(file: Any) -> Path:
    return Path(file["path"] if isinstance(file, Mapping) else file)
