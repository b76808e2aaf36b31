"""The values of the form: what it offers for a model, and what a PNG's text, a link or a record fills in."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from app.jobs import metadata
from app.jobs.job import LIMITS, Record, RequestError, Start, check_number, check_prompt
from app.jobs.uploads import read_picture
from app.models import ModelFacts
from solver import SOLVERS

# Placeholders of the prompt; the second is for a model that edits.
PROMPT = "What would you like to see?"
EDIT_PROMPT = "What would you like to see, or to change in a picture?"
# Ranges of the sliders. Pictures with more or fewer steps than a preview are taken for finals.
PREVIEW_STEPS = (4, 8)
FULL_STEPS = (10, 100)
# A model that edits needs fewer: the picture is there already.
EDIT_STEPS = (3, 8)
USUAL_STEPS, USUAL_EDIT_STEPS = 6, 4
MAX_GUIDANCE = 12
_START = "You can still start from the picture: “Add picture”."
# Our solvers by the names that other programs write; the name of a schedule may follow.
SAMPLERS = {"dpm++ 2m": "dpm++2m", "dpm++ 3m": "dpm++3m", "dpm-solver 2m": "dpm2m"}
SCHEDULES = (" karras", " exponential", " sgm uniform", " simple", " normal", " automatic")
# The names of a link's query, and what a PNG's text calls the same.
LINK = {
    "seed": "Seed",
    "steps": "Steps",
    "solver": "Sampler",
    "guidance": "CFG scale",
    "model": "Model",
    "size": "Size",
    "start": "Init image hash",
    "strength": "Denoising strength",
}


def from_picture(data: bytes) -> dict[str, Any]:
    """Read how a picture was made: prompt, negative_prompt and settings, as text.

    Raises RequestError if the file is not a picture, is damaged or too large, or does not say so.
    """
    read_picture(data)
    try:
        return asdict(metadata.read(data))
    except metadata.Unreadable as error:
        raise RequestError(f"{error} {_START}") from error
    except ValueError as error:
        raise RequestError(
            f"{error} PNG files from here do, unless another program has saved them again. {_START}"
        ) from error


def from_record(record: Record) -> dict[str, Any]:
    """Return the same for a picture that was made here."""
    return asdict(record.parameters())


def from_link(query: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same from a link's query: the prompts, and settings by the names in LINK."""
    return {
        "prompt": query.get("prompt", ""),
        "negative_prompt": query.get("negative_prompt", ""),
        "settings": {name: query[key] for key, name in LINK.items() if query.get(key)},
    }


def start_of_settings(wanted: Mapping[str, Any]) -> tuple[object, float] | None:
    """Return the mark of the picture that this one started from (see `Start.mark`) and the strength.

    None if it was made from noise alone.
    """
    settings = _settings(wanted)
    mark, strength = settings.get("Init image hash"), settings.get("Denoising strength")
    enlarged = any(str(name).startswith("Hires") for name in settings)  # this has a strength, too
    if not mark and (not strength or enlarged):
        return None
    try:
        return mark, check_number("strength", strength)
    except RequestError:
        return mark, Start.strength


def made_here(wanted: Mapping[str, Any]) -> bool:
    """Whether `wanted` describes a picture that was made, not just a prompt."""
    return bool(_settings(wanted).get("Seed"))


def sizes_of(facts: ModelFacts) -> dict[str, tuple[int, int]]:
    """Return the sizes to choose from, width and height in pixels, by name."""
    return {f"{width}x{height}": (width, height) for width, height in facts.sizes}


def check_size(name: str | None, facts: ModelFacts) -> tuple[int, int]:
    """Return the size of that name; without a name the model's own. Raises RequestError if there is none."""
    sizes = sizes_of(facts)
    if not name:
        return facts.width, facts.height
    if name not in sizes:
        raise RequestError(f"{facts.name} has no size “{str(name)[:20]}”. Choose one of: {', '.join(sizes)}.")
    return sizes[name]


