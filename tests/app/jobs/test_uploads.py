import io
import pickle
import struct
import time
import tracemalloc
import zlib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from app.jobs import png, uploads
from app.jobs.job import RequestError
from app.jobs.uploads import read_picture


def file_of(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")]
    + [("JPEG", mode) for mode in ("RGB", "L", "CMYK")]
    + [("WEBP", mode) for mode in ("RGB", "RGBA")],
)
def test_what_people_have_becomes_rgb(kind: str, mode: str) -> None:
    picture = read_picture(file_of(Image.new(mode, (32, 24)), kind))
    assert (picture.mode, picture.size) == ("RGB", (32, 24))


def test_pixels_stay_what_they_are() -> None:
    gradient = Image.merge(
        "RGB", [Image.linear_gradient("L"), Image.radial_gradient("L"), Image.new("L", (256, 256), 7)]
    )
    assert read_picture(file_of(gradient)).tobytes() == gradient.tobytes()


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    levels = Image.new("I;16", (8, 8), 0x8000)
    assert read_picture(file_of(levels)).getpixel((0, 0)) == (127, 127, 127)


def test_transparent_is_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert read_picture(file_of(clear)).getpixel((0, 0)) == (255, 255, 255)


def test_a_photo_is_turned_as_its_camera_was() -> None:
    photo = Image.new("RGB", (40, 20))
    exif = photo.getexif()
    exif[0x0112] = 6
    assert read_picture(file_of(photo, "JPEG", exif=exif)).size == (20, 40)


def test_the_texts_of_a_png_stay_and_nothing_else_does() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text(png.CHUNK, "a lake\nSteps: 4")
    picture = read_picture(file_of(Image.new("RGB", (8, 8)), pnginfo=text, dpi=(72, 72), icc_profile=b"x"))
    assert picture.info == {png.CHUNK: "a lake\nSteps: 4"}
    assert read_picture(file_of(Image.new("RGB", (8, 8)), "JPEG", comment="who and where")).info == {}


def test_the_name_of_the_format_is_the_contents() -> None:
    for wrong in (file_of(Image.new("RGB", (8, 8)), "GIF"), file_of(Image.new("RGB", (8, 8)), "TIFF")):
        with pytest.raises(RequestError, match="Choose a PNG, JPEG or WebP"):
            read_picture(wrong)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"not a picture", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (pickle.dumps({"a": 1}), "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "not a picture"),
        (bytes(uploads.MAX_BYTES + 1), "at most 20 MB"),
        (file_of(Image.new("RGB", (7, 80))), "7 × 80 pixels"),
        (file_of(Image.effect_noise((64, 64), 90))[:-600], "damaged"),
        (file_of(Image.effect_noise((64, 64), 90), "JPEG")[:-600], "damaged"),
    ],
)
def test_what_is_wrong_is_said_in_words(data: bytes, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        read_picture(data)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def bomb(width: int, height: int, *extra: bytes) -> bytes:
    """A small PNG that says it has so many pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(100_000)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(30_000, 30_000), (2**31 - 1, 2**31 - 1), (20_000, 8), (7000, 7000)])
def test_bombs_are_refused_before_they_take_memory(size: tuple[int, int]) -> None:
    data = bomb(*size)
    tracemalloc.start()
    with pytest.raises(RequestError, match="too large"):
        read_picture(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_bombs_in_the_texts_are_refused() -> None:
    text = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(100_000_000), 1))
    with pytest.raises(RequestError):
        read_picture(bomb(64, 64, text))


def test_a_jpeg_of_many_scans_is_refused_at_once() -> None:
    data = file_of(Image.new("RGB", (6000, 6000)), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    many = data[:scan] + data[scan:-2] * 2000 + data[-2:]
    began = time.perf_counter()
    with pytest.raises(RequestError, match="too long to read"):
        read_picture(many)
    assert time.perf_counter() - began < 2


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(uploads.FORMATS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=6)), max_size=6),
)
def test_damage_is_a_picture_or_words(kind: str, changes: list[tuple[float, bytes]]) -> None:
    data = bytearray(file_of(Image.effect_noise((40, 40), 60).convert("RGB"), kind))
    for place, other in changes:
        at = int(place * len(data))
        data[at : at + len(other)] = other
    with suppress(RequestError):
        assert read_picture(bytes(data)).mode == "RGB"
