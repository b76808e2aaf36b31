"""The events of a log: what happened, when and to whom; each is one line of JSON.

Participants, sessions and trials have random names. A participant's is the hash of their withdrawal code: the
code leads to the events, and the events do not lead to the code.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from pydantic import StrictBool, StrictFloat, StrictInt, TypeAdapter, ValidationError

from app.study.shared import Strict

VERSION = 3
PROCESS = secrets.token_hex(8)
"""Names this process: monotonic times can be compared only within one process."""


class EventError(ValueError):
    """A line that is not an event; the message says why."""


class TooNew(EventError):
    """A line written by a newer version of the program."""


@dataclass(frozen=True)
class Body(Strict):
    """The fields of an event besides its header; each kind of event has its own class."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class SessionBegan(Body):
    """The participant agreed to take part.

    Attributes:
        place: the participant's place in the design, see `app.study.plan.order`.
        order: the ids of the conditions in the order of this place.
        free_text: whether they agreed that their own words are kept.
        simulated: whether a program takes part instead of a person.
    """

    kind = "session"
    place: StrictInt
    order: list[str]
    digest: str
    free_text: StrictBool = False
    simulated: StrictBool = False


@dataclass(frozen=True)
class SessionEnded(Body):
    """The last page was reached.

    Attributes:
        answers: by the id of the closing question; free text only if the participant agreed to it.
    """

    kind = "session_end"
    answers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialStart(Body):
    """The page of a trial was shown.

    Attributes:
        task: the id of the task.
        position: from 0; the practice trial has −1.
        own_words: the participant writes the prompt.
        again: the trial was interrupted before by an end of the app, and starts again.
    """

    kind = "trial_start"
    condition: str
    task: str
    position: StrictInt
    practice: StrictBool = False
    own_words: StrictBool = False
    time_cap_s: StrictFloat = 0.0
    again: StrictBool = False


@dataclass(frozen=True)
class Submit(Body):
    """Pictures were requested.

    Attributes:
        request: names these pictures in later events.
        purpose: preview, refine or speculative.
    """

    kind = "submit"
    request: str
    purpose: str
    seeds: list[StrictInt]
    steps: StrictInt
    solver: str
    model: str
    guidance: StrictFloat


@dataclass(frozen=True)
class RequestQueued(Body):
    """The pictures of a request are waiting.

    Attributes:
        place: how many pictures are made before them.
    """

    kind = "queued"
    request: str
    place: StrictInt
    estimate_s: StrictFloat


@dataclass(frozen=True)
class ComputeStart(Body):
    """The first network call of a request began.

    Attributes:
        batch: the number of pictures in that call.
    """

    kind = "compute_start"
    request: str
    device: str
    batch: StrictInt


@dataclass(frozen=True)
class ComputeEnd(Body):
    """The last picture of a request has ended.

    Attributes:
        outcome: done, failed or cancelled.
        evaluations: network evaluations of all its pictures.
    """

    kind = "compute_end"
    request: str
    outcome: str
    revision: str = ""
    evaluations: StrictInt = 0


@dataclass(frozen=True)
class Painted(Body):
    """The browser painted a picture; `what` is preview or final."""

    kind = "painted"
    what: str
    seed: StrictInt


@dataclass(frozen=True)
class Hover(Body):
    """The pointer rested on a picture."""

    kind = "hover"
    seed: StrictInt


@dataclass(frozen=True)
class Select(Body):
    """A picture was opened."""

    kind = "select"
    seed: StrictInt


@dataclass(frozen=True)
class Reroll(Body):
    """Other pictures were requested in place of those not kept."""

    kind = "reroll"
    kept: list[StrictInt]


@dataclass(frozen=True)
class Keep(Body):
    """A picture was marked to stay through the next reroll, or unmarked."""

    kind = "keep"
    seed: StrictInt
    kept: StrictBool


@dataclass(frozen=True)
class Refine(Body):
    """The full-step picture of a preview was requested."""

    kind = "refine"
    seed: StrictInt


@dataclass(frozen=True)
class Cancel(Body):
    """The participant cancelled the pictures being made."""

    kind = "cancel"


@dataclass(frozen=True)
class VisibilityChange(Body):
    """The page came to the front, or was hidden."""

    kind = "visibility_change"
    visible: StrictBool