def form_for(facts: ModelFacts) -> dict[str, dict[str, Any]]:
    """Return Gradio's properties of the form's parts for a model, by the names of `app.page.click.Form`."""
    sizes = sizes_of(facts)
    low, high = facts.guidance_limits
    fewest, most = preview_steps(facts)
    return {
        "prompt": {"placeholder": EDIT_PROMPT if facts.edits else PROMPT},
        "negative_prompt": {"visible": facts.negative_prompts},
        "guidance": {"value": facts.guidance, "visible": low < high},
        "steps": {
            "value": USUAL_EDIT_STEPS if facts.edits else USUAL_STEPS,
            "minimum": fewest,
            "maximum": most,
        },
        "full_steps": {"value": facts.full_steps},
        "size": {
            "choices": [(name.replace("x", " × "), name) for name in sizes],
            "value": f"{facts.width}x{facts.height}",
            "visible": True,
        }
        if len(sizes) > 1
        else {"visible": False},
    }


def preview_steps(facts: ModelFacts) -> tuple[int, int]:
    """Return the fewest and the most steps of a preview."""
    return EDIT_STEPS if facts.edits else PREVIEW_STEPS


def form_values(wanted: Mapping[str, Any], facts: ModelFacts) -> tuple[dict[str, Any], list[str]]:
    """Return the form's fields that `wanted` (see `from_picture`) fills, and messages on what does not fit.

    Raises RequestError if there is no usable prompt.
    """
    settings = _settings(wanted)
    prompt = check_prompt("The prompt", wanted.get("prompt"))
    if not prompt:
        raise RequestError("It has no prompt.")
    values: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": check_prompt("The negative prompt", wanted.get("negative_prompt") or ""),
    }
    notes: list[str] = []
    if settings.get("Seed"):
        try:
            values |= {"seed": check_number("seed", settings["Seed"]), "random_seeds": False}
        except RequestError:
            notes.append(f"The seed must be from 0 to {LIMITS['seed'].high:,}; this one is ignored.")
    _guidance(settings, values, notes)
    _steps(settings, facts, values, notes)
    model, size = settings.get("Model"), settings.get("Size")
    if model and model != facts.name:
        notes.append(
            f"It was made by {str(model)[:60]}; here the model is {facts.name}, so it will look different."
        )
    elif settings.get("Model hash") and settings["Model hash"] != facts.revision[:10]:
        notes.append(f"It was made by another version of {facts.name}, so it will look different.")
    sizes = sizes_of(facts)
    if size and size not in sizes:
        notes.append(f"It had {str(size)[:20]} pixels; here it will have {facts.width}x{facts.height}.")
    elif size and len(sizes) > 1:
        values["size"] = size
    return values, notes


def _settings(wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = wanted.get("settings")
    return settings if isinstance(settings, Mapping) else {}


def _guidance(settings: Mapping[str, Any], values: dict[str, Any], notes: list[str]) -> None:
    if not settings.get("CFG scale"):
        return
    try:
        guidance = check_number("guidance", settings["CFG scale"])
    except RequestError:
        notes.append("Its guidance can't be used here and is ignored.")
        return
    values["guidance"] = min(guidance, MAX_GUIDANCE)
    if guidance > MAX_GUIDANCE:
        notes.append(f"Its guidance was {guidance:g}; the limit here is {MAX_GUIDANCE}.")


def _steps(settings: Mapping[str, Any], facts: ModelFacts, values: dict[str, Any], notes: list[str]) -> None:
    """A few steps are those of a preview, with its solver; more are those of a final."""
    sampler = _solver(settings.get("Sampler"))
    if settings.get("Sampler") and not sampler:
        notes.append(f"There is no sampler “{str(settings['Sampler'])[:40]}” here; it will look different.")
    if not settings.get("Steps"):
        values |= {"solver": sampler} if sampler else {}
        return
    try:
        steps = int(check_number("steps", settings["Steps"]))
    except RequestError:
        notes.append("Its number of steps can't be used here and is ignored.")
        return
    fewest, most = preview_steps(facts)
    if fewest <= steps <= most:
        values |= {"steps": steps} | ({"solver": sampler} if sampler else {})
    else:
        values["full_steps"] = max(steps, FULL_STEPS[0])


def _solver(sampler: Any) -> str | None:
    if not isinstance(sampler, str):
        return None
    name = sampler.strip().lower()
    for schedule in SCHEDULES:
        name = name.removesuffix(schedule)
    return name if name in SOLVERS else SAMPLERS.get(name)
