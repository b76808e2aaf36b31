"""What the form offers, and the way back to it: from a PNG's text, a link, or the history."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from app.jobs import png
from app.jobs.job import LIMITS, Record, RequestError, Start, check_number, check_prompt
from app.jobs.uploads import read_picture
from app.models import ModelFacts
from solver import SOLVERS

# What the form asks for, and for a model that edits.
PROMPT = "What would you like to see?"
EDIT_PROMPT = "What would you like to see, or to have changed in a picture?"
# What the form's sliders reach; more or fewer steps than a preview has are those of a final.
PREVIEW_STEPS = (4, 8)
FULL_STEPS = (10, 100)
# A model that edits needs fewer: the picture is there already.
EDIT_STEPS = (3, 8)
USUAL_STEPS, USUAL_EDIT_STEPS = 6, 4
MAX_GUIDANCE = 12
# Our solvers under the names that other programs write; a schedule's name may follow.
SAMPLERS = {
    "ddim": "ddim",
    "dpm++ 2m": "dpm++2m",
    "dpm++ 3m": "dpm++3m",
    "dpm-solver 2m": "dpm2m",
    "unipc": "unipc",
    "deis": "deis",
    "heun": "heun",
    "euler": "euler",
}
SCHEDULES = (" karras", " exponential", " sgm uniform", " simple", " normal", " automatic")
# How a link names what the PNG text names; a link's names come from the address bar.
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
    """What the `parameters` text of a picture says: prompt, negative_prompt and settings, as text.

    Raises RequestError, in words, where the file is no PNG, is damaged or too large, or has no such text.
    """
    text = read_picture(data).info.get(png.CHUNK)
    if not text:
        raise RequestError(
            "This picture does not say how it was made. PNG files from here do, as long as no other program "
            "has saved them anew. It can be started from all the same: “Add picture”."
        )
    return asdict(png.parse_parameters(text))


def from_record(record: Record) -> dict[str, Any]:
    """The same of a picture that was made here."""
    return asdict(record.parameters())


def from_link(query: Mapping[str, Any]) -> dict[str, Any]:
    """The same out of a link's query: the prompts, and settings under the names in LINK."""
    return {
        "prompt": query.get("prompt", ""),
        "negative_prompt": query.get("negative_prompt", ""),
        "settings": {name: query[key] for key, name in LINK.items() if query.get(key)},
    }


def start_of_settings(wanted: Mapping[str, Any]) -> tuple[object, float] | None:
    """The mark of the picture that a picture was made from (see `Start.mark`), if told, and the strength.

    None where it was made from noise alone.
    """
    settings = _settings(wanted)
    mark, strength = settings.get("Init image hash"), settings.get("Denoising strength")
    enlarged = any(str(name).startswith("Hires") for name in settings)  # which has a strength, too
    if not mark and (not strength or enlarged):
        return None
    try:
        return mark, check_number("strength", strength)
    except RequestError:
        return mark, Start.strength


def made_here(wanted: Mapping[str, Any]) -> bool:
    """Whether `wanted` tells how a picture was made, and not of a prompt alone."""
    return bool(_settings(wanted).get("Seed"))


def sizes_of(facts: ModelFacts) -> dict[str, tuple[int, int]]:
    """The sizes that there are to choose from, width and height in pixels, by their names."""
    return {f"{width}x{height}": (width, height) for width, height in facts.sizes}


def check_size(name: str | None, facts: ModelFacts) -> tuple[int, int]:
    """The size of that name; the model's own without one. Raises RequestError where it has no such size."""
    sizes = sizes_of(facts)
    if not name:
        return facts.width, facts.height
    if name not in sizes:
        raise RequestError(f"{facts.name} has no size “{str(name)[:20]}”. Choose one of: {', '.join(sizes)}.")
    return sizes[name]


def form_for(facts: ModelFacts) -> dict[str, dict[str, Any]]:
    """What the form's parts are like with a model, by name, as Gradio's properties."""
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
    """How few and how many steps a preview has."""
    return EDIT_STEPS if facts.edits else PREVIEW_STEPS


def form_values(wanted: Mapping[str, Any], facts: ModelFacts) -> tuple[dict[str, Any], list[str]]:
    """The form's fields that `wanted` (see `from_picture`) fills, by name, and in words what does not fit.

    Raises RequestError where there is no usable prompt.
    """
    settings = _settings(wanted)
    prompt = check_prompt("The prompt", wanted.get("prompt"))
    if not prompt:
        raise RequestError("There is no prompt in it.")
    values: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": check_prompt("The negative prompt", wanted.get("negative_prompt") or ""),
    }
    notes: list[str] = []
    if settings.get("Seed"):
        try:
            values |= {"seed": check_number("seed", settings["Seed"]), "random_seeds": False}
        except RequestError:
            notes.append(f"The seed must be from 0 to {LIMITS['seed'].high:,}; this one is left out.")
    _guidance(settings, values, notes)
    _steps(settings, facts, values, notes)
    model, size = settings.get("Model"), settings.get("Size")
    if model and model != facts.name:
        notes.append(f"It was made by {str(model)[:60]}; here {facts.name} draws, so it will look different.")
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
        notes.append("Its guidance can't be used here, and is left as it was.")
        return
    values["guidance"] = min(guidance, MAX_GUIDANCE)
    if guidance > MAX_GUIDANCE:
        notes.append(f"Its guidance was {guidance:g}; {MAX_GUIDANCE} is the most here.")


def _steps(settings: Mapping[str, Any], facts: ModelFacts, values: dict[str, Any], notes: list[str]) -> None:
    """Few steps are those of a preview, with its solver; many are those of a final."""
    sampler = _solver(settings.get("Sampler"))
    if settings.get("Sampler") and not sampler:
        notes.append(f"There is no sampler “{str(settings['Sampler'])[:40]}” here; it will look different.")
    if not settings.get("Steps"):
        values |= {"solver": sampler} if sampler else {}
        return
    try:
        steps = int(check_number("steps", settings["Steps"]))
    except RequestError:
        notes.append("Its number of steps can't be used here, and is left as it was.")
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
