"""What a log holds: typed events, each with when it happened and to whom, as one line of JSON.

Participants, sessions and trials are random names. A participant's is the hash of their withdrawal code, so
that whoever has the code can find the events, and nobody can get from the events to the code.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

VERSION = 3
PROCESS = secrets.token_hex(8)
"""Names this process: monotonic times can be compared within one only."""


class EventError(ValueError):
    """A line that is no event, in words."""


class TooNew(EventError):
    """A line that a newer program wrote."""


@dataclass(frozen=True)
class Body:
    """What an event says besides its header; one class for each kind of event."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class SessionBegan(Body):
    """Consent was given. place: see `app.study.plan.order`; order: its conditions; simulated: no person."""

    kind = "session"
    place: int
    order: list[str]
    digest: str
    free_text: bool = False
    simulated: bool = False


@dataclass(frozen=True)
class SessionEnded(Body):
    """The last page was reached. answers: to the closing questions; free text only where agreed to."""

    kind = "session_end"
    answers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialStart(Body):
    """A trial's page is there. task: the name of the prompt or goal; position: from 0; own_words: a goal;
    again: it was on before, until the app ended."""

    kind = "trial_start"
    condition: str
    task: str
    position: int
    practice: bool = False
    own_words: bool = False
    time_cap_s: float = 0.0
    again: bool = False


@dataclass(frozen=True)
class Submit(Body):
    """Pictures were asked for. purpose: preview, refine or speculative; request names them from here on."""

    kind = "submit"
    request: str
    purpose: str
    seeds: list[int]
    steps: int
    solver: str
    model: str
    guidance: float


@dataclass(frozen=True)
class RequestQueued(Body):
    """They wait; so many pictures go first."""

    kind = "queued"
    request: str
    place: int
    estimate_s: float


@dataclass(frozen=True)
class ComputeStart(Body):
    """The first denoiser call of the request. batch: pictures of the request in it."""

    kind = "compute_start"
    request: str
    device: str
    batch: int


@dataclass(frozen=True)
class ComputeEnd(Body):
    """The last picture of the request is there. outcome: done, failed or cancelled."""

    kind = "compute_end"
    request: str
    outcome: str
    revision: str = ""
    evaluations: int = 0


@dataclass(frozen=True)
class Painted(Body):
    """The browser has painted a picture. what: preview or final."""

    kind = "painted"
    what: str
    seed: int


@dataclass(frozen=True)
class Hover(Body):
    """The pointer rests on a picture."""

    kind = "hover"
    seed: int


@dataclass(frozen=True)
class Select(Body):
    """A picture was picked."""

    kind = "select"
    seed: int


@dataclass(frozen=True)
class Reroll(Body):
    """Others were asked for in place of what was not kept."""

    kind = "reroll"
    kept: list[int]


@dataclass(frozen=True)
class Keep(Body):
    """A picture is to stay through the next reroll, or no longer."""

    kind = "keep"
    seed: int
    kept: bool


@dataclass(frozen=True)
class Refine(Body):
    """The full-step picture of a preview was asked for."""

    kind = "refine"
    seed: int


@dataclass(frozen=True)
class Cancel(Body):
    """What ran was cancelled."""

    kind = "cancel"


@dataclass(frozen=True)
class VisibilityChange(Body):
    """The page came to the front, or was hidden."""

    kind = "visibility_change"
    visible: bool


@dataclass(frozen=True)
class Satisfied(Body):
    """The trial ended well, with this picture. prompt: of a goal, where free text was agreed to."""

    kind = "satisfied"
    seed: int
    prompt: str = ""


@dataclass(frozen=True)
class GiveUp(Body):
    """The trial ended without; timed_out: because its time was over."""

    kind = "give_up"
    timed_out: bool


@dataclass(frozen=True)
class Interrupted(Body):
    """The app had ended while the trial was on; noted when the participant came back, and it begins again."""

    kind = "interrupted"


@dataclass(frozen=True)
class RatingGiven(Body):
    """An answer on a scale from 1."""

    kind = "rating"
    question: str
    value: int


@dataclass(frozen=True)
class ErrorShown(Body):
    """The participant was told that something could not be done."""

    kind = "error"
    words: str


