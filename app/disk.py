"""A disk that is full, or can't be written to, in words."""

from __future__ import annotations

import errno
import logging
import shutil
from pathlib import Path

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: BaseException | None) -> bool:
    """Whether this, or what it came from, says that a disk or somebody's share of it is full."""
    while error:
        if getattr(error, "errno", None) in _FULL or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def free_bytes(folder: Path) -> int:
    """What is free where a folder is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def cannot_keep(error: OSError, folder: Path, size: int) -> str:
    """What to say to whoever made something of `size` bytes that can't be written to a folder.

    Where, how much and how much is free is for the log, and whoever runs the app.
    """
    free = free_bytes(folder)
    log.error("%d bytes can't be written to %s, where %d are free: %s", size, folder, free, error)
    why = "the disk is full" if is_full(error) else f"its disk can't be written to ({error.strerror})"
    return (
        f"This could not be saved: {why} on the machine that runs this page. What you saved before is still "
        "there. Whoever runs it has to make room."
    )
