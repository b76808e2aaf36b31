"""Simulated participants: programs that use the running app as a person might. No person takes part.

They look at one picture after the other for a stated time, accept one when the judging reader finds all that
the prompt asked for, and else ask for others. Their log is labelled as simulated, and so is its report.
"""

import argparse
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gradio_client import Client
from PIL import Image
from tqdm import tqdm

from app.study.analysis import exclude, time_ratio
from app.study.definition import Analysis, Condition, Rating, Study, Task
from app.study.design import Trial, places, trials
from app.study.enrolment import enrol
from app.study.events import (
    Body,
    ComputeEnd,
    Event,
    GiveUp,
    RatingGiven,
    Refine,
    Reroll,
    Satisfied,
    Select,
    SessionEnded,
    Submit,
    TrialStart,
)
from app.study.outcomes import trial_table
from app.study.reading import read_log
from app.study.report import write_report
from app.study.store import Store, open_store
from solver.measures import faithfulness, load_judge

PROMPTS = Path(__file__).parents[2] / "checkpoints/landscapes/prompts/test.jsonl"
MODEL = PROMPTS.parents[1]
PAPER_SPEED_UP = 1.85
"""Full-step ÷ preview-and-refine in the study of arXiv 2512.13592, with people."""
LOOK_S = 0.4
TIME_CAP_S = 120.0
CONDITIONS = (
    Condition("one", "full", count=1),
    Condition("full", "full"),
    Condition("classical", "preview", solver="dpm++2m"),
    Condition("consistency", "preview"),
    Condition("speculative", "preview", speculate=True),
)
QUALITY = Rating("quality", "Share of the prompt's words that are in the picture", "none", "all", 11)

Faithful = Callable[[Path, Mapping[str, str]], float]
"""How much of what a prompt names a picture has, in [0, 1]."""


@dataclass(frozen=True)
class Goal:
    """A prompt and what it names, attribute -> value."""

    prompt: str
    attributes: Mapping[str, str]


@dataclass
class Participant:
    """One program that takes part.

    judge: decides whether a picture will do. reader: another one, built differently, that rates what was
    accepted. look_s: seconds for each picture. looked, accepted: previews or pictures so far, by condition.
    """

    app: Client
    store: Store
    study: Study
    judge: Faithful
    reader: Faithful
    look_s: float = LOOK_S
    looked: dict[str, int] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)

    def take_part(self, goals: Mapping[str, Goal]) -> Iterator[None]:
        """Do all trials of the next place; yields after each."""
        who = enrol(self.store, self.study, simulated=True)
        for trial in trials(self.study, who.place):
            name = secrets.token_hex(8)

            def note(body: Body, name: str = name) -> None:
                self.store.append(Event(who.participant, who.session, body, name, study=self.study.digest))

            note(TrialStart(trial.condition.id, trial.task.id, trial.position, False, False, TIME_CAP_S))
            self._do(trial, goals[trial.task.id], note)
            yield
        self.store.append(Event(who.participant, who.session, SessionEnded(), study=self.study.digest))

    def _do(self, trial: Trial, goal: Goal, note: Callable[[Body], None]) -> None:
        condition, end = trial.condition, time.monotonic() + self.study.time_cap_s
        first = True
        while time.monotonic() < end:
            if not first:
                note(Reroll([]))
            first = False
            files, records = self._previews(condition, goal, note)
            for file, record in zip(files, records, strict=True):
                seed = int(record["seed"])
                ahead = condition.speculate and record is records[0]  # one alone: a program can't cancel
                guess = self._refine(condition, goal, seed) if ahead else None
                time.sleep(self.look_s)
                self.looked[condition.id] = self.looked.get(condition.id, 0) + 1
                if self.judge(file, goal.attributes) < 1:
                    continue
                self.accepted[condition.id] = self.accepted.get(condition.id, 0) + 1
                note(Select(seed))
                final = file if condition.mode == "full" else self._final(condition, goal, seed, guess, note)
                if condition.mode == "preview":
                    time.sleep(self.look_s)
                if condition.mode == "full" or self.judge(final, goal.attributes) == 1:
                    note(Satisfied(seed))
                    share = self.reader(final, goal.attributes)
                    note(RatingGiven(QUALITY.id, 1 + round((QUALITY.points - 1) * share)))
                    return
        note(GiveUp(True))

    def _previews(
        self, condition: Condition, goal: Goal, note: Callable[[Body], None]
    ) -> tuple[list[Path], list[dict[str, Any]]]:
        full = condition.mode == "full"
        steps, solver = (
            (condition.full_steps, condition.full_solver) if full else (condition.steps, condition.solver)
        )
        request, model = secrets.token_hex(8), MODEL.name
        note(Submit(request, "preview", [], steps, solver, model, 3.0))
        files, records = self.app.predict(
            prompt=goal.prompt, count=condition.count, steps=steps, solver=solver, api_name="/preview"
        )
        note(
            ComputeEnd(request, "done", records[0]["revision"], sum(each["evaluations"] for each in records))
        )
        return [_path(file) for file in files], records

    def _refine(self, condition: Condition, goal: Goal, seed: int) -> Any:
        return self.app.submit(
            prompt=goal.prompt,
            seed=seed,
            steps=condition.full_steps,
            solver=condition.full_solver,
            api_name="/refine",
        )

    def _final(
        self, condition: Condition, goal: Goal, seed: int, guess: Any, note: Callable[[Body], None]
    ) -> Path:
        request = secrets.token_hex(8)
        note(Refine(seed))
        note(Submit(request, "refine", [seed], condition.full_steps, condition.full_solver, MODEL.name, 3.0))
        file, record = (guess or self._refine(condition, goal, seed)).result()
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


