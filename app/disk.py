"""Recognise and report a disk that is full or can't be written to."""

from __future__ import annotations

import errno
import logging
import shutil
from pathlib import Path

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: BaseException | None) -> bool:
    """Return whether an error, or its cause, means a full disk or an exceeded quota."""
    while error:
        if getattr(error, "errno", None) in _FULL or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that a folder is, or will be, on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def cannot_keep(error: OSError, folder: Path, size: int) -> str:
    """Return a message for a user whose `size` bytes can't be written to a folder; log the details."""
    free = free_bytes(folder)
    log.error("%d bytes can't be written to %s, where %d are free: %s", size, folder, free, error)
    reason = "the disk is full" if is_full(error) else f"its disk can't be written to ({error.strerror})"
    return (
        f"This could not be saved: {reason} on the machine that runs this page. What you saved before is "
        "still there. The operator has to make room."
    )
