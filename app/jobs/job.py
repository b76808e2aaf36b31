"""What is asked of the worker (`Job`), and what it tells while it works (`Event`)."""

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from PIL import Image

from app.jobs import png
from solver import SOLVERS

Kind = Literal["preview", "refine", "speculative"]

# From the most to the least urgent.
KINDS: tuple[Kind, ...] = ("preview", "refine", "speculative")


class RequestError(ValueError):
    """A request that can't be done, said in words for the person who made it."""


class Busy(RequestError):
    """A request that could be done, but not now: too many are waiting."""


@dataclass(frozen=True)
class Limit:
    """The range of a number: its name for people, both ends included, and whether it must be whole."""

    name: str
    low: float
    high: float
    whole: bool = True


LIMITS = {
    "steps": Limit("The number of steps", 1, 100),
    "guidance": Limit("The guidance scale", 1, 30, whole=False),
    "count": Limit("The number of previews", 1, 8),
    "seed": Limit("The seed", 0, 2**32 - 1),
    "width": Limit("The width", 16, 2048),
    "height": Limit("The height", 16, 2048),
    "amount": Limit("The amount of variation", 0, 1, whole=False),
    "strength": Limit("The strength", 0.05, 1, whole=False),
}
MAX_PROMPT_LETTERS = 2000


def check_number(field: str, value: object) -> float:
    """`value` as a number within `LIMITS[field]`; an int where that limit is whole.

    Accepts what a form or a program sends (6, 6.0, "6"). Raises RequestError for all else: nothing at
    all, words, NaN, infinity, fractions where a whole number is due, and anything out of range.
    """
    limit = LIMITS[field]
    kind = "a whole number" if limit.whole else "a number"
    due = f"{limit.name} must be {kind} from {limit.low:,} to {limit.high:,}"
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        shown = "nothing" if value in (None, "") else f"“{str(value)[:40]}”"
        raise RequestError(f"{due}, and {shown} is not a number.") from None
    if not math.isfinite(number):
        raise RequestError(f"{due}, and “{value}” is not a number.")
    if not limit.low <= number <= limit.high or (limit.whole and number != int(number)):
        raise RequestError(f"{due}, not {value}.")
    return int(number) if limit.whole else number


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """`value` where it is one of `choices`. Raises RequestError, naming the choices, where it is not."""
    if value not in choices:
        raise RequestError(f"There is no {name} “{str(value)[:40]}”. Choose one of: {', '.join(choices)}.")
    return str(value)


def check_prompt(name: str, value: object) -> str:
    """`value` as one trimmed line of at most MAX_PROMPT_LETTERS letters; raises RequestError otherwise."""
    if not isinstance(value, str):
        raise RequestError(f"{name} must be text.")
    text = " ".join(value.split())
    if len(text) > MAX_PROMPT_LETTERS:
        raise RequestError(f"{name} is {len(text):,} letters long; {MAX_PROMPT_LETTERS:,} is the most.")
    return text


@dataclass(frozen=True)
class Variation:
    """How far a job's noise is turned towards that of another seed, along the sphere between them.

    amount: 0 is the job's own noise exactly, 1 the other's. Raises RequestError for values out of range.
    """

    seed: int
    amount: float

    def __post_init__(self) -> None:
        for name in ("seed", "amount"):
            object.__setattr__(self, name, check_number(name, getattr(self, name)))


@dataclass(frozen=True)
class Start:
    """The picture to start from, or, for a model that edits, the one to be edited.

    picture: a file, as `app.jobs.uploads.start_from` checks and writes it; it is cut and scaled to
    the job's size.
    strength: how much of the way from pure noise is made, 1 being all of it, as in every image-to-image
    pipeline; a model that edits does not use it. Raises RequestError for values out of range, or no bytes.
    """

    picture: bytes = field(repr=False)
    strength: float = 0.6

    def __post_init__(self) -> None:
        if not isinstance(self.picture, bytes) or not self.picture:
            raise RequestError("There is no picture to start from. Take a PNG, JPEG or WebP.")
        object.__setattr__(self, "strength", check_number("strength", self.strength))

    @cached_property
    def name(self) -> str:
        """What its picture is called, wherever it is kept: 32 hex digits of a hash of its content."""
        return hashlib.sha256(self.picture).hexdigest()[:32]

    @property
    def mark(self) -> str:
        """What a picture that was made from it says of it: enough to know it again, too little to find it."""
        return self.name[:10]


@dataclass(frozen=True)
class Job:
    """One picture to make. The seed alone decides its noise, but for a variation.

    kind: how urgent it is, see KINDS. steps: solver steps. width, height: in pixels. guidance: the
    classifier-free guidance scale, where 1 means none, or the one that the network is told. owner: whom to be
    fair to, and whose jobs end together. variation, start: see there. Raises RequestError, in words, when a
    value makes no sense.
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
            raise RequestError("The prompt is empty. Say what you would like to see.")
        for name, kind in (("variation", Variation), ("start", Start)):
            if not isinstance(getattr(self, name), kind | None):
                raise RequestError(f"The {name} must be a {kind.__name__} or nothing.")


@dataclass(frozen=True)
class Record:
    """How a finished picture was made: its job, the model's revision, and how long it took.

    evaluations: calls of the denoiser. seconds: what its steps, in whatever company, and its decoding took.
    decoder: of a preview, the small decoder that drew it; none where the model's own autoencoder did.
    """

    job: Job
    revision: str
    evaluations: int
    seconds: float
    decoder: str = ""

    def parameters(self) -> png.Parameters:
        """The record as other tools read it in a PNG."""
        job = self.job
        settings = {
            "Steps": str(job.steps),
            "Sampler": job.solver,
            "CFG scale": f"{job.guidance:g}",
            "Seed": str(job.seed),
            "Size": f"{job.width}x{job.height}",
            "Model hash": self.revision[:10],
            "Model": job.model,
        }
        if job.variation:
            settings["Variation seed"] = str(job.variation.seed)
            settings["Variation seed strength"] = f"{job.variation.amount:g}"
        if self.decoder:
            settings["Preview decoder"] = self.decoder
        if job.start:
            settings["Denoising strength"] = f"{job.start.strength:g}"
            settings["Init image hash"] = job.start.mark
        return png.Parameters(job.prompt, job.negative_prompt, settings)

    def png(self, picture: Image.Image) -> bytes:
        """The picture as PNG bytes that carry this record."""
        return png.write(picture, self.parameters())


@dataclass(frozen=True)
class Queued:
    """Waiting; `place` pictures go first, and it will be done in about `estimate_s` seconds."""

    place: int
    estimate_s: float


@dataclass(frozen=True)
class Started:
    """Its first denoiser call begins, with `batch` pictures of its request in it."""

    batch: int


@dataclass(frozen=True)
class Step:
    """`step` of `steps` denoiser calls are made; now and then with the picture as it stands."""

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
    """It could not be made; the message is for people."""

    message: str


@dataclass(frozen=True)
class Cancelled:
    """It was given up on request."""


Event = Queued | Started | Step | Done | Failed | Cancelled
LAST_EVENTS = (Done, Failed, Cancelled)