@dataclass(frozen=True)
class Satisfied(Body):
    """The trial ended with this picture; `prompt` only for a goal, and only if free text may be kept."""

    kind = "satisfied"
    seed: StrictInt
    prompt: str = ""


@dataclass(frozen=True)
class GiveUp(Body):
    """The trial ended without a picture; `timed_out`: because its time was up."""

    kind = "give_up"
    timed_out: StrictBool


@dataclass(frozen=True)
class Interrupted(Body):
    """The app ended during the trial; written when the participant came back, and the trial starts again."""

    kind = "interrupted"


@dataclass(frozen=True)
class RatingGiven(Body):
    """An answer on a scale from 1."""

    kind = "rating"
    question: str
    value: StrictInt


@dataclass(frozen=True)
class ErrorShown(Body):
    """An error message was shown to the participant."""

    kind = "error"
    words: str


KINDS = {each.kind: TypeAdapter(each) for each in Body.__subclasses__()}


@dataclass(frozen=True)
class LogEvent(Strict):
    """One event.

    Attributes:
        browser_ms: `performance.now()` of the page, if the browser reported the event.
        utc: seconds since 1970 by the server's clock.
        monotonic: seconds by a clock that never jumps, comparable within one `process`.
    """

    participant: str
    session: str
    body: Body
    trial: str = ""
    browser_ms: StrictFloat | None = None
    study: str = ""
    utc: StrictFloat = field(default_factory=time.time)
    monotonic: StrictFloat = field(default_factory=time.monotonic)
    process: str = PROCESS
    id: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def kind(self) -> str:
        return self.body.kind

    def write(self) -> str:
        """Return the event as one line of JSON."""
        header = {name: getattr(self, name) for name in HEADER}
        values = {"version": VERSION, "kind": self.kind, **header, "body": asdict(self.body)}
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


HEADER = tuple(each.name for each in fields(LogEvent) if each.name != "body")
_EVENT = TypeAdapter(LogEvent)


def read_event(line: str) -> tuple[LogEvent, int]:
    """Return the event in a line, and the schema version it was written in.

    Raises:
        EventError: the line is not an event.
        TooNew: a newer version of the program wrote it.
    """
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise EventError("it is not JSON") from error
    version = raw.get("version") if isinstance(raw, dict) else None
    if type(version) is not int or version < 1:
        raise EventError("it has no version")
    if version > VERSION:
        raise TooNew(f"a newer program wrote it (version {version})")
    for each in range(version, VERSION):
        raw = MIGRATIONS[each](raw)
    body = body_of(str(raw.get("kind")), raw.get("body"))
    # A new event has defaults for most of its header; one that is read must have all of it.
    missing = [name for name in HEADER if name not in raw]
    if missing:
        raise EventError(f"it has no {missing[0]}")
    header = {name: value for name, value in raw.items() if name not in ("version", "kind")}
    return _validate(_EVENT, header | {"body": body}), version


def read_events(lines: Iterable[str]) -> Iterator[LogEvent]:
    """Yield the events in the lines of a store. Raises EventError as `read_event` does."""
    return (read_event(line)[0] for line in lines)


def body_of(kind: str, values: Any) -> Body:
    """Return the body of that kind with these values, which may be anything; raises EventError."""
    if kind not in KINDS:
        raise EventError(f"there is no kind of event {kind!r}")
    return _validate(KINDS[kind], values)


def _validate(adapter: TypeAdapter[Any], values: Any) -> Any:
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise EventError(f"{'.'.join(map(str, first['loc'])) or 'its body'}: {first['msg']}") from error


def _from_version_1(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had `time` in milliseconds and no process; `time_out` was an event of its own."""
    raw = dict(raw)
    milliseconds = raw.pop("time", None)
    if type(milliseconds) not in (int, float):
        raise EventError("it has no time")
    raw["utc"] = milliseconds / 1000
    raw.setdefault("process", "")
    if raw.get("kind") == "time_out":
        raw |= {"kind": "give_up", "body": {"timed_out": True}}
    elif raw.get("kind") == "give_up":
        raw["body"] = {"timed_out": False}
    return raw


def _from_version_2(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 2 had no `interrupted` and no trials that start again; the rest is the same."""
    return raw


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_version_1, 2: _from_version_2}
"""From each version to the next."""
