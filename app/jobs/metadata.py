"""Read how a picture was made from what this or another program wrote into it.

The library `sd-parsers` was tried in place of this: it cuts quoted values at commas, fails on prompts that
contain the label, needs both texts of ComfyUI, does not know SwarmUI, and has no limits.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from app.jobs import container
from app.jobs.job import RequestError
from app.jobs.png import CHUNK, MAX_TEXT_LETTERS, Parameters, parse_parameters

# Longer JSON is not parsed: this much takes a tenth of a second.
MAX_JSON_LETTERS = 2**20
# Nodes of a ComfyUI graph that are looked at between a sampler and its texts.
MAX_NODES = 1000
_COMMENT, _MAKE, _MODEL = 0x9286, 0x010F, 0x0110
# What the usual settings are called in the JSON of other programs.
_NAMES = {
    "Steps": ("steps",),
    "Sampler": ("sampler", "sampler_name", "scheduler"),
    "CFG scale": ("cfg_scale", "cfgscale", "guidance_scale", "cfg", "scale", "guidance"),
    "Seed": ("seed", "noise_seed"),
    "Model": ("base_model", "model_name", "model"),
    "Denoising strength": ("strength", "denoise", "denoising_strength"),
}
_NUMBERS = ("Steps", "CFG scale", "Seed", "Denoising strength")
_POSITIVE = ("prompt", "positive_prompt", "positive", "c")
_NEGATIVE = ("negative_prompt", "negativeprompt", "negative", "uc")


# Inputs by which samplers of ComfyUI are known, inputs whose value may be another node's, and those of texts.
_SAMPLERS = (
    {"steps", "positive"},
    {"steps", "sampler_name", "cfg"},
    {"sigmas", "positive"},
    {"sigmas", "guider"},
)
_LINKED = ("steps", "seed", "noise_seed", "cfg", "width", "height", "denoise")
_TEXTS = ("text", "text_g", "text_l", "t5xxl", "clip_l", "string", "value", "prompt", "populated_text",
          "string_a", "string_b", "text_a", "text_b", "text1", "text2")  # fmt: skip


_SAMPLER = ("steps", "cfg", "sampler_name", "scheduler")
_WIDGETS = {
    "KSampler": ("seed", "", *_SAMPLER, "denoise"),
    "KSamplerAdvanced": ("add_noise", "noise_seed", "", *_SAMPLER, "start_at_step"),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "RandomNoise": ("noise_seed",),
    "FluxGuidance": ("guidance",),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeFlux": ("clip_l", "t5xxl", "guidance"),
    "EmptyLatentImage": ("width", "height"),
    "EmptySD3LatentImage": ("width", "height"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name",),
}


class Unreadable(RequestError):
    """A picture that carries something of a program that can't be read; the message is shown to the user."""


def read(data: bytes) -> Parameters:
    """Read how the picture in a file was made; the first program of `PROGRAMS` whose text can be read counts.

    Raises:
        Unreadable: it carries something that can't be read.
        ValueError: it carries nothing, or is no file of the kind.
    """
    texts = _texts_of(container.split(data))
    problems = []
    for key, (program, reader) in PROGRAMS.items():
        if key not in texts:
            continue
        text = texts[key]
        try:
            if not text:
                raise ValueError("it is damaged or too large")
            return reader(text)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            reason = str(error) if type(error) is ValueError else "it is written in an unknown way"
            problems.append(f"It carries what {program} writes (“{key}”), but that can't be read: {reason}.")
    if problems:
        raise Unreadable(problems[0])
    if texts:
        names = ", ".join(f"“{name[:40]}”" for name in list(texts)[:5])
        raise Unreadable(f"It carries texts ({names}), but none that tells here how the picture was made.")
    raise ValueError("This file does not say how the picture was made.")


def _texts_of(parts: container.Parts) -> dict[str, str | None]:
    """Return the texts of a PNG by keyword, and those in EXIF by the keyword that a PNG would have."""
    texts = dict(parts.texts)
    for name in ("Parameters", "usercomment", "UserComment"):
        if name in texts:
            texts.setdefault(CHUNK, texts[name])
    exif = container.read_exif(parts.exif, _COMMENT, _MAKE, _MODEL)
    comment = _decode_comment(exif.get(_COMMENT, b""))
    if re.search(r"\A\s*\{|Steps: |Negative prompt:", comment):  # cameras have comments, too
        texts.setdefault(CHUNK, comment)
    if texts.get("Software") != "NovelAI" and not (texts.get("Comment") or "").startswith("{"):
        others = {"Comment": "the text Comment", "Description": "the text Description"}
        texts = {others.get(name, name): text for name, text in texts.items()}
    for tag in (_MAKE, _MODEL):  # where ComfyUI's WebP have them, as "prompt:{…}"
        name, colon, graph = container.decode_text(exif.get(tag, b"")).rstrip("\0").partition(":")
        if colon and name.lower() in ("prompt", "workflow") and graph.lstrip().startswith("{"):
            texts.setdefault(name.lower(), graph)
    return texts


