"""Simulated participants: programs that use the running app as a person might. No person takes part.

They look at one picture after the other for a stated time, accept one when the judging reader finds all that
the prompt asked for, and perhaps things that it left open, and else ask for others. Each makes every prompt's
picture in all conditions, from the same seeds. Their log is labelled as simulated, and so is its report.
"""

import argparse
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import torch
from gradio_client import Client
from gradio_client.client import Job
from gradio_client.exceptions import AppError
from PIL import Image
from tqdm import tqdm

from app.study.log.enrolment import enrol
from app.study.log.events import (
    Body,
    ComputeEnd,
    GiveUp,
    Hover,
    LogEvent,
    RatingGiven,
    Refine,
    Reroll,
    Satisfied,
    Select,
    SessionEnded,
    Submit,
    TrialStart,
    read_event,
)
from app.study.log.reading import read_log
from app.study.log.store import Store, open_store
from app.study.log.withdrawal import code_of, participant_of
from app.study.plan.definition import Analysis, Condition, RatingQuestion, Study, StudyTask
from app.study.plan.order import order_of
from app.study.report.analysis import exclude, time_ratio
from app.study.report.document import write_report
from app.study.report.trial_table import trial_table
from checkpoints.recipe.scenes import ATTRIBUTES, sample_scene
from solver.evaluation.measures import faithfulness, load_judge

PROMPTS = Path(__file__).parents[3] / "checkpoints/landscapes/prompts/test.jsonl"
MODEL = PROMPTS.parents[1]
PAPER_SPEED_UP = 1.85
"""Full-step ÷ preview-and-refine in the study of arXiv 2512.13592, with people."""
LOOK_S = 0.4
TIME_CAP_S = 120.0
# No participant asks for so many pictures of a prompt that the seeds run out.
LAST_SEED = 10**9
CONDITIONS = (
    Condition("one", "full", count=1),
    Condition("full", "full"),
    Condition("classical", "preview", solver="dpm++2m"),
    Condition("consistency", "preview"),
    Condition("speculative", "preview", speculate=True),
)
QUALITY = RatingQuestion("quality", "Share of what was wanted that is in the picture", "none", "all", 11)
# Prompts that name so many things are taken.
NAMED = range(2, 5)
MAX_UNSAID = len(ATTRIBUTES) - NAMED[-1]

Faithful = Callable[[Path, Mapping[str, str]], float]
"""How much of what a prompt names a picture has, in [0, 1]."""


@dataclass(frozen=True)
class Goal:
    """A prompt, and what its picture is to show, attribute -> value: what it names, and maybe more."""

    prompt: str
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class Turn:
    """A picture to make. seed: of the first; the others follow it, so that all conditions see the same."""

    condition: Condition
    task: str
    position: int
    seed: int


def plan(study: Study, number: int) -> list[Turn]:
    """All that a participant does: each task in every condition, one right after the other, from the same
    noise. A program remembers no task, so that nothing is carried over; the order of conditions goes on
    through the balanced square with every task."""
    turns: list[Turn] = []
    for place, task in enumerate(study.tasks):
        mark = hashlib.sha256(f"{number} {task.id}".encode()).digest()
        seed = int.from_bytes(mark[:4]) % LAST_SEED
        for condition in order_of(study, number + place):
            turns.append(Turn(condition, task.id, len(turns), seed))
    return turns


