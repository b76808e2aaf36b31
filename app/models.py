"""Which models there are, and how a folder in the diffusers layout becomes an `ImageModel`."""

import hashlib
import importlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

from app.job import Job, RequestError
from solver import LearnedSolver, NoiseSchedule, Plan, make_plan
from solver.diffusion import LatentDiffusion

ROOT = Path(__file__).resolve().parents[1]

# Names that --model understands, and their folders in the repository; anything else is taken as a folder.
CATALOGUE = {"landscapes": "checkpoints/landscapes"}

PIPELINES = ("StableDiffusionPipeline",)
COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer")
# Classes are only ever taken from here, whatever a folder asks for.
LIBRARIES = ("diffusers", "transformers", "checkpoints")
DEVICES = ("auto", "cpu", "cuda", "mps")
REMEMBERED_PROMPTS = 256
TOKENIZING = threading.Lock()


class ModelError(RuntimeError):
    """A model that can't be used, with the reason and the next step in words."""


@dataclass(frozen=True, eq=False)
class ModelFacts:
    """What is to be known of a model to ask for its pictures, without its weights; can be pickled.

    name: the folder's. revision: SHA-256 of its weights, in hex. size: edge of its square pictures in pixels.
    place: the device that it runs on, in words. max_prompt_tokens: how many tokens a prompt may have.
    schedule: the noise levels that it was trained on. learned: its ConsistencySolver, as far as trained.
    """

    name: str
    revision: str
    size: int
    place: str
    max_prompt_tokens: int
    schedule: NoiseSchedule = field(repr=False)
    tokenizer: Any = field(repr=False)
    learned: LearnedSolver = field(repr=False)

    def plan(self, job: Job) -> Plan:
        """The plan that a job's picture follows.

        Raises RequestError, in words, when this is not the job's model or size, when a prompt has more tokens
        than the model reads, or when the solver can't make so many steps.
        """
        if (job.model, job.size) != (self.name, self.size):
            known = f"{self.name} makes pictures of {self.size} × {self.size} pixels"
            raise RequestError(f"There is no model {job.model} for {job.size} pixels here: {known}.")
        for name, text in (("The prompt", job.prompt), ("The negative prompt", job.negative_prompt)):
            tokens = self.count_tokens(text)
            if tokens > self.max_prompt_tokens:
                raise RequestError(
                    f"{name} is too long: {tokens} words and signs, and this model reads "
                    f"{self.max_prompt_tokens}. Leave something out."
                )
        try:
            return make_plan(
                job.solver, job.steps, self.schedule, learned=self.learned, guidance=job.guidance
            )
        except ValueError as error:
            raise RequestError(str(error)) from error

    def count_tokens(self, prompt: str) -> int:
        """How many tokens the prompt has, without those that frame it."""
        return len(self.tokenize(prompt, add_special_tokens=False).input_ids)

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of the prompt that mean nothing to the model, each once, in the prompt's order."""
        unknown = self.tokenizer.unk_token_id
        framing = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        if unknown is None or unknown in framing:
            return []  # a tokenizer of word pieces can spell anything
        encoded = self.tokenize(prompt, add_special_tokens=False, return_offsets_mapping=True)
        places = zip(encoded.input_ids, encoded.offset_mapping, strict=True)
        words = [prompt[start:end] for token, (start, end) in places if token == unknown]
        return list(dict.fromkeys(word for word in words if any(map(str.isalnum, word))))

    def tokenize(self, text: str | list[str], **options: Any) -> Any:
        """What the tokenizer makes of prompts, from any thread: the tokenizer itself bears but one."""
        with TOKENIZING:
            return self.tokenizer(text, **options)


@dataclass(frozen=True, eq=False)
class ImageModel(LatentDiffusion):
    """A text-to-image latent diffusion model, ready to run on one device in float32."""

    facts: ModelFacts
    embeddings: OrderedDict[str, torch.Tensor] = field(default_factory=OrderedDict, repr=False)

    def tokenize(self, text: str | list[str], **options: Any) -> Any:
        """See `ModelFacts.tokenize`."""
        return self.facts.tokenize(text, **options)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompt embeddings [len(prompts), tokens, width], as the stock pipeline makes them.

        Recent ones are remembered, and all others are made in one call. For one thread at a time.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.embeddings]
        if new:
            self.embeddings.update(zip(new, super().encode(new), strict=True))
        for prompt in prompts:
            self.embeddings.move_to_end(prompt)
        together = torch.stack([self.embeddings[prompt] for prompt in prompts])
        while len(self.embeddings) > REMEMBERED_PROMPTS:
            self.embeddings.popitem(last=False)
        return together

    @torch.inference_mode()
    def pictures(self, latents: torch.Tensor) -> list[Image.Image]:
        """Latents [B, *latent_shape] as B RGB pictures."""
        levels = (self.decode(latents.to(self.device)).float() * 255).round().clamp(0, 255).to(torch.uint8)
        return [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).cpu().numpy()]