def _decode_comment(data: bytes) -> str:
    """Decode EXIF's UserComment, whose first eight bytes name its encoding."""
    code, text = data[:8], data[8:]
    if code == b"UNICODE\0":
        zeros = [text[place::2].count(0) for place in (0, 1)]
        little = text.startswith(b"\xff\xfe") or (zeros[1] > zeros[0] and not text.startswith(b"\xfe\xff"))
        if max(zeros) == 0 and _is_utf8(text):  # some programs write that here
            return container.decode_text(text).strip("\0 ")
        return text.decode("utf-16-le" if little else "utf-16-be", "replace").strip("\ufeff\0 ")
    known = code in (b"ASCII\0\0\0", b"JIS\0\0\0\0\0", bytes(8))
    return container.decode_text(text if known else data).strip("\0 ")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _load(text: str) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError if it is too long or is none."""
    if len(text) > MAX_JSON_LETTERS:
        raise ValueError("it is too large")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not valid JSON") from error
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def _text_of(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _from_values(values: Mapping[str, Any], prompt: str = "", negative: str = "") -> Parameters:
    """Read a flat object of prompts and settings. Raises ValueError if it has neither."""
    values = {str(key).lower().replace(" ", "_"): value for key, value in values.items()}
    prompt = prompt or next((_text_of(values[key]) for key in _POSITIVE if _text_of(values.get(key))), "")
    negative = negative or next((_text_of(values[key]) for key in _NEGATIVE if _text_of(values.get(key))), "")
    settings: dict[str, str] = {}
    for name, keys in _NAMES.items():
        for value in (values.get(key) for key in keys):
            if isinstance(value, Mapping):  # a model
                value = value.get("name") or value.get("model_name")
            if isinstance(value, str | int | float) and not isinstance(value, bool) and value != "":
                settings.setdefault(name, str(value).removesuffix(".0") if name in _NUMBERS else str(value))
    width, height = values.get("width"), values.get("height")
    resolution = re.match(
        r"\(?\s*(\d{1,5})\s*[,x×]\s*(\d{1,5})", str(values.get("resolution") or values.get("size"))
    )
    if isinstance(width, int | float) and isinstance(height, int | float):
        settings["Size"] = f"{width:.0f}x{height:.0f}"
    elif resolution:
        settings["Size"] = f"{resolution[1]}x{resolution[2]}"
    if settings.get("Denoising strength") == "1":  # from noise alone
        del settings["Denoising strength"]
    if not prompt and not settings:
        raise ValueError("it has neither a prompt nor settings")
    return Parameters(prompt, negative, settings)


def _read_parameters(text: str) -> Parameters:
    """Read the text of A1111 and many others, or the JSON that Fooocus and SwarmUI write in its place."""
    if text.lstrip().startswith("{"):
        try:
            return _read_json(text)
        except ValueError:
            if '":' in text and (len(text) > MAX_TEXT_LETTERS or not parse_parameters(text).settings):
                raise  # it is not a prompt in braces
    return parse_parameters(text)


def _read_json(text: str) -> Parameters:
    values = _load(text)
    if isinstance(values.get("sui_image_params"), dict):
        values = values["sui_image_params"]
    if any(isinstance(node, dict) and "class_type" in node for node in values.values()):
        return _from_graph(values)
    return _from_values(values)


def _read_novelai(text: str) -> Parameters:
    values = _load(text)
    captions = [values.get(key) for key in ("v4_prompt", "v4_negative_prompt")]
    prompt, negative = (
        _text_of(caption["caption"]["base_caption"]) if isinstance(caption, dict) else ""
        for caption in captions
    )
    return _from_values(
        values, _text_of(values.get("prompt")) or prompt, _text_of(values.get("uc")) or negative
    )


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
    options = re.findall(r"(?<=\s)-([sSWHCA])\s?([\w.]{1,40})", text[found.end() : 2**16])
    values: dict[str, Any] = {names[letter]: value for letter, value in options}
    values |= {name: int(values[name]) for name in ("width", "height") if str(values.get(name)).isdecimal()}
    return _from_legacy(found[1].strip(), values)


def _read_comfyui(text: str) -> Parameters:
    return _from_graph(_load(text)) if text.lstrip().startswith("{") else Parameters(text.strip())


def _read_workflow(text: str) -> Parameters:
    """Read a graph as ComfyUI's editor keeps it: its values have no names, and get those in _WIDGETS."""
    workflow = _load(text)
    origins = {link[0]: [str(link[1]), 0] for link in workflow.get("links", []) if isinstance(link, list)}
    nodes = {}
    for node in workflow["nodes"]:
        kind, values = str(node.get("type")), node.get("widgets_values")
        values = values if isinstance(values, list) else []
        inputs: dict[str, Any] = dict(zip(_WIDGETS.get(kind, ("value",)), values, strict=False))
        slots = node.get("inputs") or []
        inputs |= {slot["name"]: origins[slot["link"]] for slot in slots if slot.get("link") in origins}
        nodes[str(node.get("id"))] = {"class_type": kind, "inputs": inputs}
    return _from_graph(nodes)


