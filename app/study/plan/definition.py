"""A study, as a TOML file says it: its words, tasks, conditions, questions and limits.

The fields of the dataclasses here are the only list of what a file may hold. `read_study` names everything
that is wrong with a file at once, each with its line.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from app.jobs.job import LIMITS
from app.study.plan.labels import LABELS, faults_of, words_in
from app.study.plan.toml import KEY, line_of, lines_of, parse
from solver import SOLVERS

EXAMPLE = Path(__file__).with_name("study.toml")
IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


class StudyError(ValueError):
    """A study file that can't be used; one line for each thing that is wrong, in words."""


def _entry(default: Any = MISSING, words: str = "", **more: Any) -> Any:
    """A field of a study file: its default, what it means, and what values it may have.

    more: `choices`; `low` and `high`, the range of a number; `identifier`, a short name for logs and tables;
    `least`, the smallest length of a list. A default of `dict` is an empty one.
    """
    metadata = {"words": words, **more}
    if default is dict:
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class StudyTask:
    """What to make a picture of: a fixed `prompt`, or a `goal` in whose service people write their own."""

    id: str = _entry(words="its name in the log", identifier=True)
    prompt: str = _entry("", "the words that are given to the model")
    goal: str = _entry("", "what the picture is for; the participant writes the prompt")


@dataclass(frozen=True)
class Condition:
    """A way to make pictures. Nothing on the page tells which it is.

    mode: "full" shows full-step pictures only; "preview" shows few-step previews, of which one is refined.
    """

    id: str = _entry(words="its name in the log", identifier=True)
    mode: str = _entry(
        words="full-step pictures only, or previews and refinement", choices=("full", "preview")
    )
    count: int = _entry(4, "pictures shown together", low=1, high=LIMITS["count"].high)
    solver: str = _entry("consistency", "the solver of previews", choices=SOLVERS)
    steps: int = _entry(6, "the steps of previews", low=1, high=LIMITS["steps"].high)
    full_solver: str = _entry("dpm++2m", "the solver of full-step pictures", choices=SOLVERS)
    full_steps: int = _entry(40, "the steps of full-step pictures", low=1, high=LIMITS["steps"].high)
    speculate: bool = _entry(False, "refine the likely pick ahead while previews are looked at")


@dataclass(frozen=True)
class RatingQuestion:
    """A question after every trial, answered from 1 to `points`."""

    id: str = _entry(words="its name in the log", identifier=True)
    question: str = _entry(words="what is asked")
    low: str = _entry(words="what 1 means")
    high: str = _entry(words="what the highest answer means")
    points: int = _entry(5, "how many answers there are", low=2, high=11)


@dataclass(frozen=True)
class ClosingQuestion:
    """A question at the end, optional for the participant: choices, or, without any, free text."""

    id: str = _entry(words="its name in the log", identifier=True)
    question: str = _entry(words="what is asked")
    choices: tuple[str, ...] = _entry((), "the answers to choose from; without any, free text")


@dataclass(frozen=True)
class Analysis:
    """What is compared with what, fixed before anybody takes part.

    control, treatment: conditions of the primary comparison. quality: the rating that must not get worse by
    `margin` of its points or more.
    """

    control: str = _entry(words="the condition that others are held against")
    treatment: str = _entry(words="the condition that the study is about")
    quality: str = _entry(words="the rating that is not to get worse")
    margin: float = _entry(words="by how many points it may be worse at most", low=0.01, high=10)
    least_participants: int = _entry(12, "with fewer the report warns", low=2, high=10_000)


@dataclass(frozen=True)
class Study:
    """A whole study. `digest` tells one version of its file from another, in every event."""

    title: str = _entry(words="the title of the consent page")
    consent: str = _entry(words="the consent page's text, in the participant's words")
    tasks: tuple[StudyTask, ...] = _entry(words="what is to be made", least=1)
    conditions: tuple[Condition, ...] = _entry(words="the ways to make it", least=2)
    ratings: tuple[RatingQuestion, ...] = _entry(words="questions after each trial", least=1)
    analysis: Analysis = _entry(words="what is compared")
    closing: tuple[ClosingQuestion, ...] = _entry((), "questions at the end", least=0)
    practice: str = _entry("", "the prompt of the practice trial; without one there is none")
    thanks: str = _entry("", "the last page's text, below its thanks")
    time_cap_s: float = _entry(180.0, "seconds after which a trial ends", low=10, high=3600)
    give_up_after_s: float = _entry(20.0, "seconds after which giving up is offered", low=0, high=3600)
    keep_pictures: bool = _entry(False, "store the pictures people choose")
    retention_days: int = _entry(180, "days after which a participant's events are deleted", low=1, high=3650)
    language: str = _entry("en", "of the study's own buttons and words, such as en, de or fr-CA")
    words: Mapping[str, str] = _entry(dict, "other words for the study's own buttons and messages")
    digest: str = ""

    @property
    def labels(self) -> Mapping[str, str]:
        """The words of the study's buttons and messages."""
        return {**words_in(self.language), **self.words}

    @property
    def texts(self) -> frozenset[str]:
        """The names of the questions whose answers are free text."""
        return frozenset(question.id for question in self.closing if not question.choices)

    def condition(self, name: str) -> Condition:
        """The condition of that id; raises KeyError where there is none."""
        return {each.id: each for each in self.conditions}[name]


