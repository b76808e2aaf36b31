"""Simulate studies with a known effect, to check the report's statistics. No person takes part."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from app.study.plan.definition import Study
from app.study.plan.order import trials
from app.study.report.analysis import time_ratio
from app.study.report.trial_table import COLUMNS


@dataclass(frozen=True)
class Truth:
    """The true effect and the variation of log seconds.

    Attributes:
        ratio: time with the treatment ÷ with the control, for the typical participant.
        seconds: of the typical trial with the control.
        participant, effect, task, noise: standard deviations between participants, of their own effects,
            between tasks, and of the rest.
    """

    ratio: float = 0.54
    seconds: float = 20.0
    participant: float = 0.4
    effect: float = 0.25
    task: float = 0.3
    noise: float = 0.5


@dataclass(frozen=True)
class Coverage:
    """How often the primary interval contained the true ratio. No person took part."""

    participants: int
    studies: int
    coverage: float
    error: float
    mean_ratio: float
    true_ratio: float
    power: float
    simulated: bool = True


def simulated_trials(study: Study, participants: int, truth: Truth, rng: np.random.Generator) -> pd.DataFrame:
    """Return the trials (see `app.study.report.trial_table`) of random participants in the study's design."""
    tasks = {task.id: rng.normal(0, truth.task) for task in study.tasks}
    rows = []
    for person in range(participants):
        level, own = rng.normal(0, truth.participant), rng.normal(0, truth.effect)
        for trial in trials(study, person):
            if trial.practice:
                continue
            treated = trial.condition.id == study.analysis.treatment
            log_s = math.log(truth.seconds) + level + tasks[trial.task.id] + rng.normal(0, truth.noise)
            log_s += (math.log(truth.ratio) + own) if treated else 0.0
            seconds = math.exp(log_s)
            late = seconds > study.time_cap_s
            row = dict.fromkeys(COLUMNS, 0.0) | {
                "participant": f"simulated {person}",
                "session": f"simulated {person}",
                "trial": f"{person} {trial.position}",
                "simulated": True,
                "finished": True,
                "place": person,
                "position": trial.position,
                "condition": trial.condition.id,
                "task": trial.task.id,
                "practice": False,
                "outcome": "timed_out" if late else "satisfied",
                "seconds": min(seconds, study.time_cap_s),
                "cap_s": study.time_cap_s,
                "tries": 1 + rng.poisson(0.7),
            }
            mood = rng.normal(0, 1)
            for question in study.ratings:
                middle = 0.7 * question.points + mood + 0.5 * rng.normal()
                row[f"rating_{question.id}"] = float(np.clip(round(middle), 1, question.points))
            rows.append(row)
    return pd.DataFrame(rows)


def measure_coverage(
    study: Study, participants: int, studies: int, truth: Truth, seed: int = 0
) -> Iterator[Coverage]:
    """Yield how often the primary interval contains the true ratio, after each simulated study."""
    held = found = 0
    logs = []
    of, over = study.analysis.treatment, study.analysis.control
    for number in range(1, studies + 1):
        rng = np.random.default_rng([seed, participants, number])
        ratio = time_ratio(simulated_trials(study, participants, truth, rng), of, over, full=False)
        held += ratio.paired.low <= truth.ratio <= ratio.paired.high
        found += ratio.p < 0.05
        logs.append(math.log(ratio.paired.value))
        share = held / number
        yield Coverage(
            participants,
            number,
            share,
            math.sqrt(share * (1 - share) / number),
            math.exp(float(np.mean(logs))),
            truth.ratio,
            found / number,
        )
