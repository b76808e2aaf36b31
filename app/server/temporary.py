"""Bound Gradio's temporary folder: files that programs upload, and the pictures made for them."""

import errno
import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.disk import cannot_keep, free_bytes, is_full
from app.jobs.uploads import MAX_BYTES
from app.page.gradio_internals import get_upload_folder, login_of, path_of
from app.server.events import refusal
from app.server.limits import LimitReached, Limits, address_of

log = logging.getLogger("app.service")

# An upload is read by the next request; programs fetch their pictures at once. Both are kept for a while.
KEEP_UPLOADS_S = 3600.0
KEEP_PICTURES_S = 24 * 3600.0
# Beyond so many bytes the oldest go earlier, but none that may still be in use.
MAX_FOLDER_BYTES = 2 * 2**30
IN_USE_S = 60.0
CLEAN_EVERY_S = 300.0
# What one person may upload in KEEP_UPLOADS_S, and so the most that they fill.
SHARE_BYTES = 200 * 2**20
# An upload must leave so much room for what the page writes.
RESERVE_BYTES = 256 * 2**20
UPLOAD = "/gradio_api/upload"


def clean(folder: Path, max_bytes: int = MAX_FOLDER_BYTES) -> None:
    """Delete old files below a folder, and the oldest if all together are too large."""
    now, pictures = time.time(), str(folder / "pictures")
    files: list[tuple[float, int, str]] = []
    for place, _, names in os.walk(folder, topdown=False):
        keep_s = KEEP_PICTURES_S if place.startswith(pictures) else KEEP_UPLOADS_S
        for name in names:
            path = os.path.join(place, name)
            with suppress(FileNotFoundError):
                found = os.lstat(path)
                if now - found.st_mtime > keep_s:
                    _delete(path)
                else:
                    files.append((found.st_mtime, found.st_size, path))
        if not names and place not in (str(folder), pictures):
            with suppress(OSError):  # it is not empty any more
                if now - os.stat(place).st_mtime > IN_USE_S:
                    os.rmdir(place)
    total = sum(size for _, size, _ in files)
    for modified, size, path in sorted(files):
        if total <= max_bytes or now - modified < IN_USE_S:
            break
        _delete(path)
        total -= size


def keep_clean(folder: Path) -> None:
    """Clean a folder now and at intervals, in a thread, as long as this process lives."""

    def run() -> None:
        while True:
            try:
                clean(folder)
            except OSError:
                log.exception("%s can't be cleaned", folder)
            time.sleep(CLEAN_EVERY_S)

    threading.Thread(target=run, name="cleaner", daemon=True).start()


def _delete(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s can't be deleted: %s", path, error)


class UploadLimit:
    """Refuse uploads beyond a person's share, and those that the disk has no room for."""

    def __init__(self, app: ASGIApp, share: int = SHARE_BYTES) -> None:
        self._app = app
        self._limits = Limits(share, per_s=KEEP_UPLOADS_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") != "POST" or path_of(scope).rstrip("/") != UPLOAD:
            return await self._app(scope, receive, send)
        request, answering = Request(scope), False
        declared = request.headers.get("content-length", "")
        size = int(declared[:20]) if declared.isdigit() else MAX_BYTES

        async def answer(message: Message) -> None:
            nonlocal answering
            answering = True
            await send(message)

        folder = Path(get_upload_folder())
        try:
            if free_bytes(folder) < size + RESERVE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._limits.take(login_of(request) or address_of(request), size)
            await self._app(scope, receive, answer)
        except LimitReached as error:
            await refusal(str(error), 429)(scope, receive, send)
        except OSError as error:
            if answering or not is_full(error):
                raise
            await refusal(cannot_keep(error, folder, size), 507)(scope, receive, send)
