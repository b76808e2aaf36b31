"""Read what other programs write of a picture, by program: prompts, settings, and the names of the rest.

The library `sd-parsers` was tried in place of this: it cuts quoted values at commas, fails on prompts that
contain the label, needs both texts of ComfyUI, does not know SwarmUI, and has no limits.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from app.jobs import comfyui
from app.jobs.png import CHUNK, MAX_TEXT_LETTERS, MAX_UNUSED, Parameters, parse_parameters

# Longer JSON is not parsed: this much takes a tenth of a second.
MAX_JSON_LETTERS = 2**20
# What the usual settings are called in the JSON of other programs; see `_squash`.
_NAMES = {
    "Steps": ("steps", "numinferencesteps"),
    "Sampler": ("sampler", "samplername", "scheduler"),
    "CFG scale": ("cfgscale", "guidancescale", "cfg", "scale", "guidance"),
    "Seed": ("seed", "noiseseed"),
    "Model": ("basemodel", "modelname", "model", "usestablediffusionmodel", "stablediffusionmodel"),
    "Denoising strength": ("strength", "denoise", "denoisingstrength"),
}
_NUMBERS = ("Steps", "CFG scale", "Seed", "Denoising strength")
_POSITIVE = ("prompt", "positiveprompt", "positive", "c")
_NEGATIVE = ("negativeprompt", "negative", "uc")
_SIZES = ("width", "height", "resolution", "size")
# Values that change no picture, or repeat others.
_WITHOUT_EFFECT = {
    "version",
    "appversion",
    "createdby",
    "metadatascheme",
    "date",
    "generationtime",
    "v2",
    "scheduler",
}
_WITHOUT_EFFECT |= {
    "signedhash",
    "requesttype",
    "modelhash",
    "basemodelhash",
    "swarmversion",
    "numoutputs",
    "nsamples",
}
_NOTHING: tuple[Any, ...] = (None, "", "None", "none", "[]", 0, False, [], {})


def squash(name: str) -> str:
    """Return a name as programs agree on it: small letters, without blanks and lines."""
    return re.sub(r"[\s_-]", "", name.lower())


def _load(text: str) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError if it is too long or is none."""
    if len(text) > MAX_JSON_LETTERS:
        raise ValueError("it is too large")
    try:
        value = json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 400 else digits)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not valid JSON") from error
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def _text_of(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _from_values(
    values: Mapping[str, Any], prompt: str = "", negative: str = "", unused: tuple[str, ...] | None = None
) -> Parameters:
    """Read a flat object of prompts and settings.

    Args:
        prompt, negative: in place of those in `values`.
        unused: names of the rest; None for those of the values that are not read.

    Raises:
        ValueError: it has neither a prompt nor settings.
    """
    names = {squash(str(key)): str(key) for key in reversed(list(values))}
    values = {name: values[key] for name, key in names.items() if key in values}
    used = {*_SIZES, *_WITHOUT_EFFECT}

    def first(keys: tuple[str, ...], known: str) -> str:
        found = known or next((_text_of(values[key]) for key in keys if _text_of(values.get(key))), "")
        used.update(key for key in keys if _text_of(values.get(key)) == found)
        return found

    prompt, negative = first(_POSITIVE, prompt), first(_NEGATIVE, negative)
    settings: dict[str, str] = {}
    for name, keys in _NAMES.items():
        for key in keys:
            value = values.get(key)
            if isinstance(value, Mapping):  # a model
                value = value.get("name") or value.get("model_name")
            if isinstance(value, str | int | float) and not isinstance(value, bool) and value != "":
                text = str(value).removesuffix(".0") if name in _NUMBERS else str(value)
                if settings.setdefault(name, text) == text:
                    used.add(key)
    if size := _size_of(values):
        settings["Size"] = size
    if settings.get("Denoising strength") == "1":  # from noise alone
        del settings["Denoising strength"]
    if not prompt and not settings:
        raise ValueError("it has neither a prompt nor settings")
    if unused is None:
        rest = (name for name, value in values.items() if name not in used and value not in _NOTHING)
        unused = tuple(names[name] for name in rest)
    return Parameters(prompt, negative, settings, unused[:MAX_UNUSED])


def _size_of(values: Mapping[str, Any]) -> str:
    """Return width and height as "512x768"; "" if they are not there."""
    edges = [str(values.get(name)).removesuffix(".0") for name in ("width", "height")]
    if all(re.fullmatch(r"\d{1,9}", edge) for edge in edges):
        return "x".join(edges)
    pair = str(values.get("resolution") or values.get("size"))[:40]
    found = re.match(r"[(\[]?\s*(\d{1,5})\s*[,x×]\s*(\d{1,5})", pair)
    return f"{found[1]}x{found[2]}" if found else ""


def _read_parameters(text: str) -> Parameters:
    """Read the text of A1111 and many others, or the JSON that Fooocus and SwarmUI write in its place."""
    if not text.lstrip().startswith("{"):
        return parse_parameters(text)
    try:
        values = _load(text)
    except ValueError:
        if '":' in text and (len(text) > MAX_TEXT_LETTERS or not parse_parameters(text).settings):
            raise
        return parse_parameters(text)  # it is a prompt in braces
    return _from_object(values)


def _read_json(text: str) -> Parameters:
    return _from_object(_load(text))


def _from_object(values: Mapping[str, Any]) -> Parameters:
    """Read an object of prompts and settings, or a graph, also as the one value of another object."""
    for name in ("sui_image_params", "prompt", "workflow"):
        if isinstance(values.get(name), dict):
            values = values[name]
    if any(isinstance(node, dict) and "class_type" in node for node in values.values()):
        return _from_graph(*comfyui.read_graph(values))
    if isinstance(values.get("nodes"), list):
        return _from_graph(*comfyui.read_workflow(values))
    return _from_values(values)


def _from_graph(
    values: Mapping[str, Any], positive: str, negative: str, unused: tuple[str, ...]
) -> Parameters:
    texts = (*_POSITIVE, *_NEGATIVE)
    others = {key: value for key, value in values.items() if squash(key) not in texts}
    return _from_values(others, positive, negative, unused)


def _read_novelai(text: str) -> Parameters:
    values = _load(text)
    captions = []
    for key in ("v4_prompt", "v4_negative_prompt"):
        caption = values.get(key, {}).get("caption", {})
        captions.append(_text_of(caption.get("base_caption")))
        if not caption.get("char_captions"):
            values.pop(key, None)  # it has nothing else
    prompt, negative = _text_of(values.get("prompt")), _text_of(values.get("uc"))
    return _from_values(values, prompt or captions[0], negative or captions[1])


def _read_invokeai(text: str) -> Parameters:
    values = _load(text)
    image = values.get("image")
    if isinstance(image, dict):  # until version 2
        prompt = image.get("prompt")
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
            prompt = prompt[0].get("prompt")
        model = {"model_name": values["model_weights"]} if "model_weights" in values else {}
        return _from_legacy(_text_of(prompt), image | {"prompt": None} | model)
    return _from_values(values, _text_of(values.get("positive_prompt")))


def _from_legacy(prompt: str, values: Mapping[str, Any]) -> Parameters:
    """Take the negative prompt out of the brackets in which InvokeAI 2 has it."""
    negative = re.findall(r"\[([^\[\]]*)\]", prompt)
    return _from_values(values, re.sub(r"\[[^\[\]]*\]", "", prompt).strip(), ", ".join(negative))


def _read_dream(text: str) -> Parameters:
    """Read the command line of InvokeAI 1 and 2: "a prompt" -s 50 -S 1234 -W 512 -H 512 -C 7.5 -A k_lms."""
    found = re.match(r'\s*"((?:[^"\\]++|\\.)*+)"', text[: 2**16], re.DOTALL)
    if not found:
        raise ValueError("it has no prompt")
    names = {"s": "steps", "S": "seed", "W": "width", "H": "height", "C": "cfg_scale", "A": "sampler"}
    options = re.findall(r"(?<=\s)(--?\w{1,40})(?:[ =]?(?!-)([\w.,:]{1,40}))?", text[found.end() : 2**16])
    values: dict[str, Any] = {}
    for option, value in options:
        letter, rest = option[1:2], option[2:]
        if letter in names and not option.startswith("--"):
            values.setdefault(names[letter], rest or value)
        else:
            values.setdefault(option, value or "yes")
    return _from_legacy(found[1].strip(), values)


def _read_comfyui(text: str) -> Parameters:
    return _read_json(text) if text.lstrip().startswith("{") else Parameters(text.strip())


# By the keyword of a PNG's text: the program that writes it, and its reader.
PROGRAMS: Mapping[str, tuple[str, Callable[[str], Parameters]]] = {
    CHUNK: ("A1111, Fooocus or SwarmUI", _read_parameters),
    "invokeai_metadata": ("InvokeAI", _read_invokeai),
    "sd-metadata": ("InvokeAI", _read_invokeai),
    "Dream": ("InvokeAI", _read_dream),
    "sui_image_params": ("SwarmUI", _read_json),
    "parameters-json": ("Stability Matrix", _read_json),
    "prompt": ("ComfyUI", _read_comfyui),
    "workflow": ("ComfyUI", _read_json),
    "Comment": ("NovelAI", _read_novelai),
    "Description": ("NovelAI", lambda text: Parameters(text.strip())),
    "invokeai_workflow": ("InvokeAI", _read_json),
    "invokeai_graph": ("InvokeAI", _read_json),
    "generation_data": ("TensorArt", _read_json),
}
