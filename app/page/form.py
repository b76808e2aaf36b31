"""The values of the form: what it offers for a model, and what a PNG's text, a link or a record fills in."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from app.jobs import metadata
from app.jobs.job import (
    LIMITS,
    Record,
    RequestError,
    Start,
    Variation,
    check_choice,
    check_number,
    check_prompt,
)
from app.jobs.uploads import read_picture
from app.models import ModelFacts
from app.page.click import Studio
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
# Our solvers by the names that other programs write; the name of a schedule may follow.
SAMPLERS = {"dpm++ 2m": "dpm++2m", "dpm++ 3m": "dpm++3m", "dpm-solver 2m": "dpm2m", "dpmpp_2m": "dpm++2m"}
SAMPLERS |= {
    "k_dpmpp_2m": "dpm++2m",
    "k_euler": "euler",
    "k_heun": "heun",
    "euler_discrete": "euler",
    "uni_pc": "unipc",
}
SCHEDULES = (" karras", " exponential", " sgm uniform", " simple", " normal", " automatic", "_karras", "_k")
# Texts of the form that a page held over a refresh; they may be longer than those that can be used.
MAX_HELD_LETTERS = 20_000
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
    "variation": "Variation seed",
    "amount": "Variation seed strength",
    "variations": "Variations",
    "full_steps": "Full steps",
    "full_solver": "Full sampler",
}
# Settings that the form, the session or a note has, and those that do not change a picture.
_HELD = {*LINK.values(), "Model hash", "Preview decoder", "Schedule type"}
_WITHOUT_EFFECT = {"Version", "Hashes", "VAE hash", "User", "App", "Civitai resources", "Civitai metadata"}
# Ranges of the sliders, which are widened for values beyond.
_RANGES = {"full_steps": FULL_STEPS, "guidance": (1, MAX_GUIDANCE)}


def from_picture(data: bytes) -> dict[str, Any]:
    """Read how a picture was made: prompt, negative_prompt and settings, as text.

    Raises RequestError if the file is not a picture, is damaged or too large, or does not say so; Unreadable
    if it does, but in a way that can't be read.
    """
    read_picture(data)
    try:
        return asdict(metadata.read(data))
    except metadata.Unreadable:
        raise
    except ValueError as error:
        raise RequestError(
            f"{error} PNG files from here do, unless another program has saved them again. "
            "You can still start from the picture: “Add picture”."
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
    edges = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", str(name))
    choices = f"Choose one of: {', '.join(sizes)}."
    if not edges:
        raise RequestError(f"{facts.name} has no size “{str(name)[:20]}”. {choices}")
    width, height = int(edges[1]), int(edges[2])
    try:
        facts.check_size(width, height)
    except RequestError as error:
        raise RequestError(f"{error} {choices}") from error
    return width, height


def form_for(facts: ModelFacts) -> dict[str, dict[str, Any]]:
    """Return Gradio's properties of the form's parts for a model, by the names of `app.page.click.Form`."""
    low, high = facts.guidance_limits
    fewest, most = preview_steps(facts)
    return {
        "prompt": {"placeholder": EDIT_PROMPT if facts.edits else PROMPT},
        "negative_prompt": {"visible": facts.negative_prompts},
        "guidance": {
            "value": facts.guidance,
            "visible": low < high,
            "minimum": min(low, 1),
            "maximum": MAX_GUIDANCE,
        },
        "steps": {
            "value": USUAL_EDIT_STEPS if facts.edits else USUAL_STEPS,
            "minimum": fewest,
            "maximum": most,
        },
        "full_steps": {"value": facts.full_steps},
        "size": size_part(facts, f"{facts.width}x{facts.height}"),
    }


def size_part(facts: ModelFacts, name: str) -> dict[str, Any]:
    """Return Gradio's properties of the choice of sizes, with one beyond the model's own if it is chosen."""
    names = dict.fromkeys([*sizes_of(facts), name])
    choices = [(each.replace("x", " × "), each) for each in names]
    return (
        {"choices": choices, "value": name, "visible": True}
        if len(names) > 1
        else {"visible": False, "value": None}
    )


def parts_with(values: Mapping[str, Any], facts: ModelFacts) -> dict[str, dict[str, Any]]:
    """Return Gradio's properties of the form's parts that have these values, in ranges that hold them."""
    parts = {}
    for name, value in values.items():
        parts[name] = size_part(facts, value) if name == "size" else {"value": value}
        if low_high := _RANGES.get(name) or (preview_steps(facts) if name == "steps" else None):
            parts[name] |= {"minimum": min(low_high[0], value), "maximum": max(low_high[1], value)}
    return parts


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
        _seed(settings, values, notes)
    if settings.get("CFG scale"):
        _guidance(settings["CFG scale"], facts, values, notes)
    _steps(settings, facts, values, notes)
    model, size = settings.get("Model"), settings.get("Size")
    same_model = model == facts.name and settings.get("Model hash") == facts.revision[:10]
    if model and model != facts.name:
        notes.append(
            f"It was made by {model[:60]}; here the model is {facts.name}, so it will look different."
        )
    elif settings.get("Model hash") and settings["Model hash"] != facts.revision[:10]:
        notes.append(f"It was made by another version of {facts.name}, so it will look different.")
    if size:
        try:
            edges = check_size(size, facts)
            if edges not in facts.sizes and not same_model:
                raise RequestError("")
            if edges != (facts.width, facts.height) or len(facts.sizes) > 1:
                values["size"] = size
        except RequestError:
            notes.append(f"It had {size[:20]} pixels; here it will have {facts.width}x{facts.height}.")
    unused = wanted.get("unused")
    dropped = [name for name in unused if isinstance(name, str)] if isinstance(unused, list | tuple) else []
    dropped += [name for name in settings if name not in _HELD | _WITHOUT_EFFECT]
    if dropped:
        more = f" and {len(dropped) - 6} more" if len(dropped) > 6 else ""
        notes.append(f"Not used here: {', '.join(name[:60] for name in dropped[:6])}{more}.")
    return values, notes


def held_values(held: Mapping[str, Any], facts: ModelFacts) -> dict[str, Any]:
    """Return the fields that a page held over a refresh, without those that do not fit the model."""
    low, high = facts.guidance_limits
    values = {name: held[name] for name in ("prompt", "negative_prompt", "variation") if _is_text(held, name)}
    if isinstance(held.get("random_seeds"), bool):
        values["random_seeds"] = held["random_seeds"]
    checks: dict[str, Callable[[Any], Any]] = {
        **{name: partial(check_number, name) for name in ("count", "steps", "seed", "guidance")},
        "full_steps": partial(check_number, "steps"),
        "solver": partial(check_choice, "solver", choices=SOLVERS),
        "full_solver": partial(check_choice, "solver", choices=SOLVERS),
        "size": lambda name: "x".join(map(str, check_size(name, facts))),
    }
    for name, check in checks.items():
        if held.get(name) is not None:
            with suppress(RequestError):
                values[name] = check(held[name])
    if not low <= values.get("guidance", low) <= high:
        del values["guidance"]
    return values


def _is_text(held: Mapping[str, Any], name: str) -> bool:
    text = held.get(name)
    return (
        isinstance(text, str) and 0 < len(text) <= MAX_HELD_LETTERS
    )  # an empty one may be typed into by now


def turned(variation: Variation) -> str:
    """Say what a variation does to the noise of a seed."""
    turns = (f"{turn.amount:.0%} towards that of {turn.seed}" for turn in variation.turns)
    return "turned " + ", then ".join(turns)


def _settings(wanted: Mapping[str, Any]) -> dict[str, str]:
    settings = wanted.get("settings")
    if not isinstance(settings, Mapping):
        return {}
    return {name: str(value) for name, value in settings.items() if isinstance(value, str | int | float)}


def _seed(settings: Mapping[str, str], values: dict[str, Any], notes: list[str]) -> None:
    try:
        seed = check_number("seed", settings["Seed"])
    except RequestError:
        values["random_seeds"] = True
        notes.append(
            f"The seed must be from 0 to {LIMITS['seed'].high:,}; its seed, "
            f"{settings['Seed'][:40]}, is not, so the previews get random seeds."
        )
        return
    written = settings.get("Variations", "")
    if not written and settings.get("Variation seed"):
        written = f"{settings['Variation seed']}:{settings.get('Variation seed strength', '')}"
    try:
        variation = Variation.parse(written)
    except RequestError:
        notes.append(
            "It is a variation by a seed or an amount that can't be used here, so it will look different."
        )
        variation = None
    values |= {"seed": seed, "random_seeds": False, "variation": str(variation or "")}
    if (variation.seed if variation else seed) + LIMITS["count"].high > LIMITS["seed"].high:
        values["count"] = 1  # the seeds after it may not exist
    if variation:
        notes.append(
            f"It is a variation: the noise of seed {seed} {turned(variation)}. So is the first preview; the "
            f"others are turned towards the seeds after {variation.seed}."
        )


def _guidance(written: str, facts: ModelFacts, values: dict[str, Any], notes: list[str]) -> None:
    low, high = facts.guidance_limits
    try:
        guidance = check_number("guidance", written)
    except RequestError:
        notes.append(f"Its guidance can't be used here and is ignored: {written[:40]}.")
        return
    if low <= guidance <= high:
        values["guidance"] = guidance
    else:
        due = f"{low:g} to {high:g}" if low < high else f"{low:g}"
        notes.append(f"Its guidance was {guidance:g}; with {facts.name} it is {due}.")


def _steps(settings: Mapping[str, str], facts: ModelFacts, values: dict[str, Any], notes: list[str]) -> None:
    """A few steps are those of a preview, with its solver; more are those of a final."""
    sampler = _solver(settings.get("Sampler"))
    if settings.get("Sampler") and not sampler:
        notes.append(f"There is no sampler “{settings['Sampler'][:40]}” here; it will look different.")
    _final(settings.get("Full steps"), _solver(settings.get("Full sampler")), values, notes)
    if not settings.get("Steps"):
        values |= {"solver": sampler} if sampler else {}
        return
    try:
        steps = int(check_number("steps", settings["Steps"]))
    except RequestError:
        notes.append(f"Its number of steps can't be used here and is ignored: {settings['Steps'][:40]}.")
        return
    decoder = settings.get("Preview decoder", "")
    usual = facts.preview_decoder if 2 * steps < facts.full_steps else ""
    if decoder not in ("", usual):
        notes.append(f"It was drawn by {decoder[:60]}, which is not here, so it will look different.")
    if decoder or (steps < FULL_STEPS[0] and not (usual and settings.get("Model") == facts.name)):
        values |= {"steps": steps} | ({"solver": sampler} if sampler else {})
    else:
        _final(str(steps), sampler, values, notes)


def _final(steps: str | None, solver: str | None, values: dict[str, Any], notes: list[str]) -> None:
    """Fill in the steps of a final, and its solver."""
    if steps:
        try:
            values["full_steps"] = int(check_number("steps", steps))
        except RequestError:
            notes.append(f"Its number of full steps can't be used here and is ignored: {steps[:40]}.")
    if solver:
        values["full_solver"] = solver
        if solver != Studio.final_solver:
            notes.append(f"Its full steps were made by {solver}; refinements are now, too.")


def _solver(sampler: Any) -> str | None:
    if not isinstance(sampler, str):
        return None
    name = sampler.strip().lower()
    for schedule in SCHEDULES:
        name = name.removesuffix(schedule)
    return name if name in SOLVERS else SAMPLERS.get(name)
