"""Pictures that people send: what they are is decided by their content, and nothing is trusted.

Neither the name nor the declared type of a file matters. Whatever is wrong with it is found out before it can
cost much memory or time, and nothing in it is ever executed or unpickled.
"""

import io
import warnings
from functools import lru_cache

from PIL import Image, ImageOps

from app.jobs.job import LIMITS, RequestError, Start

# Pillow's names of what is read; everybody can save a picture as one of them.
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 20 * 2**20
MAX_PIXELS = 40_000_000
MAX_EDGE = 16_384
MIN_EDGE = 8
# A picture to start from is kept no larger than the largest that can be made of it.
START_EDGE = int(max(LIMITS["width"].high, LIMITS["height"].high))
# A progressive JPEG has about ten scans; each costs as much as a whole picture, and may take but a few bytes.
MAX_SCANS = 64
_JPEG, _SCAN = b"\xff\xd8", b"\xff\xda"


def read_picture(data: bytes) -> Image.Image:
    """The picture in the bytes of a PNG, JPEG or WebP file, as RGB and turned the right way up.

    What is transparent becomes white, and of an animation it is the first frame. Its `info` holds the texts
    of a PNG and nothing else.

    Raises RequestError, in words, when it is no such file, is damaged, has more than MAX_BYTES, MAX_PIXELS or
    MAX_EDGE, or less than MIN_EDGE.
    """
    if not data:
        raise RequestError("This file is empty.")
    if len(data) > MAX_BYTES:
        raise RequestError(
            f"This file has {len(data) / 2**20:.0f} MB; {MAX_BYTES / 2**20:.0f} MB is the most. "
            "Save it smaller, or as a JPEG."
        )
    picture = _open(data)
    _check_size(*picture.size)
    if data.startswith(_JPEG) and data.count(_SCAN) > MAX_SCANS:
        raise RequestError("This JPEG is built in a way that takes too long to read. Save it again.")
    texts = {key: value for key, value in picture.info.items() if isinstance(value, str)}
    try:
        rgb = _to_rgb(ImageOps.exif_transpose(picture))
    # Broken files make Pillow raise all kinds of things, from parts that were never meant to be reached.
    except Exception as error:
        raise RequestError(
            "This picture is damaged, and can't be read to its end. Save it again, or take another."
        ) from error
    rgb.info = texts if picture.format == "PNG" else {}
    return rgb


def start_from(data: bytes, strength: float = Start.strength) -> Start:
    """The start that somebody sends as a file, checked, and as a PNG that says nothing but its pixels.

    Raises RequestError, in words, see `read_picture` and `Start`.
    """
    picture = read_picture(data)
    scale = min(1.0, START_EDGE / max(picture.size))
    if scale < 1:
        width, height = (max(MIN_EDGE, round(edge * scale)) for edge in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    picture.info = {}
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return Start(buffer.getvalue(), strength)


@lru_cache(maxsize=8)
def fit_picture(data: bytes, width: int, height: int) -> Image.Image:
    """The middle of the picture in a file (see `read_picture`), as large as it gets, scaled to so many
    pixels; remembered, and not to be changed. Raises RequestError, in words."""
    return ImageOps.fit(read_picture(data), (width, height), Image.Resampling.LANCZOS)


def _open(data: bytes) -> Image.Image:
    """The file's header, read; its pixels are not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # sizes are checked by us
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large() from error
    except Exception as error:
        raise RequestError(
            "This file is not a picture that can be read. Take a PNG, JPEG or WebP."
        ) from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_EDGE:
        raise _too_large()
    if min(width, height) < MIN_EDGE:
        raise RequestError(f"This picture has {width} × {height} pixels; {MIN_EDGE} each way is the least.")


def _too_large() -> RequestError:
    return RequestError(
        f"This picture is too large: {MAX_PIXELS / 1e6:.0f} million pixels, and {MAX_EDGE:,} along an edge, "
        "are the most. Scale it down."
    )


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits, which converting would cut off at 255 instead of scaling
        picture = picture.convert("I").point(lambda level: level / 257).convert("L")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layered = picture.convert("RGBA")
    white = Image.new("RGBA", layered.size, "white")
    return Image.alpha_composite(white, layered).convert("RGB")
