"""Read the graphs of nodes that ComfyUI writes: the values at a sampler, and the texts that lead to it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Nodes of a graph that are looked at between a sampler and its texts.
MAX_NODES = 1000
Node = dict[str, Any]
# Where a node's inputs have its class; no input is called so.
CLASS = "\0class"
# Nodes between an input and the one that has its value.
MAX_HOPS = 20
# Inputs by which samplers are known, inputs whose value may be another node's, and those of texts.
_SAMPLERS = (
    {"steps", "positive"},
    {"steps", "sampler_name", "cfg"},
    {"sigmas", "positive"},
    {"sigmas", "guider"},
)
_LINKED = ("steps", "seed", "noise_seed", "cfg", "width", "height", "denoise", "sampler_name", "guidance")
_VALUES = ("value", "int", "float", "number", "seed", "noise_seed", "Number", "a")
_TEXTS = ("text", "text_g", "text_l", "t5xxl", "clip_l", "string", "value", "prompt", "populated_text",
          "string_a", "string_b", "text_a", "text_b", "text1", "text2")  # fmt: skip
# The names of what the editor keeps without them, by class; "" is a control that is no input.
_SAMPLER = ("steps", "cfg", "sampler_name", "scheduler")
_WIDGETS = {
    "KSampler": ("seed", "", *_SAMPLER, "denoise"),
    "KSamplerAdvanced": ("add_noise", "noise_seed", "", *_SAMPLER, "start_at_step"),
    "KSamplerSelect": ("sampler_name",),
    "SamplerCustom": ("add_noise", "noise_seed", "", "cfg"),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "RandomNoise": ("noise_seed",),
    "CFGGuider": ("cfg",),
    "FluxGuidance": ("guidance",),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeFlux": ("clip_l", "t5xxl", "guidance"),
    "CLIPTextEncodeSDXL": (*("",) * 6, "text_g", "text_l"),
    "EmptyLatentImage": ("width", "height"),
    "EmptySD3LatentImage": ("width", "height"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name",),
}  # fmt: skip
_MUTED, _BYPASSED = 2, 4  # modes of nodes
_MODELS = ("ckpt_name", "unet_name", "model_name")
# Classes that change no picture, or whose values are read. Others are named.
_READ = re.compile(
    r"KSampler|SamplerCustom|SamplerCustomAdvanced|KSamplerAdvanced|KSamplerSelect|.*Scheduler|RandomNoise"
    r"|.*Guider|FluxGuidance|CLIPTextEncode.*|Empty.*Latent.*|Checkpoint ?Loader.*|UNETLoader.*"
    r"|.*(VAE|CLIP)Loader.*|VAEDecode.*|Save ?Image.*|Image ?Save.*|PreviewImage|Primitive.*|Reroute.*"
    r"|Note|MarkdownNote|.*(String|Text|Int|Float|Number|Seed).*|Conditioning(Combine|Concat|ZeroOut)"
)


def read_workflow(workflow: Mapping[str, Any]) -> tuple[dict[str, Any], str, str, tuple[str, ...]]:
    """Read a graph as the editor keeps it: its values have no names, and get those in _WIDGETS.

    Nodes that are switched off are left out, or pass on what they are linked to.
    """
    origins = dict(filter(None, map(_origin, workflow.get("links") or [])))
    nodes = {}
    for node in workflow["nodes"]:
        kind, values, mode = str(node.get("type")), node.get("widgets_values"), node.get("mode")
        if mode == _BYPASSED:
            kind, values = "Reroute", None
        inputs: Node = dict(values) if isinstance(values, dict) else {}
        if isinstance(values, list):
            inputs = dict(zip(_WIDGETS.get(kind, ("value",)), values, strict=False))
        slots = node.get("inputs") or []
        inputs |= {
            slot["name"] or "input": origins[slot["link"]] for slot in slots if slot.get("link") in origins
        }
        if mode != _MUTED:
            nodes[str(node.get("id"))] = {"class_type": kind, "inputs": inputs}
    return read_graph(nodes)


def _origin(link: Any) -> tuple[Any, list[Any]] | None:
    """Return a link's id and the output that it comes from."""
    if isinstance(link, list) and len(link) > 2:
        return link[0], [str(link[1]), link[2]]
    if isinstance(link, dict) and "origin_id" in link:
        return link.get("id"), [str(link["origin_id"]), link.get("origin_slot")]
    return None