@dataclass(frozen=True)
class _Problem:
    """Something wrong with what is at a path of the file; missing: the path of what ought to be there."""

    where: str
    words: str
    missing: str = ""


def read_study(path: Path) -> Study:
    """The study that a file describes.

    Raises:
        StudyError: the file can't be read, or says something that makes no sense; one line for each fault,
            with the file's line and what to do.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StudyError(f"{path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise StudyError(f"{path} is not text in UTF-8.") from None
    values, faults = parse(
        text, {each.name for each in fields(Study) if each.metadata.get("least") is not None}
    )
    lines = lines_of(text)
    problems: list[_Problem] = []
    study = None if values is None else _build(Study, values, "", problems)
    if values is not None:
        problems += _contradictions(values)
    left_out = [text.split("\n")[line - 1] for line, _ in faults]
    faults += [
        (line_of(problem.where, lines), problem.words)
        for problem in problems
        if not any(_follows(problem, line) for line in left_out)
    ]
    if faults or study is None:
        raise StudyError("\n".join(f"{path}, line {line}: {words}" for line, words in sorted(set(faults))))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Study(**{each.name: getattr(study, each.name) for each in fields(Study)} | {"digest": digest})


def _follows(problem: _Problem, line: str) -> bool:
    """Whether what is missing only is so because this line could not be read."""
    key = KEY.match(line)
    return key is not None and problem.missing.rpartition(".")[2] == key[1]


def _build(cls: type, values: Mapping[str, Any], where: str, problems: list[_Problem]) -> Any:
    """An instance of `cls`, or None where `values` do not make one; what is wrong joins `problems`."""
    before = len(problems)
    hints = get_type_hints(cls)
    known = {each.name: each for each in fields(cls) if each.name != "digest"}
    for name in values.keys() - known.keys():
        near = get_close_matches(name, known, 1)
        hint = f" Did you mean {near[0]}?" if near else f" There are: {', '.join(known)}."
        problems.append(_Problem(_path(where, name), f"there is no {_path(where, name)!r}.{hint}"))
    made = {}
    for name, each in known.items():
        path = _path(where, name)
        if name in values:
            made[name] = _value(hints[name], values[name], each, path, problems)
        elif each.default is MISSING and each.default_factory is MISSING:
            problems.append(_Problem(where, f"{path!r} is missing: {each.metadata['words']}.", path))
    return cls(**made) if len(problems) == before else None


def _path(where: str, name: str) -> str:
    return f"{where}.{name}".lstrip(".")


def _value(kind: Any, raw: Any, about: "Field[Any]", path: str, problems: list[_Problem]) -> Any:
    def fault(words: str) -> None:
        problems.append(_Problem(path, f"{path!r} {words} ({about.metadata['words']})."))

    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        if not isinstance(raw, list):
            return fault("must be a list")
        if len(raw) < about.metadata.get("least", 0):
            return fault(f"must have at least {about.metadata['least']}")
        if inner is str:
            return (
                tuple(raw) if all(isinstance(each, str) for each in raw) else fault("must be a list of text")
            )
        return tuple(_table(inner, each, f"{path}.{i}", problems) for i, each in enumerate(raw))
    if get_origin(kind) is Mapping:  # what is in it is looked at in `_unclear_words`
        return raw if isinstance(raw, Mapping) else fault("must be a table")
    if hasattr(kind, "__dataclass_fields__"):
        return _table(kind, raw, path, problems)
    return _scalar(kind, raw, about, fault)


def _table(cls: type, raw: Any, path: str, problems: list[_Problem]) -> Any:
    if isinstance(raw, Mapping):
        return _build(cls, raw, path, problems)
    problems.append(_Problem(path, f"{path!r} must be a table."))
    return None


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _scalar(kind: type, raw: Any, about: "Field[Any]", fault: Any) -> Any:
    if kind is float and type(raw) is int:
        raw = float(raw)
    if type(raw) is not kind:
        return fault(f"must be {_NAMES[kind]}, not {raw!r}")
    meta = about.metadata
    if "choices" in meta and raw not in meta["choices"]:
        near = get_close_matches(str(raw), meta["choices"], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return fault(f"must be one of {', '.join(meta['choices'])}, not {raw!r}{hint}")
    if "low" in meta and not meta["low"] <= raw <= meta["high"]:
        return fault(f"must be from {meta['low']:g} to {meta['high']:g}, not {raw:g}")
    if meta.get("identifier") and not IDENTIFIER.fullmatch(str(raw)):
        return fault(f"must be a short name of small letters, digits, - and _, not {raw!r}")
    if kind is str and about.default is MISSING and not str(raw).strip():
        return fault("must not be empty")
    return raw


def _contradictions(values: Mapping[str, Any]) -> Iterator[_Problem]:
    """What is well-formed but makes no sense together."""
    tables = {
        name: [each for each in _list(values.get(name)) if isinstance(each, Mapping)]
        for name in ("tasks", "conditions", "ratings", "closing")
    }
    for name, rows in tables.items():
        ids = [str(row.get("id")) for row in rows]
        for i, each in enumerate(ids):
            if each in ids[:i]:
                yield _Problem(f"{name}.{i}.id", f"the id {each!r} is there twice among the {name}.")
    for i, row in enumerate(tables["tasks"]):
        if bool(row.get("prompt")) == bool(row.get("goal")):
            yield _Problem(f"tasks.{i}", "a task needs either a prompt or a goal, and one of them only.")
    for i, row in enumerate(tables["conditions"]):
        if row.get("mode") == "full":
            for name in sorted(row.keys() & {"solver", "steps", "speculate"}):
                yield _Problem(
                    f"conditions.{i}.{name}",
                    f"{name!r} is about previews, which a condition of full-step pictures has not; "
                    "full_solver and full_steps are its own.",
                )
    for i, row in enumerate(tables["closing"]):
        choices = _list(row.get("choices"))
        if any(choices.count(each) > 1 for each in choices):
            yield _Problem(f"closing.{i}.choices", "an answer is there twice among the choices.")
    if len(tables["conditions"]) > 1 and len(tables["tasks"]) % len(tables["conditions"]):
        yield _Problem(
            "tasks",
            f"{len(tables['tasks'])} tasks do not share out among {len(tables['conditions'])} conditions: "
            "give a multiple, so that everybody meets every condition equally often.",
        )
    yield from _unclear_analysis(values, tables)
    yield from _unclear_words(values)
    cap, wait = values.get("time_cap_s", 180), values.get("give_up_after_s", 20)
    if isinstance(cap, int | float) and isinstance(wait, int | float) and wait >= cap:
        yield _Problem("give_up_after_s", "giving up is offered only after the time cap has ended the trial.")


def _unclear_analysis(values: Mapping[str, Any], tables: Mapping[str, list[Any]]) -> Iterator[_Problem]:
    analysis = values.get("analysis")
    if not isinstance(analysis, Mapping):
        return
    for name, table in (("control", "conditions"), ("treatment", "conditions"), ("quality", "ratings")):
        ids = [str(row.get("id")) for row in tables[table]]
        if isinstance(analysis.get(name), str) and analysis[name] not in ids:
            near = get_close_matches(analysis[name], ids, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            yield _Problem(f"analysis.{name}", f"none of the {table} is called {analysis[name]!r}.{hint}")
    points = {str(row.get("id")): row.get("points", 5) for row in tables["ratings"]}
    margin, most = analysis.get("margin"), points.get(str(analysis.get("quality")))
    if isinstance(margin, int | float) and isinstance(most, int) and margin >= most - 1:
        yield _Problem(
            "analysis.margin",
            f"with a margin of {margin:g} no answer from 1 to {most} would be worse: give less than "
            f"{most - 1}.",
        )
    if analysis.get("control") is not None and analysis.get("control") == analysis.get("treatment"):
        yield _Problem("analysis.treatment", "a condition can't be compared with itself.")


def _unclear_words(values: Mapping[str, Any]) -> Iterator[_Problem]:
    language, words = values.get("language", "en"), values.get("words", {})
    if not isinstance(language, str) or not isinstance(words, Mapping):
        return
    if not LANGUAGE.fullmatch(language):
        yield _Problem("language", f"'language' must be a tag such as en, de or fr-CA, not {language!r}.")
        return
    known = LABELS["en"]
    for name in sorted(words.keys() - known.keys()):
        near = get_close_matches(name, known, 1)
        hint = f" Did you mean {near[0]}?" if near else " `python -m app.study words` shows all."
        yield _Problem(f"words.{name}", f"there is no 'words.{name}'.{hint}")
    for name, fault in faults_of(language, words):
        where, subject = (f"words.{name}", f"'words.{name}' ") if name else ("language", "")
        yield _Problem(where, f"{subject}{fault}.")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