def make_study(goals: Mapping[str, Goal], conditions: Sequence[Condition] = CONDITIONS) -> Study:
    """The study that the programs take part in: every goal once, each in one of the conditions."""
    return Study(
        title="Simulated participants: no person took part",
        consent="",
        tasks=tuple(Task(name, goal.prompt) for name, goal in goals.items()),
        conditions=tuple(conditions),
        ratings=(QUALITY,),
        analysis=Analysis("full", "consistency", QUALITY.id, 0.5),
        time_cap_s=TIME_CAP_S,
        digest=f"simulated-{secrets.token_hex(4)}",
    )


def read_goals(count: int, path: Path = PROMPTS) -> dict[str, Goal]:
    """The first prompts that name two to four things, by names of their own.

    Rarely does a picture have all of a longer list, and one thing is found in nearly every picture.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    fit = [row for row in rows if 2 <= len(row["attributes"]) <= 4]
    return {f"prompt-{n}": Goal(row["prompt"], row["attributes"]) for n, row in enumerate(fit[:count])}


def summary(participant: Participant, log: str, seconds: float) -> dict[str, Any]:
    """What came of it: speed-ups against four full pictures, and acceptance rates; beside the paper's."""
    table = exclude(trial_table(read_log(log).events))[0]
    told: dict[str, Any] = {
        "simulated": True,
        "paper_speed_up_with_people": PAPER_SPEED_UP,
        "look_s": participant.look_s,
        "trials": len(table),
        "wall_s": round(seconds, 1),
        "acceptance": {
            name: round(participant.accepted.get(name, 0) / count, 3)
            for name, count in participant.looked.items()
        },
        "speed_up_over_full": {},
        "when_first_try_will_do": {},
    }
    for name in (each.id for each in participant.study.conditions if each.id != "full"):
        for key, rows in (
            ("speed_up_over_full", table),
            ("when_first_try_will_do", table[table["tries"] == 1]),
        ):
            try:
                ratio = time_ratio(rows, "full", name, full=False).paired
            except ValueError as error:
                told[key][name] = str(error)
            else:
                told[key][name] = [round(each, 3) for each in (ratio.value, ratio.low, ratio.high)]
    return told


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The command. Raises ValueError, in words, where the app does not answer."""
    try:
        client = Client(options.url, verbose=False)
    except Exception as error:  # whatever httpx and gradio_client raise
        raise ValueError(f"no app answers at {options.url}: start it with `python app.py`.") from error
    goals = read_goals(options.prompts)
    study, began = make_study(goals), time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    log = str(options.out / "simulated.sqlite")
    store = open_store(log)
    participant = Participant(client, store, study, reader_of("judge"), reader_of("reward"), options.look)
    count = options.count or places(study)
    with tqdm(total=count * len(goals), desc="simulated", unit="trial") as bar:
        for _ in range(count):
            for _ in participant.take_part(goals):
                bar.update()
    store.close()
    write_report(study, read_log(log), options.out)
    told = summary(participant, log, time.monotonic() - began)
    (options.out / "summary.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return told


def _path(file: Any) -> Path:
    return Path(file["path"] if isinstance(file, Mapping) else file)