def read_graph(graph: Mapping[str, Any]) -> tuple[dict[str, Any], str, str, tuple[str, ...]]:
    """Read the first sampler that begins with noise alone, and the nodes that it is linked to.

    Returns its values, its positive and negative text, and the classes of nodes that are not read.
    Raises ValueError if no sampler is known here.
    """
    nodes = {
        str(key): node["inputs"] | {CLASS: str(node.get("class_type"))[:80]}
        for key, node in graph.items()
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    samplers = [inputs for inputs in nodes.values() if any(each <= inputs.keys() for each in _SAMPLERS)]
    if not samplers:
        raise ValueError("it has no sampler that is known here")
    sampler = next((each for each in samplers if _begins(each)), samplers[0])
    unused = dict.fromkeys(each[CLASS] for each in nodes.values() if not _READ.fullmatch(each[CLASS]))
    others = len(samplers) - 1
    guider = sampler.get("guider")
    if isinstance(guider, list) and guider:
        sampler = nodes.get(str(guider[0]), {}) | sampler
    values: dict[str, Any] = {}
    for inputs in _linked(nodes, sampler, without=("positive", "negative", "conditioning")):
        for key, value in inputs.items():
            if isinstance(value, list) and value and key in _LINKED:
                value = _value(nodes, value, key)
            if isinstance(value, str | int | float) and isinstance(key, str):
                values.setdefault("model" if key in _MODELS else key, value)
    side = "positive" if "positive" in sampler else "conditioning"
    for inputs in _linked(nodes, {side: sampler.get(side)}):
        guidance = inputs.get("guidance")
        guidance = (
            _value(nodes, guidance, "guidance") if isinstance(guidance, list) and guidance else guidance
        )
        if isinstance(guidance, int | float):  # of a distilled network, whose cfg is 1
            values["cfg"] = guidance
    names = [f"the node {kind}" for kind in unused]
    if others:
        names.append(f"{others} more sampler{'s' if others > 1 else ''}")
    positive, negative = (_linked_text(nodes, sampler, each) for each in (side, "negative"))
    return values, positive, negative, tuple(names)


def _begins(sampler: Node) -> bool:
    return (
        sampler.get("denoise", 1) == 1
        and sampler.get("add_noise", "enable") in ("enable", True)
        and sampler.get("start_at_step", 0) == 0
    )


def _value(nodes: Mapping[str, Node], link: Any, key: str) -> Any:
    """Follow a link to a number or text; None if there is none, or nodes compute it."""
    for _ in range(MAX_HOPS):
        inputs = nodes.get(str(link[0]), {})
        for name in (key, *_VALUES):
            if isinstance(inputs.get(name), str | int | float):
                return inputs[name]
        links = [value for value in inputs.values() if isinstance(value, list) and value]
        if len(links) != 1:
            break
        link = links[0]
    return None


def _linked(nodes: Mapping[str, Node], inputs: Node, without: tuple[str, ...] = ()) -> Iterator[Node]:
    """Yield the inputs of a node, and of those linked to them, the nearest first and each once."""
    waiting, seen = [inputs], {id(inputs)}
    for each in waiting:
        yield each
        for key, link in each.items():
            node = nodes.get(str(link[0])) if isinstance(link, list) and link else None
            if node is not None and key not in without and id(node) not in seen and len(seen) < MAX_NODES:
                seen.add(id(node))
                waiting.append(node)


def _linked_text(nodes: Mapping[str, Node], sampler: Node, side: str) -> str:
    """Return the text that an input of a sampler leads to; several are joined."""
    other = "positive" if side == "negative" else "negative"
    found: dict[str, None] = {}  # in order, each once
    for inputs in _linked(nodes, {side: sampler.get(side)}, without=(other, "model", "clip", "vae", "image")):
        if inputs.get(CLASS) == "ConditioningZeroOut":
            return ""
        for key in (*_TEXTS, side, f"text_{side}"):
            text = inputs.get(key)
            if isinstance(text, str) and text.strip():
                found[text.strip()] = None
    return ", ".join(found)
