"""From an earlier picture back to the form: out of a PNG's `parameters` text, a link, or the history."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from app import png
from app.job import LIMITS, Record, RequestError, check_number, check_prompt
from app.models import ModelFacts
from app.uploads import read_picture
from solver import SOLVERS

# What the form's sliders reach; more or fewer steps than a preview has are those of a final.
PREVIEW_STEPS = (4, 8)
FULL_STEPS = (10, 100)
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
}


def from_picture(data: bytes) -> dict[str, Any]:
    """What the `parameters` text of a picture says: prompt, negative_prompt and settings, as text.

    Raises RequestError, in words, where the file is no PNG, is damaged or too large, or has no such text.
    """
    text = read_picture(data).info.get(png.CHUNK)
    if not text:
        raise RequestError(
            "This picture does not say how it was made. PNG files from here do, as long as no other program "
            "has saved them anew; as a start picture it can be used all the same, see Settings."
        )
    return asdict(png.parse_parameters(text))


def from_record(record: Record) -> dict[str, Any]:
    """The same of a picture that was made here."""
    return asdict(record.parameters())


def from_link(query: Mapping[str, Any]) -> dict[str, Any]:
    """The same out of a link's query: prompt, negative_prompt, seed, steps, solver, guidance."""
    return {
        "prompt": query.get("prompt", ""),
        "negative_prompt": query.get("negative_prompt", ""),
        "settings": {name: query[key] for key, name in LINK.items() if query.get(key)},
    }


def form_values(wanted: Mapping[str, Any], facts: ModelFacts) -> tuple[dict[str, Any], list[str]]:
    """The form's fields that `wanted` (see `from_picture`) fills, by name, and in words what does not fit.

    Raises RequestError where there is no usable prompt.
    """
    settings = wanted.get("settings")
    settings = settings if isinstance(settings, Mapping) else {}
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
    _steps(settings, values, notes)
    model, size = settings.get("Model"), settings.get("Size")
    if model and model != facts.name:
        notes.append(f"It was made by {str(model)[:60]}; here {facts.name} draws, so it will look different.")
    elif settings.get("Model hash") and settings["Model hash"] != facts.revision[:10]:
        notes.append(f"It was made by another version of {facts.name}, so it will look different.")
    if size and size != f"{facts.width}x{facts.height}":
        notes.append(f"It had {str(size)[:20]} pixels; here it will have {facts.width}x{facts.height}.")
    return values, notes


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


def _steps(settings: Mapping[str, Any], values: dict[str, Any], notes: list[str]) -> None:
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
    if PREVIEW_STEPS[0] <= steps <= PREVIEW_STEPS[1]:
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