def _framing_tokens(tokenizer: Any) -> int:
    return tokenizer.num_special_tokens_to_add(pair=False)


def resolve(model: str) -> Path:
    """The folder that `--model` means: a name from the catalogue, or a folder."""
    return ROOT / CATALOGUE[model] if model in CATALOGUE else Path(model)


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`, one of DEVICES. Raises ModelError where this machine has none such."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        others = ", ".join(device for device, there in available.items() if there)
        raise ModelError(f"This machine has no {name} device that PyTorch can use. Available: {others}.")
    return torch.device(name)


def load(folder: Path, device: torch.device) -> ImageModel:
    """The model in `folder`, in the diffusers layout of one of PIPELINES, read from disk alone.

    Raises ModelError, in words, when the folder is missing, of another kind, incomplete or damaged.
    """
    index = _read_json(folder, "model_index.json")
    for library in (diffusers, transformers):  # several bars of a tenth of a second each
        library.utils.logging.disable_progress_bar()
    if index.get("_class_name") not in PIPELINES:
        found, known = index.get("_class_name"), ", ".join(PIPELINES)
        raise ModelError(f"{folder} holds a {found}; this app runs: {known}. Choose another with --model.")
    scheduler = _read_json(folder, "scheduler/scheduler_config.json")
    try:
        make_plan("ddim", 1, scheduler)  # refuses what no solver here can follow
        schedule = NoiseSchedule.from_config(scheduler)
    except ValueError as error:
        raise ModelError(f"{folder}/scheduler can't be used: {error}") from error
    parts = {name: _load_component(folder, name, index.get(name), device) for name in COMPONENTS}
    unet, vae, tokenizer = parts["unet"], parts["vae"], parts["tokenizer"]
    latent_shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    positions = min(tokenizer.model_max_length, parts["text_encoder"].config.max_position_embeddings)
    try:
        with torch.inference_mode():
            size = vae.decode(torch.zeros(1, *latent_shape, device=device), return_dict=False)[0].shape[-1]
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(
            f"The vae and the unet in {folder} do not fit together ({_brief(error)})."
        ) from error
    facts = ModelFacts(
        name=folder.resolve().name,
        revision=_hash_weights(folder),
        size=size,
        place=str(device),
        max_prompt_tokens=positions - _framing_tokens(tokenizer),
        schedule=schedule,
        tokenizer=tokenizer,
        learned=_load_learned(folder, schedule),
    )
    return ImageModel(
        latent_shape=latent_shape, schedule=schedule, scheduler_config=scheduler, facts=facts, **parts
    )


def _load_learned(folder: Path, schedule: NoiseSchedule) -> LearnedSolver:
    """What is in `folder/solver`, or a solver that has learned nothing where there is no such folder."""
    if not (folder / "solver").is_dir():
        return LearnedSolver()
    try:
        learned = LearnedSolver.load(folder / "solver")
        for steps in {table.steps for table in learned.tables} | {6}:
            learned.plan(steps, schedule)
    # What a damaged file raises depends on where the damage is.
    except Exception as error:
        raise ModelError(f"{folder / 'solver'} can't be used ({_brief(error)}). {_advice(folder)}") from error
    return learned


def _load_component(folder: Path, name: str, source: Any, device: torch.device) -> Any:
    try:
        library, class_name = source
    except (TypeError, ValueError):
        raise ModelError(f"{folder}/model_index.json names no {name}. {_advice(folder)}") from None
    if library not in LIBRARIES:
        raise ModelError(f"{folder} wants its {name} from {library}; only {', '.join(LIBRARIES)} are used.")
    cls = getattr(importlib.import_module(library), str(class_name), None)
    if cls is None:
        raise ModelError(f"{library} has no {class_name}, which {folder} wants as its {name}.")
    try:
        if name == "tokenizer":
            return cls.from_pretrained(folder / name, local_files_only=True)
        part, report = cls.from_pretrained(
            folder / name, local_files_only=True, torch_dtype=torch.float32, output_loading_info=True
        )
    # What a damaged file raises depends on where the damage is.
    except Exception as error:
        raise ModelError(f"{folder / name} can't be read ({_brief(error)}). {_advice(folder)}") from error
    if report["missing_keys"]:
        raise ModelError(f"{folder / name} lacks {len(report['missing_keys'])} weights. {_advice(folder)}")
    return part.to(device).eval().requires_grad_(False)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError(f"There is no model folder {folder}. {_advice(folder)}")
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} is no model in the diffusers layout: it has no {name}.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / name} can't be read ({_brief(error)}). {_advice(folder)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{folder / name} is not what a diffusers model has there. {_advice(folder)}")
    return content


def _hash_weights(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _advice(folder: Path) -> str:
    for path in CATALOGUE.values():
        if folder.resolve() == ROOT / path:
            return f"It ships with the repository: get it back with `git checkout -- {path}`."
    return "Check --model, or get the folder again."


def _brief(error: BaseException) -> str:
    """The first line of an error, short enough for one sentence."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line.rstrip(".") if len(line) <= 120 else line[:117] + "…"
