"""A browser's history as a zip file: all pictures, and how each was made as JSON."""

import json
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import IO, Any

from app.disk import cannot_keep
from app.history.shelf import Entry, Shelf, Shot
from app.jobs.job import RequestError


def export_zip(shelf: Shelf) -> IO[bytes]:
    """Write a zip file and return it opened at its beginning; it has no name, and goes when it is closed.

    Raises RequestError for no entries and for a full disk.

    Its `session.json` lists the grids, the newest first, each with:
        time: in ISO 8601.
        start: file and strength of the picture that they start from, or null.
        previews, finals: for each its file and how it was made.
    """
    entries = shelf.entries
    if not entries:
        raise RequestError("There is nothing to export yet.")
    file: IO[bytes] | None = None
    try:
        file = tempfile.TemporaryFile(dir=shelf.folder)  # noqa: SIM115, the caller closes it
        with zipfile.ZipFile(file, "w") as zipped:
            grids = [_add(entry, shelf, zipped) for entry in entries]
            zipped.writestr("session.json", json.dumps(grids, indent=1, ensure_ascii=False))
    except OSError as error:
        if file:
            with suppress(OSError):  # there is no room for what is in its buffer
                file.close()
        raise RequestError(cannot_keep(error, shelf.folder, shelf.size)) from error
    file.seek(0)
    return file


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
