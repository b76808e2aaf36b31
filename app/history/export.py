"""A browser's history as a zip file: all pictures, and how each was made as JSON."""

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
    """Write a zip file into the shelf's folder; the caller deletes it. Raises RequestError for no entries.

    Its `session.json` lists the grids, the newest first, each with:
        time: in ISO 8601.
        start: file and strength of the picture that they start from, or null.
        previews, finals: for each its file and how it was made.
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
