"""Read uploaded pictures safely.

The content decides the format; the name and the declared type of a file are ignored. Sizes are checked before
pixels are read, and nothing in a file is executed or unpickled.
"""

import io
import warnings
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps, features

from app.jobs import container
from app.jobs.job import LIMITS, RequestError, Start

# Pillow's names of the accepted formats.
FORMATS = ("PNG", "JPEG", "WEBP", *(["AVIF"] if features.check("avif") else []))
MAX_BYTES = 20 * 2**20
MAX_PIXELS = 40_000_000
MAX_EDGE = 16_384
MIN_EDGE = 8
# A picture to start from is kept no larger than the largest that can be made of it.
START_EDGE = int(max(LIMITS["width"].high, LIMITS["height"].high))
# By orientation as in EXIF: what makes a picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Factors from the levels of a grey PNG of few bits to Pillow's, by its raw mode.
_FEW_BITS = {"1": 255, "L;2": 85, "L;4": 17}
_SRGB = ImageCms.createProfile("sRGB")


def read_picture(data: bytes) -> Image.Image:
    """Read a PNG, JPEG, WebP or, where Pillow can, AVIF file as an upright RGB picture in sRGB.

    Metadata is dropped, and transparency becomes white. Of an animation, or of several pictures in a file, it
    is the first.

    Raises:
        RequestError: another format, a damaged file, or a size beyond the limits above.
    """
    if not data:
        raise RequestError("This file is empty.")
    if len(data) > MAX_BYTES:
        raise RequestError(
            f"This file has {len(data) / 2**20:.0f} MB; at most {MAX_BYTES / 2**20:.0f} MB are allowed. "
            "Save it smaller, or as a JPEG."
        )
    try:
        parts = container.split(data)
    except ValueError as error:
        raise RequestError(str(error)) from error
    picture = _open(parts.pixels)
    _check_size(*picture.size)
    try:
        rgb = _to_rgb(picture, parts.icc)
    # Broken files make Pillow raise all kinds of things, from parts that were never meant to be reached.
    except Exception as error:
        raise RequestError("This picture is damaged. Save it again, or choose another.") from error
    upright = _UPRIGHT.get(parts.orientation)
    rgb = rgb if upright is None else rgb.transpose(upright)
    rgb.info = {}
    return rgb


def start_from(data: bytes, strength: float = Start.strength) -> Start:
    """Check an uploaded file and make a start of it: a PNG without metadata.

    Raises:
        RequestError: see `read_picture` and `Start`.
    """
    picture = read_picture(data)
    scale = min(1.0, START_EDGE / max(picture.size))
    if scale < 1:
        width, height = (max(MIN_EDGE, round(edge * scale)) for edge in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return Start(buffer.getvalue(), strength)


@lru_cache(maxsize=8)
def fit_picture(data: bytes, width: int, height: int) -> Image.Image:
    """Crop the picture in a file around its middle and scale it to this size; cached, so do not change it.

    Raises:
        RequestError: see `read_picture`.
    """
    return ImageOps.fit(read_picture(data), (width, height), Image.Resampling.LANCZOS)


def _open(data: bytes) -> ImageFile.ImageFile:
    """Read the file's header, but not its pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # sizes are checked by us
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large() from error
    except Exception as error:
        name = {
            b"heic": "HEIC",
            b"heix": "HEIC",
            b"hevc": "HEIC",
            b"mif1": "HEIF",
            b"avif": "AVIF",
            b"avis": "AVIF",
        }
        kind = name.get(data[8:12], "") if data[4:8] == b"ftyp" else ""
        what = (
            f"This file is a {kind} picture, which can't be read here"
            if kind
            else ("This file is not a picture that can be read")
        )
        raise RequestError(f"{what}. Choose a PNG, JPEG or WebP.") from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_EDGE:
        raise _too_large()
    if min(width, height) < MIN_EDGE:
        raise RequestError(
            f"This picture has {width} × {height} pixels; at least {MIN_EDGE} × {MIN_EDGE} are needed."
        )


def _too_large() -> RequestError:
    return RequestError(
        f"This picture is too large: at most {MAX_PIXELS / 1e6:.0f} million pixels, and {MAX_EDGE:,} along "
        "an edge, are allowed. Scale it down."
    )


def _to_rgb(opened: ImageFile.ImageFile, icc: bytes) -> Image.Image:
    """Convert to RGB in sRGB. Colours of CMYK and grey pictures are converted from their own profile, too."""
    picture: Image.Image = opened
    if opened.format == "PNG" and "transparency" in opened.info:
        _scale_transparent_level(opened)
    if picture.mode.startswith("I"):  # 16 bits, which converting would cut off at 255 instead of scaling
        picture = _from_16_bits(picture)
    alpha = None
    if picture.has_transparency_data:
        layered = picture.convert("RGBA")
        alpha = layered.getchannel("A")
        picture = layered.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")
    elif picture.mode not in ("L", "CMYK"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    rgb = (_by_profile(picture, icc) if icc else None) or picture.convert("RGB")
    return rgb if alpha is None else Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)


def _by_profile(picture: Image.Image, icc: bytes) -> Image.Image | None:
    """Convert from a colour profile to sRGB; None if the profile is broken or for another kind of picture."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        return ImageCms.profileToProfile(picture, profile, _SRGB, outputMode="RGB")
    except Exception:  # of Pillow's and of LittleCMS, or without it
        return None


def _scale_transparent_level(picture: ImageFile.ImageFile) -> None:
    """Give a PNG's transparent level as Pillow gives its pixels: of 8 bits, or grey of 16 bits."""
    level, raw_mode = picture.info["transparency"], picture.tile[0].args
    if raw_mode in _FEW_BITS:
        factor = _FEW_BITS[raw_mode]
        picture.info["transparency"] = level % (255 // factor + 1) * factor
    elif raw_mode == "RGB;16B":  # its pixels have lost their low bytes, too
        picture.info["transparency"] = tuple(channel >> 8 for channel in level)


def _from_16_bits(picture: Image.Image) -> Image.Image:
    levels = np.asarray(picture)
    grey = Image.fromarray((levels // 257).astype(np.uint8))
    if "transparency" in picture.info:
        seen = np.where(levels == picture.info["transparency"], 0, 255).astype(np.uint8)
        grey.putalpha(Image.fromarray(seen))
    return grey
