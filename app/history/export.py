"""A browser's history as one zip file: all pictures, and a JSON that says how each was made."""

import json
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.history.shelf import Entry, Shelf, Shot
from app.jobs.job import RequestError


def export_zip(shelf: Shelf) -> Path:
    """A new zip file below the shelf, to be deleted by the caller; RequestError where there is nothing.

    `session.json` in it is a list of grids, the newest first: time (ISO 8601), start, the file of the picture
    that they start from and the strength, if any; and previews and finals, each with its file in the zip and
    what it was made from.
    """
    entries = shelf.entries
    if not entries:
        raise RequestError("There is nothing to export yet.")
    with (
        tempfile.NamedTemporaryFile(dir=shelf.folder, suffix=".zip", delete=False) as file,
        zipfile.ZipFile(file, "w") as zipped,
    ):
        grids = [_add(entry, shelf, zipped) for entry in entries]
        zipped.writestr("session.json", json.dumps(grids, indent=1, ensure_ascii=False))
    return Path(file.name)


def _add(entry: Entry, shelf: Shelf, zipped: zipfile.ZipFile) -> dict[str, Any]:
    when = datetime.fromtimestamp(entry.time, UTC)
    folder = f"{when:%Y-%m-%d %H.%M.%S} {entry.id}"

    def add(kind: str, shots: list[Shot]) -> Iterator[dict[str, Any]]:
        for number, shot in enumerate(shots, 1):
            name = f"{folder}/{kind}-{number}-seed-{shot.job['seed']}-{shot.job['steps']}-steps.png"
            zipped.write(shelf.path(shot.picture), name)
            values = asdict(shot)
            del values["picture"]
            yield {"file": name} | values.pop("job") | values

    start = None
    if entry.start:
        start = {"file": f"{folder}/start.png", "strength": entry.start["strength"]}
        zipped.write(shelf.path(entry.start["picture"]), start["file"])
    return {
        "time": when.isoformat(timespec="seconds"),
        "start": start,
        "previews": list(add("preview", entry.previews)),
        "finals": list(add("final", entry.finals)),
    }
