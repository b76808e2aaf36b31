"""Load a folder in the diffusers layout as an `ImageModel`."""

import hashlib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from app.catalogue import CATALOGUE, CatalogueEntry, ModelError
from app.catalogue.decoders import FOLDER as PREVIEW_DECODER
from app.catalogue.files import WEIGHTLESS, check_tokenizer, read_header, read_json, weight_files
from app.catalogue.finding import check_pipeline
from app.catalogue.fitting import Offload
from app.catalogue.table import ROOT
from app.models.checkpoint import load_checkpoint, noise_settings
from app.models.compiled import Compiled
from app.models.facts import ModelFacts
from app.models.model import ImageModel
from app.models.offloading import offload as offload_parts
from app.models.safety import safety_of
from app.models.weights import check_finite
from solver import LearnedSolver, NoiseSchedule, make_plan
from solver.diffusion import LatentDiffusion, PipelineAsItIs, assemble, family_of
from solver.solvers import refuse_nonlinear

# Only these libraries' classes are used, whatever a folder names.
LIBRARIES = ("diffusers", "transformers", "checkpoints")
DEVICES = ("auto", "cpu", "cuda", "mps")

# Sizes that Stable Diffusion XL was trained for (Podell et al. 2023, appendix I), of at most 1024² pixels;
# scaled for models of another size.
BUCKETS = (
    (1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216), (1344, 768), (768, 1344),
)  # fmt: skip
# Models for smaller pictures work at their own size only.
SMALLEST_OF_MANY = 512


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called `name`, one of DEVICES; raise ModelError if this machine lacks it."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        others = ", ".join(device for device, there in available.items() if there)
        raise ModelError(f"This machine has no {name} device that PyTorch can use. Available: {others}.")
    return torch.device(name)


def load(
    folder: Path,
    device: torch.device,
    *,
    name: str = "",
    entry: CatalogueEntry | None = None,
    checkpoint: Path | None = None,
    rest: Sequence[str] = (),
    solver: Path | None = None,
    safety_checker: bool = True,
    offload: Offload = "none",
    compiled: bool = False,
) -> ImageModel:
    """Load the model in `folder`, in the diffusers layout of one of `FAMILIES`, from disk only.

    For the dtypes see `precision`.

    Args:
        name: of the model; by default the folder's.
        entry: its entry in the catalogue; by default the first of its pipeline.
        checkpoint: a single file with the weights, if the folder has the configs only.
        rest: components that the folder brings although there is a checkpoint.
        solver: the folder of the learned solver; by default `folder/solver`, if it exists.
        safety_checker: whether to use the model's safety checker, if it has one.
        offload: "model" keeps only one component at a time on the device.
        compiled: whether to compile the network in the background, on a CUDA device.

    Raises:
        ModelError: the folder is missing, of another kind, incomplete or damaged.
    """
    index = _read_json(folder, "model_index.json")
    for library in (diffusers, transformers):  # they show several bars of a tenth of a second each
        library.utils.logging.disable_progress_bar()
    pipeline = str(index.get("_class_name"))
    check_pipeline(folder, pipeline)
    scheduler = _read_json(folder, "scheduler/scheduler_config.json")
    family = family_of(pipeline)
    lacking = {part for part in family.may_lack if None in (index.get(part) or [None])}
    needed = [part for part in family.needs if part not in lacking]
    place = torch.device("cpu") if offload == "model" else device
    from_folder = [part for part in needed if part in rest] if checkpoint else needed
    parts = {
        part: load_component(folder, part, index.get(part), precision(device, part), place)
        for part in from_folder
    }
    if checkpoint:
        scheduler |= noise_settings(checkpoint)
        in_file = load_checkpoint(
            checkpoint, folder, pipeline, needed, lambda part: precision(device, part), parts
        )
        parts = {
            part: each if part in rest else _prepared(part, each, place, checkpoint, _advice(checkpoint))
            for part, each in in_file.items()
        }
    if offload == "model":
        offload_parts(parts, device)
    try:
        diffusion = assemble(pipeline, parts, scheduler, index)
    except ValueError as error:
        raise ModelError(f"{folder} can't be used: {error}.") from error
    try:
        refuse_nonlinear(scheduler)
        schedule = diffusion.schedule
        make_plan("euler" if schedule.is_flow else "ddim", 1, schedule)
    except ValueError as error:
        raise ModelError(f"{folder}/scheduler can't be used: {error}") from error
    _check_fit(folder, diffusion)
    scale, steps = _defaults(pipeline, entry)
    guidance = scale if diffusion.guidance_kind == "classifier-free" else None
    learned, warnings = _load_learned(solver, folder, schedule, guidance)
    safety, unsafe = safety_of(folder, device, safety_checker, checkpoint)
    revision = _hash_weights(checkpoint or folder)
    facts = _facts(
        name or folder.resolve().name, revision, (scale, steps), diffusion, learned, warnings + unsafe
    )
    # A pipeline that is run as it is may call its network with lists, which are not compiled for.
    compiled = compiled and not isinstance(diffusion, PipelineAsItIs)
    if compiled and device.type == "cuda" and offload == "none":
        network = {family.network_name: Compiled(diffusion.network)}
        diffusion = replace(diffusion, parts={**diffusion.parts, **network})
    return ImageModel(diffusion, facts, safety=safety)


