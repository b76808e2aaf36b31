"""Split picture files into pixels and what else they carry, without decoding either.

What is left for Pillow to open has the pixels alone, so no damaged or huge text or profile, and no second
picture behind the first, keeps them from being read.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from PIL import Image

# Larger texts and colour profiles are ignored, and so are further ones of a file.
MAX_CARRIED_BYTES = 4 * 2**20
MAX_TEXTS = 64
# A file of more chunks or segments is built to take time. A photo of 40 megapixels has a few thousand.
MAX_PARTS = 100_000
# A progressive JPEG has about ten scans; each costs as much as a whole picture, and may take but a few bytes.
MAX_SCANS = 64

_PNG, _JPEG, _EXIF, _ICC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"Exif\0\0", b"ICC_PROFILE\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # between these are a scan's bytes
_SCAN, _END, _COMMENT = 0xDA, 0xD9, 0xFE
_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])")


@dataclass
class Parts:
    """A file's parts.

    Attributes:
        pixels: the file with nothing but its first picture.
        texts: a PNG's texts by keyword, the first of each; None if it is damaged or too large. Latin-1 is
            decoded as UTF-8 where it can be: several programs write that against the standard.
        exif, icc, xmp, comment: as bytes; empty where there is none. The comment is a JPEG's own.
    """

    pixels: bytes
    texts: dict[str, str | None] = field(default_factory=dict)
    exif: bytes = b""
    icc: bytes = b""
    xmp: bytes = b""
    comment: bytes = b""

    @property
    def orientation(self) -> int:
        """How the camera was held, 1 to 8 as in EXIF; 1 is upright."""
        held = [byte for byte in read_exif(self.exif, 0x0112).get(0x0112, b"") if byte]
        found = _ORIENTATION.search(self.xmp)
        return held[0] if held else int(found[1]) if found else 1


def split(data: bytes) -> Parts:
    """Split a PNG, JPEG, WebP or AVIF; any other file is all pixels.

    Raises:
        ValueError: it would take too long to read; the message is shown to the user.
    """
    if data.startswith(_PNG):
        return _split_png(data)
    if data.startswith(_JPEG):
        return _split_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _split_webp(data)
    return _split_avif(data) if data[4:12] in (b"ftypavif", b"ftypavis", b"ftypmif1") else Parts(data)


def read_exif(exif: bytes, *tags: int) -> dict[int, bytes]:
    """Return the values of these tags of EXIF data as bytes: of the main and the Exif directory."""
    exif = exif.removeprefix(_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    found: dict[int, bytes] = {}
    if order is None or len(exif) < 8:
        return found
    directories = [struct.unpack_from(f"{order}I", exif, 4)[0]]
    for at in directories:
        (count,) = struct.unpack_from(f"{order}H", exif, at) if at + 2 <= len(exif) else (0,)
        for entry in range(at + 2, min(at + 2 + 12 * count, len(exif) - 11), 12):
            tag, kind, number, value = struct.unpack_from(f"{order}HHII", exif, entry)
            if tag == 0x8769 and len(directories) == 1:
                directories.append(value)
            size = number * {3: 2, 4: 4}.get(kind, 1)
            begin = entry + 8 if size <= 4 else value
            if tag in tags and tag not in found:
                found[tag] = exif[begin : begin + size]
    return found


def _split_png(data: bytes) -> Parts:
    parts, kept = Parts(b""), [_PNG]
    at = len(_PNG)
    for _ in range(MAX_PARTS):
        size, kind = struct.unpack_from(">I4s", data, at) if at + 12 <= len(data) else (0, b"")
        end = at + 12 + size
        if not kind or end > len(data):  # cut off: Pillow says what is missing
            kept.append(data[at:])
            break
        body = data[at + 8 : end - 4]
        if kind[0] < ord("a") or kind == b"tRNS":
            kept.append(data[at:end])
        elif kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf"):
            whole = zlib.crc32(kind + body) == int.from_bytes(data[end - 4 : end])
            _carry(parts, kind, body if whole and size <= MAX_CARRIED_BYTES else None, body[:80])
        if kind == b"IEND":
            break
        at = end
    else:
        raise ValueError("This PNG has too many parts and would take too long to read. Save it again.")
    parts.pixels = b"".join(kept)
    return parts


def _carry(parts: Parts, kind: bytes, body: bytes | None, head: bytes) -> None:
    """Add what a chunk carries; `body` is None if it is damaged or too large."""
    if kind == b"eXIf":
        parts.exif = parts.exif or body or b""
        return
    name, _, _ = head.partition(b"\0")
    rest = None if body is None else body[len(name) + 1 :]
    if kind == b"iCCP":
        parts.icc = parts.icc or _inflate(rest[1:] if rest else b"", MAX_CARRIED_BYTES) or b""
        return
    key = name.decode("latin-1")
    if parts.texts.get(key) is not None or len(parts.texts) >= MAX_TEXTS:
        return
    left = MAX_CARRIED_BYTES - sum(len(text or "") for text in parts.texts.values())
    if rest is not None and kind == b"zTXt":
        rest = _inflate(rest[1:], left)
    elif rest is not None and kind == b"iTXt":
        packed, rest = rest[:1] == b"\1", [*rest[2:].split(b"\0", 2), b"", b""][2]
        rest = _inflate(rest, left) if packed else rest
    parts.texts[key] = None if rest is None else decode_text(rest)
    if key == "XML:com.adobe.xmp":
        parts.xmp = rest or b""
    elif key.startswith("Raw profile type ") and key[17:] in ("exif", "APP1") and not parts.exif:
        with suppress(ValueError):  # hexadecimal digits behind a name and a length
            parts.exif = bytes.fromhex((parts.texts[key] or "").strip().split("\n", 2)[-1])


def decode_text(data: bytes) -> str:
    """Decode UTF-8 or else Latin-1."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _inflate(data: bytes, limit: int) -> bytes | None:
    """Decompress; None if the data is damaged or too large."""
    try:
        inflater = zlib.decompressobj()
        inflated = inflater.decompress(data, max(limit, 1))
    except zlib.error:
        return None
    return inflated if inflater.eof else None


