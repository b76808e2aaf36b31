"""Write PNGs with `parameters`, the text that image generation tools exchange, and parse that text.

It has the prompt, a line with the negative prompt where there is one, and one line of `Key: value` pairs.
"""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image, PngImagePlugin

CHUNK = "parameters"
# Longer texts are refused before anything looks into them.
MAX_TEXT_LETTERS = 2**16
# Of what is not used, so many names are kept.
MAX_UNUSED = 50
# Settings that any tool writes; a line is taken for settings by them.
_USUAL = ("Steps", "Sampler", "CFG scale", "Seed", "Size", "Model", "Model hash")
_SPELLED = {name.lower(): name for name in _USUAL} | {"guidance scale": "CFG scale"}
# Our own, beside the usual ones: prompts that other lines of the text could be mistaken for.
_EXACT = {"prompt": "Exact prompt", "negative_prompt": "Exact negative prompt"}
_NEGATIVE = re.compile(r"[ \t]*negative prompt[ \t]*:", re.IGNORECASE)
# Settings behind a prompt, in the same line.
_INLINE = re.compile(
    r"(?<!\w)Steps: ?\d+, ?(?=(?:Sampler|Schedule type|CFG scale|Seed|Size): )", re.IGNORECASE
)
# A JSON string, or an object or list without others in it, up to the comma; read without backtracking.
_ENCLOSED = re.compile(r'\s*+("(?:[^"\\]++|\\.)*+"|\{[^{}]*+\}|\[[^\[\]]*+\])\s*+(?:,|\Z)', re.DOTALL)


@dataclass(frozen=True)
class Parameters:
    """How a picture was made: both prompts, and settings such as `Steps` or `Seed` as text.

    Attributes:
        unused: names of what its file says beside these, for a message.
    """

    prompt: str
    negative_prompt: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


def write(picture: Image.Image, parameters: Parameters) -> bytes:
    """Return the picture as a PNG with its parameters as metadata."""
    info, text = PngImagePlugin.PngInfo(), format_parameters(parameters)
    add = info.add_text if text.isascii() else info.add_itxt  # other letters are bytes of UTF-8 for sure
    add(CHUNK, text)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def format_parameters(parameters: Parameters) -> str:
    """Write the `parameters` text; `parse_parameters` reads the same from it, whatever the prompts are."""
    text = _format(parameters, parameters.settings)
    if parse_parameters(text) == parameters:
        return text
    exact = {name: getattr(parameters, attribute) for attribute, name in _EXACT.items()}
    return _format(parameters, {**parameters.settings, **exact})


def parse_parameters(text: str) -> Parameters:
    """Parse the text of `format_parameters`, or another tool's in the same format, in linear time.

    Raises:
        ValueError: more than MAX_TEXT_LETTERS; the message is shown to the user.
    """
    if len(text) > MAX_TEXT_LETTERS:
        raise ValueError(f"Its text is too long to be read: {len(text):,} letters.")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").strip("\0 \t\n\ufeff\u200b").split("\n")
    settings: dict[str, str] = {}
    unused: list[str] = []
    for at in range(len(lines) - 1, -1, -1):  # templates may follow the settings
        before, settings = _split_line(lines[at])
        if settings:
            foreign = not settings.keys() & set(_EXACT.values())
            unused = _add_lines_after(settings, lines[at + 1 :]) if foreign else []
            while foreign and not before and at and lines[at - 1].rstrip().endswith(","):
                more = _split_line(lines[at - 1])[1]
                if not more:
                    break
                settings, at = more | settings, at - 1
            lines = [*lines[:at], before]
            break
    exact = {attribute: settings.pop(name) for attribute, name in _EXACT.items() if name in settings}
    at = next((i for i, line in enumerate(lines) if _NEGATIVE.match(line)), len(lines))
    prompts = {
        "prompt": "\n".join(lines[:at]).strip(),
        "negative_prompt": _NEGATIVE.sub("", "\n".join(lines[at:]), count=1).strip(),
    }
    return Parameters(settings=settings, unused=tuple(unused[:MAX_UNUSED]), **prompts | exact)


def _add_lines_after(settings: dict[str, str], lines: list[str]) -> list[str]:
    """Add the settings that go on in these lines; return names for the other lines."""
    others = []
    for line in lines:
        pairs = _pairs(line)
        if next(iter(pairs), "") in _USUAL:
            settings |= {name: value for name, value in pairs.items() if name not in settings}
        elif text := line.strip():
            others.append(f"the text “{text if len(text) <= 40 else f'{text[:39]}…'}”")
    return others


def _format(parameters: Parameters, settings: Mapping[str, str]) -> str:
    lines = [parameters.prompt]
    if parameters.negative_prompt:
        lines.append(f"Negative prompt: {parameters.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in settings.items()))
    return "\n".join(lines)


def _split_line(line: str) -> tuple[str, dict[str, str]]:
    """Return what stands before a line's settings, and these; no settings if it is prose."""
    pairs = _pairs(line)
    usual = [name for name in pairs if name in _USUAL]
    begins = next(iter(pairs), "") in usual
    counts = pairs.get("Steps", "").isdecimal() or len(usual) >= 3 if begins else "Exact prompt" in pairs
    if counts:
        return "", pairs
    inline = _INLINE.search(line)
    return (line[: inline.start()], _pairs(line[inline.start() :])) if inline else (line, {})


def _pairs(line: str) -> dict[str, str]:
    """Return the pairs of a line; of equal keys the first. It moves forward only."""
    pairs: dict[str, str] = {}
    at = 0
    while (colon := line.find(":", at)) >= 0:
        key = line[at:colon].rpartition(",")[2].strip()
        key = _SPELLED.get(key.lower(), key)
        enclosed = _ENCLOSED.match(line, colon + 1)
        comma = line.find(",", colon)
        end = enclosed.end() if enclosed else comma + 1 or len(line)
        value = enclosed[1] if enclosed else line[colon + 1 : end].removesuffix(",")
        pairs.setdefault(key, _unquote(value))
        at = end
    return pairs


def _quote(value: str) -> str:
    plain = value.isprintable() and value == value.strip() and not re.search(r'[,:"{}\[\]]', value)
    return value if plain else json.dumps(value, ensure_ascii=False)


def _unquote(value: str) -> str:
    value = value.strip()
    if value.startswith('"') and value.endswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value
