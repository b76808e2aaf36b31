"""Keep the pictures that participants chose beside the log, if the study file asks for it."""

import shutil
from pathlib import Path

from app.study.log.events import read_events
from app.study.log.store import Store

DEFAULT = "study-pictures"


def folder_of(log: str) -> Path:
    """Return the folder of a log's pictures: beside its file or, for a server, in the working directory."""
    return Path(f"{log}.pictures") if "://" not in log else Path(DEFAULT)


def keep_picture(log: str, participant: str, trial: str, png: bytes) -> Path:
    """Write a picture; return its path."""
    path = folder_of(log) / participant / f"{trial}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png)
    return path


def delete_pictures(log: str, participant: str) -> int:
    """Delete a participant's pictures; return how many there were."""
    folder = folder_of(log) / participant
    count = len(list(folder.glob("*.png")))
    shutil.rmtree(folder, ignore_errors=True)
    return count


def delete_orphans(log: str, store: Store) -> int:
    """Delete the pictures of participants who are no longer in the log; return how many."""
    known = {event.participant for event in read_events(store.lines())}
    folders = folder_of(log).glob("*/")
    return sum(delete_pictures(log, each.name) for each in folders if each.name not in known)
