import io
import pickle
import struct
import time
import tracemalloc
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, features

from app.jobs import metadata, png, uploads
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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "PNG, XMP"])
def test_it_is_turned_as_pillow_turns_it(kind: str, orientation: int) -> None:
    photo = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) * 5).resize((64, 48))
    exif = Image.Exif()
    exif[0x0112] = orientation
    if "XMP" in kind:
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{orientation}"/>')
        data = file_of(photo, pnginfo=info)
    else:
        data = file_of(photo, kind, exif=exif)
    with Image.open(io.BytesIO(data)) as picture:
        assert read_picture(data).tobytes() == ImageOps.exif_transpose(picture).convert("RGB").tobytes()


def test_no_metadata_stays() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text(png.CHUNK, "a lake\nSteps: 4")
    picture = read_picture(file_of(Image.new("RGB", (8, 8)), pnginfo=text, dpi=(72, 72), icc_profile=b"x"))
    assert picture.info == {}
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


def grey_png(bits: int, row: bytes, level: int | None) -> bytes:
    """Four rows of grey levels, one of which is transparent."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8 * len(row) // bits, 8, bits, 0, 0, 0, 0))
    clear = b"" if level is None else chunk(b"tRNS", struct.pack(">H", level))
    body = chunk(b"IDAT", zlib.compress((b"\0" + row) * 8))
    return b"\x89PNG\r\n\x1a\n" + head + clear + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("clear", [None, 0, 1, 3, 15])
def test_one_level_of_grey_is_transparent_and_no_other(bits: int, clear: int | None) -> None:
    count, most = min(2**bits, 16), 2**bits - 1
    levels = [most * step // (count - 1) for step in range(count)] * (16 // count)
    level = None if clear is None or clear >= count else levels[clear]
    packed = sum(value << bits * (15 - place) for place, value in enumerate(levels)).to_bytes(2 * bits)
    row = np.asarray(read_picture(grey_png(bits, packed, level)))[0, :, 0].tolist()
    assert row == [255 if each == level else each * 255 // most for each in levels]


def profile_with_red_and_green_exchanged() -> bytes:
    icc = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for at in range(132, 132 + 12 * struct.unpack(">I", icc[128:132])[0], 12):
        icc[at : at + 4] = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(bytes(icc[at : at + 4]), icc[at : at + 4])
    return bytes(icc)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_colours_are_those_that_a_viewer_shows(kind: str) -> None:
    icc, red = profile_with_red_and_green_exchanged(), Image.new("RGB", (32, 32), (200, 40, 40))
    pixel = np.asarray(read_picture(file_of(red, kind, icc_profile=icc)), int)[5, 5]
    assert np.abs(pixel - (40, 200, 40)).max() <= 4  # JPEG and WebP lose a little
    clear = Image.new("RGBA", (32, 32), (200, 40, 40, 0))
    if kind != "JPEG":
        assert read_picture(file_of(clear, kind, icc_profile=icc)).getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("icc", [b"x", bytes(200), profile_with_red_and_green_exchanged()[:300]])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_a_broken_profile_or_one_of_another_kind_is_ignored(icc: bytes, mode: str) -> None:
    picture = Image.effect_noise((16, 16), 60).convert(mode)
    assert read_picture(file_of(picture, icc_profile=icc)).tobytes() == picture.convert("RGB").tobytes()
    grey = Image.effect_noise((16, 16), 60)
    data = file_of(grey, icc_profile=profile_with_red_and_green_exchanged())
    assert read_picture(data).tobytes() == grey.convert("RGB").tobytes()


def test_the_profile_of_the_target_changes_nothing() -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = Image.merge("RGB", [Image.effect_noise((64, 64), 90) for _ in range(3)])
    changed = np.asarray(read_picture(file_of(noise, icc_profile=icc)), int) - np.asarray(noise, int)
    assert np.abs(changed).max() <= 1


def test_bombs_and_damage_in_the_texts_leave_the_pixels_alone() -> None:
    plain, noise = read_picture(bomb(64, 64)).tobytes(), bytes(range(256)) * 20_000
    for kind, body in (
        (b"zTXt", b"parameters\0\0" + zlib.compress(bytes(100_000_000), 1)),
        (b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(noise)),
        (b"tEXt", b"workflow\0" + noise),
        (b"iCCP", b"large\0\0" + zlib.compress(noise)),
        (b"zTXt", b"no zero byte"),
        (b"eXIf", noise),
    ):
        whole = chunk(kind, body)
        for added in (whole, whole[:-1] + bytes([whole[-1] ^ 1])):
            assert read_picture(bomb(64, 64, added)).tobytes() == plain


def photo_with(behind: bytes, before: bytes = b"") -> tuple[bytes, bytes]:
    photo = file_of(Image.effect_noise((256, 192), 60).convert("RGB"), "JPEG", quality=92)
    return photo, photo[:2] + before + photo[2:] + behind


def test_what_stands_behind_a_photo_is_ignored() -> None:
    second = file_of(Image.new("RGB", (64, 48)), "JPEG", progressive=True)
    index = b"\xff\xe2\0\x10MPF\0MM\0*\0\0\0\x08\0\1"
    video = b"\0\0\0\x18ftypmp42" + np.random.default_rng(0).bytes(8 * 2**20)
    assert video.count(b"\xff\xda") > 64
    for behind in (video, second, second * 70, b"\xff\xda" * 1000):
        for before in (b"", index):
            photo, data = photo_with(behind, before)
            assert read_picture(data).tobytes() == read_picture(photo).tobytes()


def test_a_picture_of_several_is_its_first() -> None:
    first, other = Image.new("RGB", (64, 48), "teal"), Image.new("RGB", (32, 24), "red")
    data = file_of(first, "MPO", save_all=True, append_images=[other])
    assert read_picture(data).size == (64, 48)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_an_avif_is_read() -> None:
    assert read_picture(file_of(Image.new("RGB", (64, 48), "teal"), "AVIF")).size == (64, 48)


def test_a_heic_is_named() -> None:
    with pytest.raises(RequestError, match=r"HEIC picture, which can't be read here\. Choose a PNG"):
        read_picture(b"\0\0\0\x18ftypheic" + bytes(100))


def test_text_after_the_pixels_does_not_matter_to_them() -> None:
    data = bomb(64, 64)
    text = chunk(b"tEXt", b"parameters\0a lake\nSteps: 4, Seed: 1")
    assert read_picture(data[:-12] + text + data[-12:]).size == (64, 64)
    assert metadata.read(data[:-12] + text + data[-12:]).prompt == "a lake"


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