def _split_jpeg(data: bytes) -> Parts:
    """Keep what belongs to the first picture: phones put videos and other pictures behind it."""
    parts, kept, profile = Parts(b""), [_JPEG], {}
    at, scans = len(_JPEG), 0
    for _ in range(MAX_PARTS):
        marker = _MARKER.search(data, at)
        if not marker or marker.end() + 2 > len(data) or data[marker.end() - 1] == _END:
            kept.append(data[at : marker.end() if marker else None])
            break
        kept.append(data[at : marker.start()])
        code = data[marker.end() - 1]
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
        body = data[marker.end() + 2 : at]
        scans += code == _SCAN
        if scans > MAX_SCANS:
            raise ValueError("This JPEG has too many scans and would take too long to read. Save it again.")
        if code == 0xE1 and body.startswith(_EXIF):
            parts.exif = parts.exif or body
        elif code == 0xE1 and body.startswith(_XMP):
            parts.xmp = parts.xmp or body[len(_XMP) :]
        elif code == _COMMENT:
            parts.comment = parts.comment or body
        elif code == 0xE2 and body.startswith(_ICC):
            profile[body[len(_ICC) : len(_ICC) + 1]] = body[len(_ICC) + 2 :]
        if code in (0xE0, 0xEE) or not (0xE0 <= code <= 0xEF or code == _COMMENT):
            kept.append(data[marker.start() : at])
    else:
        raise ValueError("This JPEG has too many parts and would take too long to read. Save it again.")
    parts.icc = b"".join(profile[place] for place in sorted(profile))
    parts.pixels = b"".join(kept)
    return parts


def _split_webp(data: bytes) -> Parts:
    parts = Parts(data)
    for kind, body in _riff_chunks(data):
        if kind == b"EXIF":
            parts.exif = parts.exif or body
        elif kind == b"ICCP":
            parts.icc = parts.icc or body
        elif kind == b"XMP ":
            parts.xmp = parts.xmp or body
    return parts


def _split_avif(data: bytes) -> Parts:
    """Have Pillow read what an AVIF carries; it does so without decoding the picture."""
    parts = Parts(data)
    with suppress(Exception), Image.open(io.BytesIO(data), formats=["AVIF"]) as picture:
        for name, key in (("exif", "exif"), ("xmp", "xmp"), ("icc", "icc_profile")):
            setattr(parts, name, picture.info.get(key) or b"")
    return parts  # whatever is wrong with it, is told when its pixels are read


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            return
        kind, size = struct.unpack_from("<4sI", data, at)
        yield kind, data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
