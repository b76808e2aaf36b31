"""Pictures in the making, kept in memory for the page to fetch."""

import io
import secrets
import threading
from collections import OrderedDict

from PIL import Image

MAX_SKETCHES = 400
MAX_EDGE = 512


class Sketches:
    """The newest MAX_SKETCHES pictures, under names that can't be guessed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._data: OrderedDict[str, bytes] = OrderedDict()

    def put(self, picture: Image.Image) -> str:
        """Keep a picture for a while, with edges of at most MAX_EDGE pixels; return its address."""
        picture = picture.copy()
        picture.thumbnail((MAX_EDGE, MAX_EDGE))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        name = secrets.token_hex(16)
        with self._lock:
            self._data[name] = buffer.getvalue()
            while len(self._data) > MAX_SKETCHES:
                self._data.popitem(last=False)
        return f"sketches/{name}"

    def find(self, name: str) -> bytes | None:
        """Return the JPEG of that name, if it is still there."""
        with self._lock:
            return self._data.get(name)
