"""Find values of a study file that are valid one by one but contradict each other."""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from app.study.plan.definition import LANGUAGE, RatingQuestion, Study
from app.study.plan.labels import INSTEAD, LABELS, check_places, words_in

Problem = tuple[str, str]
"""A path in the file, such as `conditions.1.steps`, and what is wrong there."""
Rows = Mapping[str, list[Mapping[str, Any]]]


def find_contradictions(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each contradiction; `values` come from the file and may be of any type."""
    if "digest" in values:
        yield "digest", "there is no key 'digest': the digest is computed from the file."
    rows = {
        name: [each for each in _list(values.get(name)) if isinstance(each, Mapping)]
        for name in ("tasks", "conditions", "ratings", "closing")
    }
    for name, those in rows.items():
        ids = [str(row.get("id")) for row in those]
        for i, each in enumerate(ids):
            if each in ids[:i]:
                yield f"{name}.{i}.id", f"the id {each!r} is there twice among the {name}."
    yield from _tasks_and_conditions(rows)
    for i, row in enumerate(rows["closing"]):
        choices = _list(row.get("choices"))
        if any(choices.count(each) > 1 for each in choices):
            yield f"closing.{i}.choices", "an answer is there twice among the choices."
    if isinstance(values.get("analysis"), Mapping):
        yield from _analysis(values["analysis"], rows)
    yield from _words(values.get("language", Study.language), values.get("words", {}))
    cap, wait = (
        values.get("time_cap_s", Study.time_cap_s), values.get("give_up_after_s", Study.give_up_after_s)
    )  # fmt: skip
    if isinstance(cap, int | float) and isinstance(wait, int | float) and wait >= cap:
        yield (
            "give_up_after_s",
            "giving up would be offered only after the time cap ended the trial: give less than time_cap_s.",
        )


def _tasks_and_conditions(rows: Rows) -> Iterator[Problem]:
    for i, row in enumerate(rows["tasks"]):
        if bool(row.get("prompt")) == bool(row.get("goal")):
            yield f"tasks.{i}", "a task needs either a prompt or a goal, and only one of them."
    for i, row in enumerate(rows["conditions"]):
        if row.get("mode") == "full":
            for name in sorted(row.keys() & {"solver", "steps", "speculate"}):
                yield (
                    f"conditions.{i}.{name}",
                    f"{name!r} is about previews, and this condition shows full-step pictures only: use "
                    "full_solver and full_steps.",
                )
    tasks, conditions = len(rows["tasks"]), len(rows["conditions"])
    if conditions > 1 and tasks % conditions:
        yield (
            "tasks",
            f"{tasks} tasks can't be shared out equally among {conditions} conditions: make their number a "
            f"multiple of {conditions}, so that every participant meets every condition equally often.",
        )


def _analysis(analysis: Mapping[str, Any], rows: Rows) -> Iterator[Problem]:
    for name, table in (("control", "conditions"), ("treatment", "conditions"), ("quality", "ratings")):
        ids = [str(row.get("id")) for row in rows[table]]
        if isinstance(analysis.get(name), str) and analysis[name] not in ids:
            near = get_close_matches(analysis[name], ids, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            yield f"analysis.{name}", f"none of the {table} has the id {analysis[name]!r}.{hint}"
    points = {str(row.get("id")): row.get("points", RatingQuestion.points) for row in rows["ratings"]}
    margin, most = analysis.get("margin"), points.get(str(analysis.get("quality")))
    if isinstance(margin, int | float) and isinstance(most, int) and margin >= most - 1:
        yield (
            "analysis.margin",
            f"with a margin of {margin:g} no answer from 1 to {most} would be worse: give less than "
            f"{most - 1}.",
        )
    if analysis.get("control") is not None and analysis.get("control") == analysis.get("treatment"):
        yield "analysis.treatment", "a condition can't be compared with itself."


def _words(language: Any, words: Any) -> Iterator[Problem]:
    if not isinstance(language, str) or not isinstance(words, Mapping):
        return
    known = LABELS["en"]
    for name in sorted(words.keys() - known.keys()):
        near = get_close_matches(name, known, 1)
        hint = f" Did you mean {near[0]}?" if near else " `python -m app.study words` shows all."
        yield f"words.{name}", f"there is no key 'words.{name}'.{hint}"
    texts = {name: text for name, text in words.items() if isinstance(text, str)}
    for name, fault in check_places(texts).items():
        yield f"words.{name}", f"'words.{name}' {fault}."
    missing = [name for name in known if name not in words and name not in INSTEAD]
    if missing and re.search(LANGUAGE, language) and not words_in(language):
        yield (
            "language",
            f"the app has no words in {language!r}, only in {' and '.join(LABELS)}: give all of them in "
            f"[words], as `python -m app.study words` shows them. Missing: {', '.join(missing)}.",
        )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