@dataclass
class Participant:
    """Programs that take part, one after the other, each known by its number.

    judge: decides whether a picture will do. reader: another one, built differently, that rates what was
    accepted. look_s: seconds for each picture.
    """

    app: Client
    store: Store
    study: Study
    judge: Faithful
    reader: Faithful
    look_s: float = LOOK_S

    def left(self, number: int) -> list[Turn]:
        """What a participant has not done yet, as the log says."""
        table = trial_table(self._known(number))
        done = set(table.loc[table["outcome"] != "left", "position"])
        return [turn for turn in plan(self.study, number) if turn.position not in done]

    def take_part(self, number: int, goals: Mapping[str, Goal]) -> Iterator[None]:
        """Do what is left for a participant; yields after each picture."""
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
            note(TrialStart(*start))
            self._do(turn, goals[turn.task], note)
            yield
        self.store.append(LogEvent(participant, session, SessionEnded(), study=self.study.digest))

    def _secret(self, number: int) -> str:
        return f"{self.study.digest} {number}"

    def _known(self, number: int) -> list[LogEvent]:
        lines = self.store.lines(participant_of(code_of(self._secret(number))))
        return [event for event, _ in map(read_event, lines)]

    def _do(self, turn: Turn, goal: Goal, note: Callable[[Body], None]) -> None:
        condition, seed, end = turn.condition, turn.seed, time.monotonic() + self.study.time_cap_s
        first = True
        while time.monotonic() < end:
            if not first:
                note(Reroll([]))
            first = False
            files = self._pictures(condition, goal, seed, note)
            if self._look_through(condition, goal, dict(enumerate(files, seed)), note):
                return
            seed += condition.count
        note(GiveUp(True))

    def _look_through(
        self, condition: Condition, goal: Goal, files: Mapping[int, Path], note: Callable[[Body], None]
    ) -> bool:
        """Whether one of these, by their seeds, is what was wanted."""
        ahead: Job | None = None
        for seed, file in files.items():
            until = time.monotonic() + self.look_s
            note(Hover(seed))
            if condition.speculate:
                self._drop(ahead)
                ahead = self._refine(condition, goal, seed)
            time.sleep(max(0.0, until - time.monotonic()))
            if self.judge(file, goal.attributes) < 1:
                continue
            note(Select(seed))
            final = file
            if condition.mode == "preview":
                final = self._final(condition, ahead or self._refine(condition, goal, seed), seed, note)
                ahead = None
                time.sleep(self.look_s)
                if self.judge(final, goal.attributes) < 1:
                    continue
            note(Satisfied(seed))
            share = self.reader(final, goal.attributes)
            note(RatingGiven(QUALITY.id, 1 + round((QUALITY.points - 1) * share)))
            return True
        self._drop(ahead)
        return False

    def _pictures(
        self, condition: Condition, goal: Goal, seed: int, note: Callable[[Body], None]
    ) -> list[Path]:
        full, request = condition.mode == "full", secrets.token_hex(8)
        steps = condition.full_steps if full else condition.steps
        solver = condition.full_solver if full else condition.solver
        seeds = list(range(seed, seed + condition.count))
        note(Submit(request, "preview", seeds, steps, solver, MODEL.name, 3.0))
        files, records = self.app.predict(
            prompt=goal.prompt, seed=seed, count=condition.count, steps=steps, solver=solver,
            api_name="/preview",
        )  # fmt: skip
        evaluations = sum(each["evaluations"] for each in records)
        note(ComputeEnd(request, "done", records[0]["revision"], evaluations))
        return [_path(file) for file in files]

    def _refine(self, condition: Condition, goal: Goal, seed: int) -> Job:
        return self.app.submit(
            prompt=goal.prompt,
            seed=seed,
            steps=condition.full_steps,
            solver=condition.full_solver,
            api_name="/refine",
        )

    def _drop(self, ahead: Job | None) -> None:
        """End a refinement that was made ahead and is not wanted; the cores are free afterwards."""
        if ahead is not None:
            self.app.predict(api_name="/cancel")
            wait([ahead.future])

    def _final(self, condition: Condition, job: Job, seed: int, note: Callable[[Body], None]) -> Path:
        request = secrets.token_hex(8)
        note(Refine(seed))
        note(Submit(request, "refine", [seed], condition.full_steps, condition.full_solver, MODEL.name, 3.0))
        file, record = job.result()
        note(ComputeEnd(request, "done", record["revision"], record["evaluations"]))
        return _path(file)


