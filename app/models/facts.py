"""Model metadata needed to request pictures."""

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
    """Model metadata needed to request pictures, without weights; can be pickled.

    Attributes:
        name: as `--model` and records call it.
        revision: SHA-256 of its weights, in hex.
        width, height: default size of its pictures, in pixels.
        sizes: sizes (width, height) that it was trained for.
        multiple: every width and height must be a multiple of it.
        smallest, largest: bounds of width and height.
        place: the device that it runs on, as shown to users.
        max_prompt_tokens: the most tokens that a prompt may have.
        guidance_kind: see GuidanceKind.
        guidance: the default scale.
        guidance_limits: the lowest and the highest scale.
        full_steps: default number of steps of a refinement.
        edits: whether it edits a job's start by instructions, rather than starting from it.
        schedule: noise schedule; on a flow with the shift for the default size.
        tokenizer: of its prompts.
        learned: its ConsistencySolver.
        scheduler_config: config of its own scheduler.
        unguided: the guidance scale at which the network is called with the prompt alone.
        reads_negative_prompts: whether it has them where guidance is classifier-free.
        starts: whether it can start from a picture that it does not edit.
        needs_picture: whether it cannot draw without one to edit.
        preview_decoder: name of the decoder that draws previews; "" for its own autoencoder.
        warnings: problems that do not keep it from working, as shown to users.
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
    unguided: float = 1.0
    reads_negative_prompts: bool = True
    starts: bool = True
    needs_picture: bool = False
    preview_decoder: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def negative_prompts(self) -> bool:
        """Whether it uses negative prompts."""
        return self.guidance_kind == "classifier-free" and self.reads_negative_prompts

    def check_size(self, width: int, height: int) -> None:
        """Raise RequestError if it cannot make pictures of this size."""
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
                    f"for example {nearest} instead of {edge}."
                )

    def plan(self, job: Job) -> Plan:
        """Make the plan of a job.

        Raises:
            RequestError: another model's job, or a size, guidance scale, prompt length, solver or number of
                steps that this model cannot do.
        """
        if job.model != self.name:
            raise RequestError(f"The model {job.model} is not running here; use {self.name}.")
        self.check_size(job.width, job.height)
        if self.needs_picture and job.start is None:
            raise RequestError(f"{self.name} edits pictures and draws none without one. Add a picture.")
        if self.sees_start(job) and not (self.starts or self.edits):
            raise RequestError(f"{self.name} makes pictures from words alone. Remove the picture.")
        low, high = self.guidance_limits
        if not low <= job.guidance <= high:
            due = f"{low:g} to {high:g}" if low < high else f"{low:g}"
            raise RequestError(f"The guidance scale must be {due} with {self.name}, not {job.guidance:g}.")
        for name, text in (("The prompt", job.prompt), ("The negative prompt", job.negative_prompt)):
            tokens = self.count_tokens(text)
            if tokens > self.max_prompt_tokens:
                raise RequestError(
                    f"{name} is too long: {tokens} tokens (words and signs), and this model "
                    f"reads {self.max_prompt_tokens}. Shorten it."
                )
        try:
            return make_plan(
                job.solver,
                job.steps,
                self.schedule_at(job.width, job.height, job.steps),
                learned=self.learned,
                guidance=job.guidance,
                strength=job.start.strength if job.start and not self.edits else 1.0,
            )
        except ValueError as error:
            raise RequestError(str(error)) from error

    def schedule_at(self, width: int, height: int, steps: int) -> NoiseSchedule:
        """Noise schedule for a size in pixels; the shift of some flows depends on it, or on the steps."""
        mu = shift_for(self.scheduler_config, width * height // self.multiple**2, steps)
        return self.schedule if mu is None else NoiseSchedule.from_config(self.scheduler_config, mu=mu)

    def sees_start(self, job: Job) -> bool:
        """Whether a job's start influences the picture; at strength 1 it does only when edited."""
        return job.start is not None and (self.edits or job.start.strength < 1)

    def decoder_of(self, job: Job) -> str:
        """Name of the preview decoder if it draws this job's picture, else "".

        It draws previews of fewer than half the steps of a final.
        """
        return self.preview_decoder if job.kind == "preview" and 2 * job.steps < self.full_steps else ""

    def rows(self, guidance: float) -> int:
        """Batch rows of one picture in a denoiser call: two with classifier-free guidance."""
        return 2 if self.guidance_kind == "classifier-free" and guidance > self.unguided else 1

    def count_tokens(self, prompt: str) -> int:
        """Number of the prompt's tokens, without start and end tokens."""
        return len(tokenize(self.tokenizer, prompt, add_special_tokens=False).input_ids)

    def unknown_words(self, prompt: str) -> list[str]:
        """Distinct words and symbols of the prompt that the tokenizer does not know, in order."""
        unknown = self.tokenizer.unk_token_id
        framing = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        if unknown is None or unknown in framing:
            return []  # a subword tokenizer knows every word
        encoded = tokenize(self.tokenizer, prompt, add_special_tokens=False, return_offsets_mapping=True)
        # Characters without a token count too, except those within words, such as the s of "Ada's".
        letters = [" " if letter.isalnum() or _kind(letter) == "P" else letter for letter in prompt]
        for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
            word = prompt[start:end]
            passed = token != unknown or all(_kind(letter) == "P" for letter in word)
            letters[start:end] = " " * len(word) if passed else word
        words = "".join(letters).split()
        return list(dict.fromkeys(w for w in words if any(a.isalnum() or _kind(a) == "S" for a in w)))


def _kind(letter: str) -> str:
    """First letter of a character's Unicode category: L letters, P punctuation, S symbols, and so on."""
    return unicodedata.category(letter)[0]
