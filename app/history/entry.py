"""Entries of a history; they are read one by one, so a damaged entry does not affect the others."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import MAXYEAR, UTC, datetime
from types import NoneType
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from app.jobs.job import Start, Variation

# Names of pictures and shelves: 128 bits in hex.
NAME = "^[0-9a-f]{32}$"
# Kinds of a job's values. Others are ignored: another version may have written them.
_JOB: Mapping[str, Any] = {
    "prompt": str, "negative_prompt": str, "model": str, "solver": str, "seed": int, "steps": int,
    "width": int, "height": int, "guidance": int | float, "variation": dict | NoneType,
}  # fmt: skip
# The page shows these of every picture.
_NEEDED = ("prompt", "solver", "seed", "steps")
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)


@dataclass
class Shot:
    """One picture of an entry.

    Attributes:
        job: how it was made, see `app.page.session.values_of`.
        picture: its name on the shelf.
        kept: whether it stays through rerolls.
        decoder: see `app.jobs.job.Record`.
    """

    job: dict[str, Any]
    picture: Annotated[str, Field(pattern=NAME)]
    revision: str = ""
    kept: bool = False
    likeness: dict[str, str] | None = None
    seconds: float = 0.0
    decoder: str = ""


@dataclass
class Entry:
    """One grid and its finals.

    Attributes:
        time: of the grid, in seconds since 1970.
        deleted: when it was deleted; 0 if it was not.
        start: the picture that all of them start from: "picture", its name on the shelf, and "strength".
    """

    id: Annotated[str, Field(pattern=r"^[\w. -]{1,64}$")]
    time: Annotated[float, Field(ge=0, lt=datetime(MAXYEAR, 1, 1, tzinfo=UTC).timestamp())]
    previews: list[Shot] = field(default_factory=list)
    finals: list[Shot] = field(default_factory=list)
    deleted: float = 0.0
    start: dict[str, Any] | None = None

    @property
    def pictures(self) -> list[str]:
        started = [self.start["picture"]] if self.start else []
        return [shot.picture for shot in [*self.previews, *self.finals]] + started


_ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)
_PICTURE: TypeAdapter[str] = TypeAdapter(Annotated[str, Field(pattern=NAME)])


def read_entries(content: bytes) -> tuple[list[Entry], bool]:
    """Read a history file; return the entries that are whole, and whether the file has anything else."""
    try:
        values, whole = json.loads(content), True
    except (ValueError, RecursionError):
        values, whole = list(_salvage(content.decode(errors="replace"))), False
    if not isinstance(values, list):
        return [], False
    entries: dict[str, Entry] = {}
    for each in values:
        try:
            entry = _read_entry(each)
        except (ValueError, TypeError, RecursionError):
            continue
        entries[entry.id] = entry
    return list(entries.values()), whole and len(entries) == len(values)


def _salvage(text: str) -> Iterator[Any]:
    """Yield the members of a damaged JSON list that can be read: they begin and end at the second bracket."""
    depth = begin = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        if token[0] in "[{":
            depth += 1
            if depth == 2:
                begin = token.start()
        elif token[0] in "]}":
            depth -= 1
            if depth == 1:
                try:
                    yield json.loads(text[begin : token.end()])
                except (ValueError, RecursionError):
                    continue


def _read_entry(values: object) -> Entry:
    """Read an entry; raise ValueError, TypeError or RecursionError unless it is whole."""
    json.dumps(values, ensure_ascii=False, allow_nan=False).encode()  # or it could not be saved, or shown
    entry = _ENTRY.validate_python(values)
    shots = [*entry.previews, *entry.finals]
    if not shots:
        raise ValueError("an entry without pictures")
    for shot in shots:
        shot.job = {name: value for name, value in shot.job.items() if name in _JOB}
        if not all(name in shot.job for name in _NEEDED):
            raise ValueError("a picture that does not say how it was made")
        if not all(isinstance(value, _JOB[name]) for name, value in shot.job.items()):
            raise TypeError("a setting of the wrong kind")
        if shot.job.get("variation") is not None:
            Variation(**shot.job["variation"])
    if entry.start is not None:
        picture, strength = _PICTURE.validate_python(entry.start.get("picture")), entry.start.get("strength")
        entry.start = {"picture": picture, "strength": Start(b"-", strength).strength}  # type: ignore[arg-type]
    return entry