def reader_of(kind: str) -> Faithful:
    """The judge ("judge") or the other reader ("reward") of the embedded model."""
    if kind == "judge":
        reader = load_judge(MODEL)
    else:
        from checkpoints.readers import READERS

        reader = READERS[kind].from_pretrained(MODEL / "readers" / kind).float().eval()

    def faithful(path: Path, named: Mapping[str, str]) -> float:
        pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 127.5 - 1
        seen = reader.read(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        return float(faithfulness(seen, [named])[0])

    return faithful


def make_study(
    goals: Mapping[str, Goal], conditions: Sequence[Condition] = CONDITIONS, look_s: float = LOOK_S
) -> Study:
    """The study that the programs take part in: every goal in each of the conditions.

    Its digest is that of all this, so that a run that was cut off goes on with the same study.
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


def read_goals(count: int, unsaid: int = 0, path: Path = PROMPTS) -> dict[str, Goal]:
    """The first prompts that name two to four things, by names of their own.

    Rarely does a picture have all of a longer list, and one thing is found in nearly every picture.

    Args:
        unsaid: how many things more are wanted of a picture than its prompt says, 0 to MAX_UNSAID.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    fit = [(row["prompt"], row["attributes"]) for row in rows if len(row["attributes"]) in NAMED]
    return {
        f"prompt-{n}": Goal(prompt, named | _unsaid(prompt, named, unsaid))
        for n, (prompt, named) in enumerate(fit[:count])
    }


def _unsaid(prompt: str, named: Mapping[str, str], count: int) -> dict[str, str]:
    """So many attributes that the prompt leaves open, as they are in a scene that has all that it names.

    The scene is drawn as those are that the model learned from; so what is usual is wanted more often.
    """
    if not count:
        return {}
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8]))
    scenes = map(asdict, iter(partial(sample_scene, rng), None))
    scene = next(scene for scene in scenes if named.items() <= scene.items())
    wanted = rng.permutation(sorted(scene.keys() - named.keys()))[:count]
    return {str(name): scene[name] for name in wanted}


def summary(study: Study, log: str, look_s: float) -> dict[str, Any]:
    """What came of it: speed-ups against four full pictures, beside the paper's, and how many pictures were
    accepted: of those that were looked at, and of the refined ones."""
    events = [event for event in read_log(log).events if event.study == study.digest]
    table = exclude(trial_table(events))[0]
    told: dict[str, Any] = {
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
        told["accepted"][name] = _share(rows["picked"].sum(), rows["looked"].sum())
        refined = rows["refinements"].sum()
        if refined:
            told["finals_accepted"][name] = _share((rows["outcome"] == "satisfied").sum(), refined)
    for name in (each.id for each in study.conditions if each.id != "full"):
        told["speed_up_over_full"][name] = _speed_up(table, name)
        told["when_first_try_will_do"][name] = _speed_up(_at_first_try(table, name), name)
    return told


def _share(part: int, of: int) -> float:
    return round(float(part / of), 3)


def _at_first_try(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The trials of the prompts for which one try was enough in this condition as well as with `full`."""
    both = table[table["condition"].isin([name, "full"])]
    enough = (both["tries"] == 1) & (both["outcome"] == "satisfied")
    return both[enough.groupby([both["participant"], both["task"]]).transform("sum") == 2]


def _speed_up(table: pd.DataFrame, name: str) -> list[float] | str:
    """Time with `full` ÷ time with the condition, and its interval; or why there is none."""
    try:
        ratio = time_ratio(table, "full", name, full=False).paired
    except ValueError as error:
        return str(error)
    return [round(each, 3) for each in (ratio.value, ratio.low, ratio.high)]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The command; goes on with what an earlier run of the same into the same folder left.

    Raises ValueError, in words, where the app does not answer.
    """
    try:
        client = Client(options.url, verbose=False)
    except Exception as error:  # whatever httpx and gradio_client raise
        raise ValueError(f"no app answers at {options.url}: start it with `python app.py`.") from error
    goals = read_goals(options.prompts, options.unsaid)
    study = make_study(goals, look_s=options.look)
    options.out.mkdir(parents=True, exist_ok=True)
    log = str(options.out / "simulated.sqlite")
    with closing(open_store(log)) as store:
        someone = Participant(client, store, study, reader_of("judge"), reader_of("reward"), options.look)
        every = options.participants * len(goals) * len(study.conditions)
        left = sum(len(someone.left(number)) for number in range(options.participants))
        with tqdm(total=every, initial=every - left, desc="simulated", unit="picture") as bar:
            try:
                for number in range(options.participants):
                    for _ in someone.take_part(number, goals):
                        bar.update()
            except (httpx.HTTPError, AppError, OSError) as error:
                why = str(error) or type(error).__name__
                raise ValueError(
                    f"the app at {options.url} has stopped answering ({why}). Start it again, and then this "
                    "command: it goes on where it was."
                ) from error
    write_report(study, read_log(log), options.out)
    told = summary(study, log, options.look)
    (options.out / "summary.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return told


def _path(file: Any) -> Path:
    return Path(file["path"] if isinstance(file, Mapping) else file)
