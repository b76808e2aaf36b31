"""Read and write PNG metadata in the `parameters` text that other tools use.

The text is the one that image generation tools exchange: the prompt, a line with the negative
prompt where there is one, and one line of `Key: value` pairs.
"""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image, PngImagePlugin, UnidentifiedImageError

CHUNK = "parameters"
_NEGATIVE = "Negative prompt: "
_PAIR = re.compile(r'\s*([\w][\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


@dataclass(frozen=True)
class Parameters:
    """How a picture was made: both prompts, and settings such as `Steps` or `Seed` as text."""

    prompt: str
    negative_prompt: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)


def write(picture: Image.Image, parameters: Parameters) -> bytes:
    """Return the picture as a PNG with its parameters as metadata."""
    text = PngImagePlugin.PngInfo()
    text.add_text(CHUNK, format_parameters(parameters))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def read(data: bytes) -> Parameters:
    """Read the parameters of a PNG.

    Raises:
        ValueError: not a PNG, or a PNG without parameters; the message is shown to the user.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            text = picture.info.get(CHUNK)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError("This file is not a PNG picture.") from error
    if not isinstance(text, str):
        raise ValueError("This PNG has no 'parameters' text, so it does not tell how it was made.")
    return parse_parameters(text)


def format_parameters(parameters: Parameters) -> str:
    """Write the `parameters` text. Values that would break the line are quoted as JSON strings."""
    lines = [parameters.prompt]
    if parameters.negative_prompt:
        lines.append(_NEGATIVE + parameters.negative_prompt)
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in parameters.settings.items()))
    return "\n".join(lines)


def parse_parameters(text: str) -> Parameters:
    """Parse the text of `format_parameters`, or another tool's in the same format."""
    *lines, last = text.strip("\n").split("\n")
    settings = {key.strip(): _unquote(value) for key, value in _PAIR.findall(last)}
    if "Steps" not in settings:  # other tools always write it; without it the line is prose
        lines, settings = [*lines, last], {}
    negative_at = next((i for i, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    return Parameters(
        prompt="\n".join(lines[:negative_at]),
        negative_prompt="\n".join(lines[negative_at:]).removeprefix(_NEGATIVE),
        settings=settings,
    )


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def _unquote(value: str) -> str:
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] == '"':
        try:
            return str(json.loads(value))
        except json.JSONDecodeError:
            return value
    return value
