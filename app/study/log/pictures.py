"""The pictures that participants were satisfied with, beside the log, and only where a study keeps them."""

import shutil
from pathlib import Path

from app.study.log.events import read_event
from app.study.log.store import Store

DEFAULT = "study-pictures"


def folder_of(log: str) -> Path:
    """Where the pictures of a log are: beside its file, or, of a server's, in the working directory."""
    return Path(f"{log}.pictures") if "://" not in log else Path(DEFAULT)


def keep_picture(log: str, participant: str, trial: str, png: bytes) -> Path:
    """Write a picture; gives its path."""
    path = folder_of(log) / participant / f"{trial}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png)
    return path


def delete_pictures(log: str, participant: str) -> int:
    """Delete a participant's; gives how many there were."""
    folder = folder_of(log) / participant
    count = len(list(folder.glob("*.png")))
    shutil.rmtree(folder, ignore_errors=True)
    return count


def delete_orphans(log: str, store: Store) -> int:
    """Delete the pictures of participants whom the log no longer has; gives how many."""
    known = {read_event(line)[0].participant for line in store.lines()}
    folders = folder_of(log).glob("*/")
    return sum(delete_pictures(log, each.name) for each in folders if each.name not in known)
