"""One picture in the making, from its job to its first step."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from app.jobs.handle import Handle
from app.jobs.job import Job, Kind
from app.models import ImageModel
from app.models.memory import split_on_oom
from app.worker.scheduling import Ticket
from solver import Plan, SampleState
from solver.diffusion import Conditions
from solver.sampling import spherical_interpolation


@dataclass(eq=False)
class Sample:
    """One picture in the making.

    Attributes:
        number: order of arrival, unique.
        request: number of the request that it belongs to.
        handle: of its job.
        kind: of its job, until a speculative one is promoted.
        plan: the solver's coefficients for all its steps.
        rows: batch rows of one denoiser call, as many more as its pixels are more than the model's own.
        reference: whether the network is shown a picture to edit; a batch holds only such samples, or none.
        file: the picture that it starts from, until it has started.
        cancelled, favoured: what was done to the handle.
        place: the place in line that was last reported.
        speculative_steps: steps made while it was speculative.
        seconds: what its ticks took so far.
        arrived, stepped: `time.monotonic()` of its submission and of its last step.
        sketch_budget_s: seconds that showing it on the way may still cost.
        started: whether the fields below are set.
        state: where it stands in its plan.
        prompt, negative: conditions of one sample.
    """

    number: int
    request: int
    handle: Handle
    kind: Kind
    plan: Plan
    rows: int
    reference: bool
    file: bytes | None = field(default=None, repr=False)
    cancelled: bool = False
    favoured: bool = False
    place: int | None = None
    speculative_steps: int = 0
    seconds: float = 0.0
    arrived: float = field(default_factory=time.monotonic)
    stepped: float = field(default_factory=time.monotonic)
    sketch_budget_s: float = 0.0
    started: bool = False
    state: SampleState = field(init=False)
    prompt: Conditions = field(init=False)
    negative: Conditions = field(init=False)

    @property
    def job(self) -> Job:
        return self.handle.job

    @property
    def steps_done(self) -> int:
        return self.state.index if self.started else 0

    def ticket(self) -> Ticket:
        """The facts that scheduling needs, as of now."""
        job, now = self.job, time.monotonic()
        return Ticket(
            number=self.number,
            request=self.request,
            kind=self.kind,
            owner=job.owner,
            steps=self.plan.nfe,
            steps_left=self.plan.nfe - self.steps_done,
            rows=self.rows,
            shape=(job.model, job.width, job.height, self.reference),
            favoured=self.favoured,
            idle_s=now - self.stepped,
            age_s=now - self.arrived,
        )


def start_samples(model: ImageModel, samples: Sequence[Sample]) -> None:
    """Encode all prompts in one call, encode the pictures they start from, and draw the noise.

    All samples must have the same size, as those of a batch have.
    """
    if not samples:
        return
    jobs = [sample.job for sample in samples]
    prompts = negatives = _encode(model, [job.prompt for job in jobs])
    if model.facts.negative_prompts:
        negatives = _encode(model, [job.negative_prompt for job in jobs], negative=True)
    starts = model.encode_starts([sample.file for sample in samples], jobs[0].width, jobs[0].height)
    for sample, job, prompt, negative, clean in zip(samples, jobs, prompts, negatives, starts, strict=True):
        if sample.reference and clean is not None:
            prompt, negative = prompt.with_reference(clean[None]), negative.with_reference(clean[None])
            clean = None
        sample.prompt = model.diffusion.begin(prompt, negative, sample.plan, job.guidance)
        sample.negative = negative
        sample.state = SampleState.start(sample.plan, _noise(model, job), clean)
        sample.started, sample.file = True, None


def _encode(model: ImageModel, texts: Sequence[str], negative: bool = False) -> list[Conditions]:
    return split_on_oom(lambda part: model.encode_each(part, negative=negative), texts)


def _noise(model: ImageModel, job: Job) -> torch.Tensor:
    """The unit-variance noise of the job's seed, drawn on the CPU, turned towards those of its variation."""
    noise = model.diffusion.draw(job.seed, job.width, job.height)
    for turn in job.variation.turns if job.variation else ():
        other = model.diffusion.draw(turn.seed, job.width, job.height)
        noise = spherical_interpolation(noise, other, turn.amount)
    return noise.to(model.device)
