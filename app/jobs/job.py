"""Jobs, their limits, and the events and records that the worker returns."""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from app.jobs import png
from solver import SOLVERS

Kind = Literal["preview", "refine", "speculative"]

# From the most to the least urgent.
KINDS: tuple[Kind, ...] = ("preview", "refine", "speculative")


class RequestError(ValueError):
    """A request that cannot be done; the message is shown to the user."""


class Busy(RequestError):
    """A request that cannot be done now because too many are waiting."""


@dataclass(frozen=True)
class Limit:
    """Range of a number in a request.

    Attributes:
        name: as shown to users.
        low, high: the bounds, both allowed.
        whole: whether it must be an integer.
    """

    name: str
    low: float
    high: float
    whole: bool = True


LIMITS = {
    "steps": Limit("The number of steps", 1, 100),
    "guidance": Limit("The guidance scale", 0, 30, whole=False),
    "count": Limit("The number of previews", 1, 8),
    "seed": Limit("The seed", 0, 2**32 - 1),
    "width": Limit("The width", 16, 2048),
    "height": Limit("The height", 16, 2048),
    "amount": Limit("The amount of variation", 0, 1, whole=False),
    "strength": Limit("The strength", 0.05, 1, whole=False),
}
MAX_PROMPT_LETTERS = 2000
MAX_TURNS = 8
_GONE = "The picture to start from is gone. Please add it again."


def check_number(field: str, value: object) -> float:
    """Return `value` as a number within `LIMITS[field]`; an int where that limit is whole.

    Args:
        field: a key of LIMITS.
        value: a number, or its text as a form sends it (6, 6.0, "6").

    Raises:
        RequestError: not a finite number, a fraction where an integer is needed, or out of range.
    """
    limit = LIMITS[field]
    kind = "a whole number" if limit.whole else "a number"
    due = f"{limit.name} must be {kind} from {limit.low:,} to {limit.high:,}"
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        shown = "an empty field" if value in (None, "") else f"“{str(value)[:40]}”"
        raise RequestError(f"{due}, and {shown} is not a number.") from None
    if not math.isfinite(number):
        raise RequestError(f"{due}, and “{value}” is not a number.")
    if not limit.low <= number <= limit.high or (limit.whole and number != int(number)):
        raise RequestError(f"{due}, not {value}.")
    return int(number) if limit.whole else number