def _from_graph(nodes: Mapping[str, Any]) -> Parameters:
    """Read a graph of ComfyUI: its last sampler with prompts, and the nodes that this is linked to."""
    nodes = {
        str(key): node["inputs"] | {"": str(node.get("class_type"))}
        for key, node in nodes.items()
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    samplers = [inputs for inputs in nodes.values() if any(each <= inputs.keys() for each in _SAMPLERS)]
    if not samplers:
        raise ValueError("it has no sampler that is known here")
    # The first that begins with noise alone made the picture; others went over it.
    sampler = next((each for each in samplers if _begins(each)), samplers[0])
    guider = sampler.get("guider")
    if isinstance(guider, list) and guider:
        sampler = nodes.get(str(guider[0]), {}) | sampler
    values: dict[str, Any] = {}
    for inputs in _linked(nodes, sampler, without=("positive", "negative", "conditioning")):
        for key, value in inputs.items():
            if isinstance(value, list) and value and key in _LINKED:
                value = nodes.get(str(value[0]), {}).get("value")
            if isinstance(value, str | int | float) and key not in (*_POSITIVE, *_NEGATIVE):
                values.setdefault("model" if key in ("ckpt_name", "unet_name") else key, value)
    side = "positive" if "positive" in sampler else "conditioning"
    for inputs in _linked(nodes, {side: sampler.get(side)}):
        if isinstance(inputs.get("guidance"), int | float):  # of a distilled network, whose cfg is 1
            values["cfg_scale"] = inputs["guidance"]
    return _from_values(values, _linked_text(nodes, sampler, side), _linked_text(nodes, sampler, "negative"))


def _begins(sampler: Mapping[str, Any]) -> bool:
    return (
        sampler.get("denoise", 1) == 1
        and sampler.get("add_noise", "enable") in ("enable", True)
        and sampler.get("start_at_step", 0) == 0
    )


def _linked(
    nodes: Mapping[str, dict[str, Any]], inputs: dict[str, Any], without: tuple[str, ...] = ()
) -> Iterator[dict[str, Any]]:
    """Yield the inputs of a node, and of those linked to them, the nearest first and each once."""
    waiting, seen = [inputs], {id(inputs)}
    for each in waiting:
        yield each
        for key, link in each.items():
            node = nodes.get(str(link[0])) if isinstance(link, list) and link else None
            if node is not None and key not in without and id(node) not in seen and len(seen) < MAX_NODES:
                seen.add(id(node))
                waiting.append(node)


def _linked_text(nodes: Mapping[str, dict[str, Any]], sampler: dict[str, Any], side: str) -> str:
    """Return the text that an input of a sampler leads to; several are joined."""
    other = "positive" if side == "negative" else "negative"
    found: dict[str, None] = {}  # in order, each once
    for inputs in _linked(nodes, {side: sampler.get(side)}, without=(other, "model", "clip", "vae", "image")):
        if inputs.get("") == "ConditioningZeroOut":
            return ""
        for key in (*_TEXTS, side, f"text_{side}"):
            if text := _text_of(inputs.get(key)):
                found[text] = None
    return ", ".join(found)


# By the keyword of a PNG's text: the program that writes it, and its reader.
PROGRAMS: Mapping[str, tuple[str, Callable[[str], Parameters]]] = {
    CHUNK: ("A1111, Fooocus or SwarmUI", _read_parameters),
    "invokeai_metadata": ("InvokeAI", _read_invokeai),
    "sd-metadata": ("InvokeAI", _read_invokeai),
    "Dream": ("InvokeAI", _read_dream),
    "sui_image_params": ("SwarmUI", _read_json),
    "prompt": ("ComfyUI", _read_comfyui),
    "workflow": ("ComfyUI", _read_workflow),
    "Comment": ("NovelAI", _read_novelai),
    "Description": ("NovelAI", lambda text: Parameters(text.strip())),
    "invokeai_workflow": ("InvokeAI", _read_json),
    "invokeai_graph": ("InvokeAI", _read_json),
    "generation_data": ("TensorArt", _read_json),
}
