"""What is to be known of a model to ask for its pictures."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.jobs.job import Job, RequestError
from solver import LearnedSolver, NoiseSchedule, Plan, make_plan
from solver.diffusion import GuidanceKind, tokenize
from solver.schedule import shift_for


@dataclass(frozen=True, eq=False)
class ModelFacts:
    """What is to be known of a model to ask for its pictures, without its weights; can be pickled.

    name: the folder's. revision: SHA-256 of its weights, in hex. width, height: of its pictures in pixels
    where nobody asks for others. sizes: those that it is good at. multiple: what divides every width and
    height. smallest, largest: their bounds. place: the device that it runs on, in words. max_prompt_tokens:
    how many tokens a prompt may have. guidance_kind: see GuidanceKind. guidance: the default scale.
    guidance_limits: the scales that make sense. full_steps: of a refinement, by default. edits: whether a
    job's start is a picture to be edited by instructions, and not one to begin with. schedule: the noise
    levels that it was trained on, on a flow with the shift for the default size. scheduler_config: of the
    scheduler that it came with. learned: its ConsistencySolver, as far as trained. preview_decoder: what
    draws previews in place of its own autoencoder, if something does. warnings: what is odd about it, in
    words, but does not keep it from working.
    """

    name: str
    revision: str
    width: int
    height: int
    sizes: tuple[tuple[int, int], ...]
    multiple: int
    smallest: int
    largest: int
    place: str
    max_prompt_tokens: int
    guidance_kind: GuidanceKind
    guidance: float
    guidance_limits: tuple[float, float]
    full_steps: int
    edits: bool
    schedule: NoiseSchedule = field(repr=False)
    tokenizer: Any = field(repr=False)
    learned: LearnedSolver = field(repr=False)
    scheduler_config: Mapping[str, Any] = field(repr=False)
    preview_decoder: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def negative_prompts(self) -> bool:
        """Whether negative prompts mean something to it."""
        return self.guidance_kind == "classifier-free"

    def check_size(self, width: int, height: int) -> None:
        """Raise RequestError, in words, where it can't make pictures of so many pixels."""
        if self.smallest == self.largest and (width, height) != (self.width, self.height):
            raise RequestError(
                f"{self.name} makes pictures of {self.width} × {self.height} pixels, not {width} × {height}."
            )
        for name, edge in (("width", width), ("height", height)):
            if not self.smallest <= edge <= self.largest:
                raise RequestError(
                    f"The {name} must be {self.smallest} to {self.largest} pixels with {self.name}, "
                    f"not {edge}."
                )
            if edge % self.multiple:
                nearest = round(edge / self.multiple) * self.multiple
                raise RequestError(
                    f"The {name} must be a multiple of {self.multiple} with {self.name}: "
                    f"{nearest} instead of {edge}, say."
                )

    def plan(self, job: Job) -> Plan:
        """The plan that a job's picture follows.

        Raises RequestError, in words, when this is not the job's model, when it can't make such a size or
        follow such a guidance, when a prompt has more tokens than the model reads, or when the solver can't
        make so many steps.
        """
        if job.model != self.name:
            raise RequestError(f"There is no model {job.model} here, but {self.name}.")
        self.check_size(job.width, job.height)
        low, high = self.guidance_limits
        if not low <= job.guidance <= high:
            due = f"{low:g} to {high:g}" if low < high else f"{low:g}"
            raise RequestError(f"The guidance scale must be {due} with {self.name}, not {job.guidance:g}.")
        for name, text in (("The prompt", job.prompt), ("The negative prompt", job.negative_prompt)):
            tokens = self.count_tokens(text)
            if tokens > self.max_prompt_tokens:
                raise RequestError(
                    f"{name} is too long: {tokens} words and signs, and this model reads "
                    f"{self.max_prompt_tokens}. Leave something out."
                )
        try:
            return make_plan(
                job.solver,
                job.steps,
                self.schedule_at(job.width, job.height),
                learned=self.learned,
                guidance=job.guidance,
                strength=job.start.strength if job.start and not self.edits else 1.0,
            )
        except ValueError as error:
            raise RequestError(str(error)) from error

    def schedule_at(self, width: int, height: int) -> NoiseSchedule:
        """The noise levels for pictures of so many pixels: some flows are shifted with their size."""
        mu = shift_for(self.scheduler_config, width * height // self.multiple**2)
        return self.schedule if mu is None else NoiseSchedule.from_config(self.scheduler_config, mu=mu)

    def sees_start(self, job: Job) -> bool:
        """Whether a job's start matters: at strength 1 nothing is left of it, unless it is to be edited."""
        return job.start is not None and (self.edits or job.start.strength < 1)

    def decoder_of(self, job: Job) -> str:
        """The preview decoder, where it draws a job's picture: a preview's, unless half of a final's steps or
        more make it as good as one."""
        return self.preview_decoder if job.kind == "preview" and 2 * job.steps < self.full_steps else ""

    def rows(self, guidance: float) -> int:
        """Of a denoiser call for one picture: with classifier-free guidance it is asked twice."""
        return 2 if self.guidance_kind == "classifier-free" and guidance != 1 else 1

    def count_tokens(self, prompt: str) -> int:
        """How many tokens the prompt has, without those that frame it."""
        return len(tokenize(self.tokenizer, prompt, add_special_tokens=False).input_ids)

    def unknown_words(self, prompt: str) -> list[str]:
        """The words and symbols of the prompt that mean nothing to the model, each once, in their order."""
        unknown = self.tokenizer.unk_token_id
        framing = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        if unknown is None or unknown in framing:
            return []  # a tokenizer of word pieces can spell anything
        encoded = tokenize(self.tokenizer, prompt, add_special_tokens=False, return_offsets_mapping=True)
        # What the tokenizer passed over counts as far as it is no part of words, such as the s of "Ada's".
        letters = [" " if letter.isalnum() or _kind(letter) == "P" else letter for letter in prompt]
        for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
            word = prompt[start:end]
            passed = token != unknown or all(_kind(letter) == "P" for letter in word)
            letters[start:end] = " " * len(word) if passed else word
        words = "".join(letters).split()
        return list(dict.fromkeys(w for w in words if any(a.isalnum() or _kind(a) == "S" for a in w)))


def _kind(letter: str) -> str:
    """Of a letter, the first of its Unicode category: L for letters, P for punctuation, S for symbols, …"""
    return unicodedata.category(letter)[0]