def exact_number(number: float) -> str:
    """Write a number so that the same is read again, and 3.0 as "3"."""
    return repr(number).removesuffix(".0")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`; otherwise raise RequestError with the choices."""
    if value not in choices:
        raise RequestError(f"There is no {name} “{str(value)[:40]}”. Choose one of: {', '.join(choices)}.")
    return str(value)


def check_prompt(name: str, value: object) -> str:
    """Return `value` as one trimmed line; raise RequestError for more than MAX_PROMPT_LETTERS characters."""
    if not isinstance(value, str):
        raise RequestError(f"{name} must be text.")
    text = " ".join(value.split())
    if len(text) > MAX_PROMPT_LETTERS:
        raise RequestError(
            f"{name} has {len(text):,} characters; at most {MAX_PROMPT_LETTERS:,} are allowed. Shorten it."
        )
    return text


@dataclass(frozen=True)
class Variation:
    """Turn a job's noise towards that of another seed, by spherical interpolation.

    Attributes:
        seed: the other seed.
        amount: 0 is the job's own noise exactly, 1 the other's.
        of: the variation whose noise is turned, instead of the job's own.

    Raises:
        RequestError: a value out of range, or more than MAX_TURNS one of another.
    """

    seed: int
    amount: float
    of: "Variation | None" = None

    def __post_init__(self) -> None:
        for name in ("seed", "amount"):
            object.__setattr__(self, name, check_number(name, getattr(self, name)))
        if isinstance(self.of, Mapping):  # as JSON has it
            object.__setattr__(self, "of", Variation(**self.of))
        if not isinstance(self.of, Variation | None):
            raise RequestError("A variation must be of another variation or of nothing.")
        if len(self.turns) > MAX_TURNS:
            raise RequestError(
                f"A picture can be varied {MAX_TURNS} times, one after the other, and no more."
            )

    @classmethod
    def parse(cls, text: str) -> "Variation | None":
        """Read what `str` writes; None if there is nothing. Raises RequestError if it is anything else."""
        variation = None
        if not isinstance(text, str):
            raise RequestError("The variation must be text.")
        for turn in re.findall(r"[^\s,;]+", text[:MAX_PROMPT_LETTERS]):
            seed, colon, amount = turn.partition(":")
            if not colon:
                raise RequestError(
                    "A variation must be a seed and an amount such as 77:0.3, or several such pairs, "
                    f"and “{turn[:40]}” is not."
                )
            variation = cls(seed, amount, variation)
        return variation

    @property
    def turns(self) -> "tuple[Variation, ...]":
        """This variation and those it is of, the first at first."""
        return (*(self.of.turns if self.of else ()), self)

    def __str__(self) -> str:
        """Seeds and amounts, as "77:0.3, 91:0.3"."""
        return ", ".join(f"{turn.seed}:{exact_number(turn.amount)}" for turn in self.turns)


class StoredPicture:
    """A picture on the disk, named by a hash of its content; it is read when it is needed."""

    def __init__(self, path: Path) -> None:
        self.path = path


@dataclass(frozen=True)
class Start:
    """Picture to start from; for an editing model, the picture to edit.

    Attributes:
        source: a file written by `app.jobs.uploads.start_from`, or where it is; it is cropped and scaled to
            the job's size.
        strength: of image-to-image; 1 starts from pure noise. Editing models ignore it.
        name: of the picture in storage, 32 hex digits of a hash of its content.

    Raises:
        RequestError: a strength out of range, or an empty file.
    """

    source: bytes | StoredPicture = field(repr=False, compare=False)
    strength: float = 0.6
    name: str = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.source, bytes | StoredPicture) or not self.source:
            raise RequestError("There is no picture to start from. Choose a PNG, JPEG or WebP.")
        object.__setattr__(self, "strength", check_number("strength", self.strength))
        stored = self.source if isinstance(self.source, StoredPicture) else None
        name = stored.path.stem if stored else hashlib.sha256(self.picture).hexdigest()[:32]
        object.__setattr__(self, "name", name)

    def __reduce__(self) -> tuple[Any, ...]:
        return Start, (self.picture, self.strength)  # another machine has another disk

    @property
    def picture(self) -> bytes:
        """The file. Raises RequestError if it is gone."""
        if isinstance(self.source, bytes):
            return self.source
        try:
            return self.source.path.read_bytes()
        except OSError as error:
            raise RequestError(_GONE) from error

    def check(self) -> None:
        """Raise RequestError if the file is gone."""
        if isinstance(self.source, StoredPicture) and not self.source.path.is_file():
            raise RequestError(_GONE)

    @property
    def mark(self) -> str:
        """Short hash for the metadata of results: identifies the picture, but is no address of it."""
        return self.name[:10]


@dataclass(frozen=True)
class Job:
    """One picture to make. The seed alone decides its noise, except for a variation.

    Attributes:
        kind: its urgency, see KINDS.
        steps: solver steps.
        width, height: in pixels.
        guidance: scale of classifier-free guidance (1, with some models 0, is none), or the scale given to a
            distilled network.
        owner: the person it is for; owners take turns, and an owner's jobs can be cancelled together.
        variation: turns the noise towards another seed's.
        start: picture to start from.

    Raises:
        RequestError: a value of the wrong type or out of range.
    """

    kind: Kind
    prompt: str
    seed: int
    steps: int
    model: str
    width: int
    height: int
    guidance: float = 3.0
    solver: str = "consistency"
    negative_prompt: str = ""
    owner: str = ""
    variation: Variation | None = None
    start: Start | None = None

    def __post_init__(self) -> None:
        check_choice("kind of job", self.kind, KINDS)
        check_choice("solver", self.solver, SOLVERS)
        for name in ("seed", "steps", "guidance", "width", "height"):
            object.__setattr__(self, name, check_number(name, getattr(self, name)))
        for name, called in (("prompt", "The prompt"), ("negative_prompt", "The negative prompt")):
            object.__setattr__(self, name, check_prompt(called, getattr(self, name)))
        if not self.prompt:
            raise RequestError("The prompt is empty. Describe the picture.")
        for name, kind in (("variation", Variation), ("start", Start)):
            if not isinstance(getattr(self, name), kind | None):
                raise RequestError(f"The {name} must be a {kind.__name__} or nothing.")


@dataclass(frozen=True)
class Record:
    """How a finished picture was made.

    Attributes:
        job: the job.
        revision: of the model, see `ModelFacts`.
        evaluations: calls of the denoiser.
        seconds: duration of its steps, each with its whole batch, and of its decoding.
        decoder: the preview decoder that drew it, or "" for the model's own autoencoder.
    """

    job: Job
    revision: str
    evaluations: int
    seconds: float
    decoder: str = ""

    def parameters(self) -> png.Parameters:
        """Return the record as the PNG metadata that other tools read."""
        job = self.job
        settings = {
            "Steps": str(job.steps),
            "Sampler": job.solver,
            "CFG scale": exact_number(job.guidance),
            "Seed": str(job.seed),
            "Size": f"{job.width}x{job.height}",
            "Model hash": self.revision[:10],
            "Model": job.model,
        }
        if job.variation and job.variation.of:
            settings["Variations"] = str(job.variation)
        elif job.variation:
            settings["Variation seed"] = str(job.variation.seed)
            settings["Variation seed strength"] = exact_number(job.variation.amount)
        if self.decoder:
            settings["Preview decoder"] = self.decoder
        if job.start:
            settings["Denoising strength"] = exact_number(job.start.strength)
            settings["Init image hash"] = job.start.mark
        return png.Parameters(job.prompt, job.negative_prompt, settings)

    def png(self, picture: Image.Image) -> bytes:
        """Return the picture as a PNG with this record as metadata."""
        return png.write(picture, self.parameters())


@dataclass(frozen=True)
class Queued:
    """Waiting: `place` pictures are served first; it should be done in `estimate_s` seconds."""

    place: int
    estimate_s: float


@dataclass(frozen=True)
class Started:
    """The first denoiser call begins, with `batch` pictures of this request."""

    batch: int


@dataclass(frozen=True)
class Step:
    """`step` of `steps` denoiser calls are done; `picture` is a sketch, if there is one."""

    step: int
    steps: int
    remaining_s: float
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Done:
    """The finished picture."""

    picture: Image.Image
    record: Record


@dataclass(frozen=True)
class Failed:
    """The picture could not be made; the message is shown to the user."""

    message: str


@dataclass(frozen=True)
class Cancelled:
    """The job was cancelled."""


Event = Queued | Started | Step | Done | Failed | Cancelled
LAST_EVENTS = (Done, Failed, Cancelled)