def _facts(
    name: str,
    revision: str,
    defaults: tuple[float, int],
    diffusion: LatentDiffusion,
    learned: LearnedSolver,
    warnings: tuple[str, ...],
) -> ModelFacts:
    _, height, width = (edge * diffusion.scale for edge in diffusion.latent_shape)
    native = min(width, height)
    many = native >= SMALLEST_OF_MANY
    multiple = diffusion.multiple
    sizes = {
        (_rounded(w * native / 1024, multiple), _rounded(h * native / 1024, multiple)) for w, h in BUCKETS
    }
    kind = diffusion.guidance_kind
    tokenizer = diffusion.tokenizer
    return ModelFacts(
        name=name,
        revision=revision,
        width=width,
        height=height,
        sizes=tuple(sorted(sizes, key=_by_shape)) if many else ((width, height),),
        multiple=multiple,
        smallest=_rounded(native / 2, multiple) if many else native,
        largest=min(2048, 2 * native) if many else native,
        place=str(diffusion.device),
        max_prompt_tokens=diffusion.max_prompt_tokens - _framing_tokens(tokenizer),
        guidance_kind=kind,
        guidance=defaults[0] if kind != "none" else 1.0,
        guidance_limits=(diffusion.unguided, 30.0) if kind != "none" else (1.0, 1.0),
        full_steps=defaults[1],
        edits=diffusion.edits,
        unguided=diffusion.unguided,
        reads_negative_prompts=diffusion.reads_negative_prompts,
        starts=not isinstance(diffusion, PipelineAsItIs),
        needs_picture=diffusion.needs_picture,
        schedule=diffusion.schedule,
        tokenizer=tokenizer,
        learned=learned,
        scheduler_config=dict(diffusion.scheduler_config),
        warnings=warnings,
    )


def _defaults(pipeline: str, entry: CatalogueEntry | None) -> tuple[float, int]:
    """Return the guidance scale and the full steps: of the entry, or of any of the pipeline, or its own."""
    entry = entry or next((entry for entry in CATALOGUE if entry.pipeline == pipeline), None)
    if entry:
        return entry.guidance, entry.steps
    told = inspect.signature(getattr(diffusers, pipeline).__call__).parameters
    scale = told["guidance_scale"].default if "guidance_scale" in told else None
    if scale is None:
        scale = told["true_cfg_scale"].default if "true_cfg_scale" in told else 1.0
    return float(scale), int(told["num_inference_steps"].default)


def _rounded(edge: float, multiple: int) -> int:
    return max(multiple, round(edge / multiple) * multiple)


def _by_shape(size: tuple[int, int]) -> tuple[float, bool]:
    """Sort key: the square first, then by aspect ratio, landscape before portrait."""
    width, height = size
    return max(width, height) / min(width, height), width < height


def _framing_tokens(tokenizer: Any) -> int:
    return tokenizer.num_special_tokens_to_add(pair=False)


@torch.inference_mode()
def _check_fit(folder: Path, diffusion: LatentDiffusion) -> None:
    """Raise ModelError if the components do not fit together, by making a tiny picture."""
    channels, *_ = diffusion.latent_shape
    x = torch.zeros(1, channels, 8, 8, device=diffusion.device)
    try:
        edge = diffusion.decode(x).shape[-1]
        if edge != 8 * diffusion.scale:
            raise ValueError(f"the vae makes {edge} pixels from 8 latents")
        _check_vocabularies(diffusion.parts)
        words = diffusion.encode([""])
        diffusion.denoise(x, torch.tensor([500.0]), words, words, torch.tensor([1.0]))
    except (RuntimeError, ValueError, TypeError) as error:
        parts = " and the ".join(name for name in diffusion.needs if not name.startswith("tokenizer"))
        raise ModelError(f"The {parts} in {folder} do not fit together ({_brief(error)}).") from error


def _check_vocabularies(parts: Mapping[str, Any]) -> None:
    for name, tokenizer in parts.items():
        encoder = parts.get(name.replace("tokenizer", "text_encoder"))
        if not name.startswith("tokenizer") or encoder is None:
            continue
        known = encoder.config.get_text_config().vocab_size
        if len(tokenizer) > known:
            raise ValueError(f"the {name} has {len(tokenizer)} tokens, but its text encoder {known}")