def _kinds(base: type[Body]) -> dict[str, type[Body]]:
    return {each.kind: each for each in base.__subclasses__()}


KINDS = _kinds(Body)


@dataclass(frozen=True)
class LogEvent:
    """One event. utc: seconds since 1970 of the server's clock; monotonic: of its clock that never jumps,
    within one `process`; browser_ms: `performance.now()` of the page, where the browser told of it."""

    participant: str
    session: str
    body: Body
    trial: str = ""
    browser_ms: float | None = None
    study: str = ""
    utc: float = field(default_factory=time.time)
    monotonic: float = field(default_factory=time.monotonic)
    process: str = PROCESS
    id: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def kind(self) -> str:
        return self.body.kind

    def write(self) -> str:
        """The event as one line of JSON."""
        header = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "body"}
        values = {"version": VERSION, "kind": self.kind, **header, "body": asdict(self.body)}
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def read_event(line: str) -> tuple[LogEvent, int]:
    """The event of a line, and the schema version that it was written in, at most VERSION.

    Raises EventError, in words, for what is no event.
    """
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise EventError("it is no JSON") from error
    version = raw.get("version") if isinstance(raw, dict) else None
    if type(version) is not int or version < 1:
        raise EventError("it has no version")
    if version > VERSION:
        raise TooNew(f"it was written by a newer program (version {version})")
    for each in range(version, VERSION):
        raw = MIGRATIONS[each](raw)
    body = body_of(str(raw.get("kind")), raw.get("body"))
    header = {name: value for name, value in raw.items() if name not in ("version", "kind", "body")}
    return LogEvent(body=body, **_typed(LogEvent, header, without="body")), version


def body_of(kind: str, values: Any) -> Body:
    """The body of that kind with these values, from wherever they come. Raises EventError, in words."""
    if kind not in KINDS:
        raise EventError(f"there is no kind of event {kind!r}")
    return KINDS[kind](**_typed(KINDS[kind], values))


def _typed(kind: type, values: Any, without: str = "") -> dict[str, Any]:
    """`values` where they are those of the dataclass, each of its type. Raises EventError otherwise."""
    if not isinstance(values, Mapping):
        raise EventError("it has no body")
    hints = {
        name: hint
        for name, hint in get_type_hints(kind).items()
        if name != without and get_origin(hint) is not ClassVar
    }
    missing = [name for name in _needed(kind, without) if name not in values]
    if missing or values.keys() - hints.keys():
        raise EventError(f"its fields are not those of {kind.__name__}")
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise EventError(f"{name} is {value!r}")
    return dict(values)


def _needed(kind: type, without: str) -> list[str]:
    if kind is LogEvent:  # a read event has all of its header; defaults are for new ones
        return [each.name for each in fields(LogEvent) if each.name != without]
    return [each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING]


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is UnionType:
        return any(_fits(value, each) for each in get_args(hint))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(each, get_args(hint)[0]) for each in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
    if hint is float:
        return type(value) in (int, float) and value == value and abs(value) != float("inf")
    return value is None if hint is NoneType else type(value) is hint


def _from_version_1(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had its time as `time`, in milliseconds, knew no process, and ended a trial that ran out of
    time with an event of its own, `time_out`."""
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
    """Version 2 knew neither `interrupted` nor trials that begin again; all else was as it is."""
    return raw


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_version_1, 2: _from_version_2}
"""From each version to the next."""


def code_of(secret: str) -> str:
    """The withdrawal code of whoever has this secret, such as a tab: 99 bits of its hash, in letters and
    digits that are not mistaken for each other. It is the same after a restart, and is kept nowhere."""
    letters = "abcdefghjkmnpqrstuvwxyz23456789"
    left = int.from_bytes(hashlib.sha256(f"code {secret}".encode()).digest())
    drawn = ""
    for _ in range(20):
        left, place = divmod(left, len(letters))
        drawn += letters[place]
    return "-".join(drawn[i : i + 5] for i in range(0, 20, 5))


def participant_of(code: str) -> str:
    """Whose code it is: the code is random and long, so that a plain hash cannot be turned back."""
    plain = "".join(each for each in code.lower() if each.isalnum())
    return hashlib.sha256(f"withdrawal {plain}".encode()).hexdigest()[:32]
