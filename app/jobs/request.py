"""Build jobs from the plain values of a request: the one way for the page and for programs."""

from dataclasses import replace
from typing import Protocol

from app.jobs.job import Job, Kind, Start, Variation, check_number
from app.jobs.seeds import following_seeds, fresh_seeds

# Asks for fresh seeds, as None does.
FRESH = -1


class Defaults(Protocol):
    """The part of `app.models.ModelFacts` that fills what a request leaves open."""

    @property
    def name(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def edits(self) -> bool: ...


def build_jobs(
    kind: Kind,
    model: Defaults,
    *,
    prompt: str,
    steps: float,
    guidance: float,
    solver: str,
    negative_prompt: str = "",
    count: float = 1,
    seed: float | None = None,
    width: int = 0,
    height: int = 0,
    start: Start | None = None,
    strength: object = None,
    variation: Variation | None = None,
    owner: str = "",
) -> list[Job]:
    """Make one job for each of `count` consecutive seeds.

    Args:
        seed: of the first job; None or FRESH draws different fresh ones.
        width, height: in pixels; 0 is the model's own.
        strength: replaces that of `start`. For an editing model it is always 1.
        variation: of the first job; the others are of the same seed, turned to the seeds after its.

    Raises:
        RequestError: a value is of the wrong type or out of range.
    """
    count = int(check_number("count", count))
    own = [] if seed in (None, FRESH) else [int(check_number("seed", seed))]
    if variation:
        own, seeds = own or fresh_seeds(1), following_seeds(variation.seed, count)
    else:
        seeds = following_seeds(own[0], count) if own else fresh_seeds(count)
    if start and model.edits:
        start = replace(start, strength=1.0)
    elif start and strength is not None:
        start = replace(start, strength=check_number("strength", strength))
    first = Job(
        kind=kind,
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=own[0] if own else seeds[0],
        steps=steps,  # type: ignore[arg-type]  # checked and made whole by Job
        guidance=guidance,
        solver=solver,
        model=model.name,
        width=width or model.width,
        height=height or model.height,
        owner=owner,
        start=start,
        variation=variation,
    )
    return [reseeded(first, seed) for seed in seeds]


def refinement_of(preview: Job, steps: float, solver: str) -> Job:
    """Make the refinement of a preview: the same noise, with another solver and more steps.

    Raises:
        RequestError: `steps` is out of range.
    """
    return replace(preview, kind="refine", steps=int(check_number("steps", steps)), solver=solver)


def reseeded(job: Job, seed: int) -> Job:
    """Return the job with another seed; for a variation, that of the other noise."""
    if job.variation:
        return replace(job, variation=replace(job.variation, seed=seed))
    return replace(job, seed=seed)


def variations_of(job: Job, count: int, amount: float) -> list[Job]:
    """Make variations of the job towards `count` fresh seeds, each by `amount`, 0 to 1.

    Raises RequestError if the job was varied MAX_TURNS times already.
    """
    taken = [job.seed, *(turn.seed for turn in (job.variation.turns if job.variation else ()))]
    seeds = fresh_seeds(count, taken)
    return [replace(job, variation=Variation(seed, amount, job.variation)) for seed in seeds]
