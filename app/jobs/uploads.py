"""Read uploaded pictures safely.

The content decides the format; the name and the declared type of a file are ignored. Sizes are checked before
pixels are read, and nothing in a file is executed or unpickled.
"""

import io
import warnings
from functools import lru_cache

from PIL import Image, ImageOps

from app.jobs.job import LIMITS, RequestError, Start

# Pillow's names of the accepted formats.
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
    """Read a PNG, JPEG or WebP file as an upright RGB picture.

    Transparency becomes white; of an animation it is the first frame. `info` has the texts of a PNG only.

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
    picture = _open(data)
    _check_size(*picture.size)
    if data.startswith(_JPEG) and data.count(_SCAN) > MAX_SCANS:
        raise RequestError("This JPEG has too many scans and would take too long to read. Save it again.")
    texts = {key: value for key, value in picture.info.items() if isinstance(value, str)}
    try:
        rgb = _to_rgb(ImageOps.exif_transpose(picture))
    # Broken files make Pillow raise all kinds of things, from parts that were never meant to be reached.
    except Exception as error:
        raise RequestError("This picture is damaged. Save it again, or choose another.") from error
    rgb.info = texts if picture.format == "PNG" else {}
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
    picture.info = {}
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


def _open(data: bytes) -> Image.Image:
    """Read the file's header, but not its pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # sizes are checked by us
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large() from error
    except Exception as error:
        raise RequestError(
            "This file is not a picture that can be read. Choose a PNG, JPEG or WebP."
        ) from error


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


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits, which converting would cut off at 255 instead of scaling
        picture = picture.convert("I").point(lambda level: level / 257).convert("L")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layered = picture.convert("RGBA")
    white = Image.new("RGBA", layered.size, "white")
    return Image.alpha_composite(white, layered).convert("RGB")