def precision(device: torch.device, name: str) -> torch.dtype:
    """Return the dtype of a component on a device.

    float32 on the CPU, bfloat16 on a GPU that has it, else float16; but float32 for the autoencoder, since
    Stable Diffusion XL's overflows in float16.
    """
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32 if name == "vae" else torch.float16


def _load_learned(
    solver: Path | None, folder: Path, schedule: NoiseSchedule, guidance: float | None
) -> tuple[LearnedSolver, tuple[str, ...]]:
    """Load the solver of `solver` or `folder/solver`, with warnings; an untrained one if there is none."""
    if solver is None and not (folder / "solver").is_dir():
        return LearnedSolver(), ()
    path = solver or folder / "solver"
    if not path.is_dir():
        raise ModelError(f"There is no solver folder {path}. Check --solver.")
    try:
        learned = LearnedSolver.load(path)
        for steps in {table.steps for table in learned.tables} | {6}:
            learned.plan(steps, schedule)
        mismatch = learned.mismatch(schedule, guidance)
    # A damaged file can raise anything.
    except Exception as error:
        raise ModelError(f"{path} can't be used ({_brief(error)}). {_advice(folder)}") from error
    if not mismatch:
        return learned, ()
    return learned, (f"{mismatch} Previews may be worse than without a trained solver ({path}).",)


def load_component(
    folder: Path, name: str, source: Any, dtype: torch.dtype, device: torch.device, advice: str = ""
) -> Any:
    """Load the component `name` of the model in a folder, for inference.

    Args:
        source: its library and class, from model_index.json.
        advice: what to do if it cannot be read; by default to download the model again.

    Raises:
        ModelError: it is missing, of another kind, incomplete or damaged.
    """
    advice = advice or _advice(folder)
    try:
        library, class_name = source
    except (TypeError, ValueError):
        raise ModelError(f"{folder}/model_index.json names no {name}. {advice}") from None
    if library not in LIBRARIES:
        raise ModelError(
            f"{folder} takes its {name} from {library}; only {', '.join(LIBRARIES)} are allowed. {advice}"
        )
    cls = getattr(importlib.import_module(library), str(class_name), None)
    if cls is None:
        raise ModelError(f"{library} has no {class_name}, which {folder} names as its {name}. {advice}")
    if not (folder / name).is_dir():
        raise ModelError(f"{folder} has no folder {name}. {advice}")
    try:
        if name.startswith(WEIGHTLESS):
            if name.startswith("tokenizer"):
                check_tokenizer(folder / name)
            return cls.from_pretrained(folder / name, local_files_only=True)
        for path in weight_files(folder / name):
            read_header(path)
        part, report = cls.from_pretrained(
            folder / name,
            local_files_only=True,
            use_safetensors=True,
            torch_dtype=dtype,
            output_loading_info=True,
        )
    # A damaged file can raise anything.
    except Exception as error:
        words = str(error) if isinstance(error, ModelError) else _brief(error) + "."
        raise ModelError(f"{folder / name} can't be read: {words} {advice}") from error
    if report["missing_keys"]:
        raise ModelError(f"{folder / name} lacks {len(report['missing_keys'])} weights. {advice}")
    return _prepared(name, part, device, folder, advice)


def _prepared(name: str, part: Any, device: torch.device, source: Path, advice: str) -> Any:
    """Move a network to a device for inference and check its weights; return other components unchanged."""
    if isinstance(part, torch.nn.Module):
        part.to(device).eval().requires_grad_(False)
        check_finite(part, f"the {name} in {source}", advice)
        if name == "unet" and device.type == "cuda":
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return part


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError(f"There is no model folder {folder}. {_advice(folder)}")
    try:
        content = read_json(folder / name)
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a model in the diffusers layout: it has no {name}.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / name} can't be read ({_brief(error)}). {_advice(folder)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{folder / name} must hold a JSON object. {_advice(folder)}")
    return content


def _hash_weights(place: Path) -> str:
    """SHA-256 of a single file, or of all weights in a folder except the preview decoder's."""
    digest = hashlib.sha256()
    for path in [place] if place.is_file() else sorted(place.rglob("*.safetensors")):
        if path.parent == place / PREVIEW_DECODER:
            continue
        digest.update(path.relative_to(place).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _advice(folder: Path) -> str:
    for entry in CATALOGUE:
        if folder.resolve() == ROOT / entry.source:
            return f"It ships with the repository: restore it with `git checkout -- {entry.source}`."
    return "Check --model, or download the model again."


def _brief(error: BaseException) -> str:
    """First line of an error's message, at most 120 characters long."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line.rstrip(".") if len(line) <= 120 else line[:117] + "…"
