"""Files of results: JSON, compressed where the name ends with .gz."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any


def write_json(path: Path, data: Any) -> None:
    """Write data as JSON; equal data makes an equal file."""
    text = json.dumps(data, indent=1) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        path.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote.

    Raises:
        OSError: no such file, or one that is not what its name says.
        ValueError: a file that is not JSON.
    """
    raw = path.read_bytes()
    return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
