"""The fields of a study file: its texts, tasks, conditions, questions, analysis and limits.

`app.study.plan.study_file` reads a TOML file and has pydantic validate it against these dataclasses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictFloat, StrictInt, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from app.jobs.job import LIMITS
from app.study.plan.labels import INSTEAD, words_in
from app.study.shared import Strict
from solver import SOLVERS

NAME = r"^[a-z0-9][a-z0-9_-]{0,39}$"
TEXT = r"\S"
LANGUAGE = r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$"
MAX_COUNT, MAX_STEPS = int(LIMITS["count"].high), int(LIMITS["steps"].high)


def about(words: str, **limits: Any) -> Any:
    """Describe a field in an error message, and limit its values."""
    return Field(description=words, **limits)


def _check_solver(name: str) -> str:
    if name not in SOLVERS:
        raise ValueError("unknown solver")
    return name


Text = Annotated[str, Field(pattern=TEXT)]
Name = Annotated[str, Field(pattern=NAME, description="its name in the log")]
Steps = Annotated[StrictInt, Field(ge=1, le=MAX_STEPS)]
Solver = Annotated[
    str, AfterValidator(_check_solver), WithJsonSchema({"type": "string", "enum": list(SOLVERS)})
]


@dataclass(frozen=True)
class StudyTask(Strict):
    """What to make a picture of: a fixed `prompt`, or a `goal` for which participants write the prompt."""

    id: Name
    prompt: Annotated[str, about("the words given to the model")] = ""
    goal: Annotated[str, about("what the picture is for; the participant writes the prompt")] = ""


@dataclass(frozen=True)
class Condition(Strict):
    """A way to make pictures; nothing on the page says which one is in use.

    mode: "full" shows full-step pictures only; "preview" shows few-step previews, of which one is refined.
    """

    id: Name
    mode: Annotated[Literal["full", "preview"], about("full-step pictures only, or previews and refinement")]
    count: Annotated[StrictInt, about("pictures shown together", ge=1, le=MAX_COUNT)] = 4
    solver: Annotated[Solver, about("the solver of previews")] = "consistency"
    steps: Annotated[Steps, about("the steps of previews")] = 6
    full_solver: Annotated[Solver, about("the solver of full-step pictures")] = "dpm++2m"
    full_steps: Annotated[Steps, about("the steps of full-step pictures")] = 40
    speculate: Annotated[StrictBool, about("refine the likely choice while previews are looked at")] = False

    @property
    def shown(self) -> tuple[str, int]:
        """Solver and steps of the pictures shown first."""
        return self.final if self.mode == "full" else (self.solver, self.steps)

    @property
    def final(self) -> tuple[str, int]:
        """Solver and steps of full-step pictures."""
        return self.full_solver, self.full_steps


@dataclass(frozen=True)
class RatingQuestion(Strict):
    """A question after every trial, answered from 1 to `points`."""

    id: Name
    question: Annotated[Text, about("the question")]
    low: Annotated[Text, about("what 1 means")]
    high: Annotated[Text, about("what the highest answer means")]
    points: Annotated[StrictInt, about("the number of answers", ge=2, le=11)] = 5


@dataclass(frozen=True)
class ClosingQuestion(Strict):
    """An optional question at the end, answered by one of `choices`, or, without them, by free text."""

    id: Name
    question: Annotated[Text, about("the question")]
    choices: Annotated[tuple[str, ...], about("the answers to choose from; without them, free text")] = ()


@dataclass(frozen=True)
class Analysis(Strict):
    """The comparison that is fixed before anybody takes part."""

    control: Annotated[Text, about("the condition that the others are compared with")]
    treatment: Annotated[Text, about("the condition that the study is about")]
    quality: Annotated[Text, about("the rating that must not get worse")]
    margin: Annotated[StrictFloat, about("by how many points it may be worse", ge=0.01, le=10)]
    least_participants: Annotated[StrictInt, about("with fewer, the report warns", ge=2, le=10_000)] = 12


@dataclass(frozen=True)
class Study(Strict):
    """A whole study file.

    digest: a hash of the file's text, which every event carries; not a field of the file.
    """

    title: Annotated[Text, about("the title of the consent page")]
    consent: Annotated[Text, about("the text of the consent page")]
    tasks: Annotated[tuple[StudyTask, ...], about("what to make pictures of", min_length=1)]
    conditions: Annotated[tuple[Condition, ...], about("the ways to make pictures", min_length=2)]
    ratings: Annotated[tuple[RatingQuestion, ...], about("the questions after each trial", min_length=1)]
    analysis: Annotated[Analysis, about("what is compared")]
    closing: Annotated[tuple[ClosingQuestion, ...], about("the questions at the end")] = ()
    practice: Annotated[str, about("the prompt of the practice trial; without it, there is none")] = ""
    thanks: Annotated[str, about("the text of the last page, below its thanks")] = ""
    time_cap_s: Annotated[StrictFloat, about("seconds until a trial ends", ge=10, le=3600)] = 180.0
    give_up_after_s: Annotated[StrictFloat, about("seconds until giving up is offered", ge=0, le=3600)] = 20.0
    keep_pictures: Annotated[StrictBool, about("store the pictures that people choose")] = False
    retention_days: Annotated[
        StrictInt, about("days until a participant's events are deleted", ge=1, le=3650)
    ] = 180
    language: Annotated[
        str, about("the language of the study's own buttons and messages", pattern=LANGUAGE)
    ] = "en"
    words: Annotated[Mapping[str, Text], about("other words for the study's own buttons and messages")] = (
        field(default_factory=dict)
    )
    digest: SkipJsonSchema[str] = ""

    @property
    def labels(self) -> Mapping[str, str]:
        """The words of the study's buttons and messages."""
        given = {**words_in(self.language), **self.words}
        return {name: given[other] for name, other in INSTEAD.items()} | given

    @property
    def texts(self) -> frozenset[str]:
        """The ids of the questions answered by free text."""
        return frozenset(question.id for question in self.closing if not question.choices)
