"""Find what this or another program wrote into a picture about how it was made, wherever a file has it."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace

from app.jobs import container
from app.jobs.foreign import PROGRAMS, squash
from app.jobs.job import RequestError
from app.jobs.png import CHUNK, MAX_UNUSED, Parameters
from app.jobs.xmp import read_xmp

# Tags of EXIF that have texts: description, make, model, comment, and Windows' own comment.
_DESCRIPTION, _MAKE, _MODEL, _COMMENT, _XP_COMMENT = 0x010E, 0x010F, 0x0110, 0x9286, 0x9C9C
# Properties of XMP that programs write into.
_XMP_NAMES = ("UserComment", "parameters", "description", "comment", "prompt")
# Cameras have comments, too; these tell of a picture that a program made.
_GENERATED = re.compile(
    r'\bSteps: |Negative prompt:|\A\s*\{[^\0]*"(positive_?prompt|negative_?prompt|prompt|seed|c|uc|nodes'
    r'|sui_image_params|class_type)"\s*:',
    re.IGNORECASE,
)
# ComfyUI's have a name before them.
_NAMED = re.compile(r"\s*(prompt|workflow)\s*:\s*(?=\{)", re.IGNORECASE)
# Keywords of a PNG that say nothing about how a picture was made, and those of two programs' texts.
_ORDINARY = {"Title", "Author", "Copyright", "Creation Time", "Software", "Disclaimer", "Warning", "Source"}
_ORDINARY |= {"Generation time", "Make", "Model", "Date", "dpi", "fooocus_scheme"}
_OTHERS_TOO = ("Comment", "Description")


class Unreadable(RequestError):
    """A picture that carries something of a program that can't be read; the message is shown to the user."""


def read(data: bytes) -> Parameters:
    """Read how the picture in a file was made; the first program of `PROGRAMS` whose text can be read counts.

    Raises:
        Unreadable: it carries something that can't be read.
        ValueError: it carries nothing, or is no file of the kind.
    """
    texts = _texts_of(container.split(data))
    is_novelai = texts.get("Software") == "NovelAI" or (texts.get("Comment") or "").startswith("{")
    problems = []
    for key, (program, reader) in PROGRAMS.items():
        if key not in texts or (key in _OTHERS_TOO and not is_novelai):
            continue
        text = texts[key]
        try:
            if not text:
                raise ValueError("it is damaged or too large" if text is None else "it is empty")
            found = reader(text)
            others = [name for name in texts if name not in _ORDINARY and _program(name) != program]
            unused = [*found.unused, *(f"the text “{name[:40]}”" for name in others)]
            return replace(found, unused=tuple(unused[:MAX_UNUSED]))
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            reason = str(error) if type(error) is ValueError else "it is written in an unknown way"
            problems.append(f"It carries what {program} writes (“{key}”), but that can't be read: {reason}.")
    if problems:
        raise Unreadable(problems[0])
    if texts:
        shown = ", ".join(f"“{name[:40]}”: {_excerpt(text)}" for name, text in list(texts.items())[:3])
        more = f", and {len(texts) - 3} more" if len(texts) > 3 else ""
        raise Unreadable(f"It carries {shown}{more}, but nothing that tells here how the picture was made.")
    raise ValueError("This file does not say how the picture was made.")


def _excerpt(text: str | None) -> str:
    """Return the beginning of a text in quotes, or why there is none."""
    if text is None:
        return "damaged or too large"
    line = " ".join(text[:400].split())
    return f"“{line if len(line) <= 40 else f'{line[:39]}…'}”"


def _program(keyword: str) -> str:
    return PROGRAMS[keyword][0] if keyword in PROGRAMS else ""


def _texts_of(parts: container.Parts) -> dict[str, str | None]:
    """Return the texts of a PNG by keyword, and those elsewhere by the keyword that a PNG would have."""
    texts = dict(parts.texts)
    xmp: dict[str, str] = {}
    if parts.xmp or "XML:com.adobe.xmp" in texts:
        texts.pop("XML:com.adobe.xmp", None)
        try:
            xmp = read_xmp(parts.xmp)
        except ValueError:
            texts["XMP"] = None
        if xmp.get("CreatorTool", "").startswith("Draw Things") and "description" in xmp:
            xmp["description"] = xmp["description"].replace("\n-", "\nNegative prompt: ", 1)
    for name in ("Parameters", "usercomment", "UserComment"):
        if name in texts:
            texts.setdefault(CHUNK, texts.pop(name))
    for text in (*_comments(parts), *(xmp[name] for name in _XMP_NAMES if name in xmp)):
        if named := _NAMED.match(text):
            texts.setdefault(named[1].lower(), text[named.end() :])
        elif _GENERATED.search(text):
            texts.setdefault(CHUNK, text)
    if "description" in xmp and not _GENERATED.search(xmp["description"]):
        texts.setdefault("XMP description", xmp["description"])
    _join_values(texts)
    return texts


def _comments(parts: container.Parts) -> Iterator[str]:
    """Yield the texts of EXIF and of a JPEG."""
    exif = container.read_exif(parts.exif, _COMMENT, _DESCRIPTION, _XP_COMMENT, _MAKE, _MODEL)
    yield _decode_comment(exif.get(_COMMENT, b""))
    yield exif.get(_XP_COMMENT, b"").decode("utf-16-le", "replace").strip("\0 ")
    for data in (*(exif.get(tag, b"") for tag in (_DESCRIPTION, _MODEL, _MAKE)), parts.comment):
        yield container.decode_text(data).strip("\0 ")


def _join_values(texts: dict[str, str | None]) -> None:
    """Join the texts of Easy Diffusion, which writes each value as one of its own, to JSON."""
    values = {name: text for name, text in texts.items() if text and name not in _ORDINARY}
    names = {squash(name): name for name in values}
    if CHUNK in texts or not {"prompt", "seed"} <= names.keys() or values[names["prompt"]][0] in "{[":
        return
    for name in values:
        del texts[name]
    texts[CHUNK] = json.dumps(values)


def _decode_comment(data: bytes) -> str:
    """Decode EXIF's UserComment, whose first eight bytes name its encoding."""
    code, text = data[:8], data[8:]
    if code.upper() == b"UNICODE\0" or data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = text if code.upper() == b"UNICODE\0" else data
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
