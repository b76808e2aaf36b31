"""Read a study file; report everything that is wrong with it at once, each fault with its line."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from app.study.plan import toml
from app.study.plan.contradictions import Problem, find_contradictions
from app.study.plan.definition import LANGUAGE, NAME, TEXT, Study
from app.study.shared import StudyProblem

EXAMPLE = Path(__file__).with_name("study.toml")
_STUDY = TypeAdapter(Study)
# JSON schema of a study file, from which the messages are made.
_SCHEMA = _STUDY.json_schema()
_TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a table",
}
_PATTERNS = {
    NAME: "a short name of small letters, digits, - and _",
    TEXT: "text that is not empty",
    LANGUAGE: "a language tag such as en, de or fr-CA",
}


class StudyError(StudyProblem):
    """A study file that can't be used; the message has one line for each fault."""


def read_study(path: Path) -> Study:
    """Read a study from its file.

    Raises:
        StudyError: the file can't be read, or something in it is wrong; one line for each fault, with the
            file's line and what to do.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StudyError(f"{path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise StudyError(f"{path} is not text in UTF-8.") from None
    tables = {name for name, about in _SCHEMA["properties"].items() if about.get("type") == "array"}
    values, faults = toml.parse(text, tables)
    problems: list[Problem] = []
    study = None
    if values is not None:
        unread = {toml.key_of(text.split("\n")[line - 1]) for line, _ in faults}
        try:
            study = _STUDY.validate_python(values)
        except ValidationError as error:
            problems += [_problem(each) for each in error.errors() if not _follows(each, unread)]
        problems += find_contradictions(values)
    lines = toml.lines_of(text)
    faults += [(toml.line_of(where, lines), words) for where, words in problems]
    if faults or study is None:
        raise StudyError("\n".join(f"{path}, line {line}: {words}" for line, words in sorted(set(faults))))
    return replace(study, digest=hashlib.sha256(text.encode()).hexdigest()[:16])


def _follows(error: Any, unread: Collection[str]) -> bool:
    """Whether an error only follows from another: a key in a line that is not TOML, or a wrong entry."""
    if error["type"] == "missing":
        return error["loc"][-1] in unread
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def _problem(error: Any) -> Problem:
    """Return the path and the message of an error of pydantic."""
    path, key = ".".join(map(str, error["loc"])), str(error["loc"][-1])
    if error["type"] == "unexpected_keyword_argument":
        known = _schema_of(error["loc"][:-1])["properties"]
        near = get_close_matches(key, known, 1)
        hint = f" Did you mean {near[0]}?" if near else f" The keys are: {', '.join(known)}."
        return path, f"there is no key {path!r}.{hint}"
    about = _schema_of(error["loc"])
    meaning = about.get("description", "").partition("\n")[0].rstrip(".")
    meaning = f" ({meaning})" if meaning else ""
    if error["type"] == "missing":
        return path, f"{path!r} is missing{meaning}."
    given = error["input"]
    instead = "" if isinstance(given, list | dict) else f", not {given!r}"
    near = get_close_matches(str(given), about.get("enum", ()), 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return path, f"{path!r} must be {_allowed(about)}{instead}{meaning}.{hint}"


def _schema_of(location: Sequence[int | str]) -> dict[str, Any]:
    """Return the schema of a location in the file."""
    found = _SCHEMA
    for part in location:
        inside = found.get("items") if isinstance(part, int) else found.get("properties", {}).get(part)
        found = inside or found["additionalProperties"]
        if "$ref" in found:
            found = _SCHEMA["$defs"][found["$ref"].rpartition("/")[2]] | found
    return found


def _allowed(about: dict[str, Any]) -> str:
    if "enum" in about:
        return f"one of {', '.join(about['enum'])}"
    if "pattern" in about:
        return _PATTERNS[about["pattern"]]
    words = _TYPES[about["type"]]
    if "minimum" in about:
        return f"{words} from {about['minimum']:g} to {about['maximum']:g}"
    if about.get("items") == {"type": "string"}:
        return f"{words} of text"
    return f"{words} of at least {about['minItems']}" if "minItems" in about else words
