"""The folder of --data: readable by the app's own user only, and used by one process at a time."""

import logging
import os
import shlex
import socket
import stat
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger("app.service")

LOCK, HOLDER = "in-use.lock", "in-use.txt"


def make(data: Path) -> None:
    """Make the folder, which others can't read. Raises ValueError if it can't be written to."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data / "gradio" / "pictures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"nothing can be written to {data} ({error.strerror}). Choose another --data."
        ) from error


def claim(data: Path) -> FileLock | None:
    """Lock the folder until the lock is released or this process ends, in whatever way.

    Returns None where the file system has no locks. Raises ValueError if another process uses the folder.
    """
    # Without real locks a file would stand for one, and would still be there after a kill.
    lock = FileLock(data / LOCK, timeout=0, fallback_to_soft=False)
    holder = data / HOLDER
    try:
        lock.acquire()
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except Timeout as error:
        who = holder.read_text(encoding="utf-8") if holder.is_file() else "another process"
        raise ValueError(
            f"the folder {data} is in use by {who}. Both would lose what people make. Stop that one, or "
            "choose another --data for this one."
        ) from error
    except (OSError, NotImplementedError) as error:
        log.warning("%s can't be locked (%s): see to it that no other process uses it", data, error)
        return None
    return lock


def warning(data: Path) -> str:
    """Say that others on this machine can read the folder, and how to change that; "" if they can't."""
    if os.name == "nt" or not stat.S_IMODE(data.stat().st_mode) & 0o077:
        return ""
    command = f"chmod -R go= {shlex.quote(str(data))}"
    return f"Other users of this machine can read {data}. To keep them out: {command}"
