"""Shelves: the prompts, previews and finals of each browser, kept on disk.

Each browser, or each login, has a shelf: a folder named after a hash of the browser's secret id or of the
login, with one JSON file and the pictures. A picture's name is random, so it can't be guessed.
Nothing in a request becomes part of a path: names must have the right number of hex digits.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from PIL import Image

from app.disk import cannot_keep
from app.history.entry import NAME, Entry, Shot, read_entries
from app.jobs.job import RequestError, Start, StoredPicture

__all__ = ["Bounds", "Entry", "History", "Shelf", "Shot"]

log = logging.getLogger(__name__)

# In hex: browsers name themselves by 256 random bits.
_BROWSER = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(NAME)
_MARK = re.compile(r"[0-9a-f]{10}")
# The file's copy if something in it is damaged; further ones are numbered.
DAMAGED = "history.json.damaged"
# What a process that was killed left: drafts, and exports of earlier versions.
LEFTOVERS = ("*/*.new", "*/tmp*.zip")
# Pixels along an edge of the small pictures in lists.
THUMBNAIL_EDGE = 256
# Maximum number of unused starting pictures.
UNUSED_STARTS = 8
# A deleted entry can be brought back within this time.
UNDO_S = 120
# A picture that no entry names, after a crash or as an unused start, is kept for this long.
LEFT_OVER_S = 86_400
# All shelves are measured again when they have grown by this share of their limit.
GROWTH = 0.01


@dataclass(frozen=True)
class Bounds:
    """How much is kept: entries and bytes for one browser, and bytes for all together."""

    entries: int = 60
    shelf_bytes: int = 200 * 2**20
    all_bytes: int = 5 * 2**30


class Shelf:
    """The history of one browser; thread-safe.

    Args:
        grew: called with the bytes of each new picture.

    Attributes:
        notice: what to tell the user of damaged entries, once.

    Raises:
        RequestError: the history is there and can't be read.
    """

    def __init__(self, folder: Path, bounds: Bounds, grew: Callable[[int], None]) -> None:
        self.folder = folder
        self._bounds = bounds
        self._grew = grew
        self._lock = threading.RLock()
        self.notice = ""
        self._starts: list[str] = []
        self._in_use: WeakValueDictionary[str, StoredPicture] = WeakValueDictionary()
        self._dropped: set[str] = set()  # pictures to delete once the file on disk no longer names them
        self._entries: list[Entry] = []
        self._read()
        self._clean()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def entries(self) -> list[Entry]:
        """All entries that are not deleted, the newest first, whatever the clock said."""
        with self._lock:
            return [entry for entry in reversed(self._entries) if not entry.deleted]

    def find(self, entry_id: object) -> Entry:
        """Return the entry of that id, deleted or not. Raises RequestError if there is none."""
        with self._lock:
            for entry in self._entries:
                if entry.id == entry_id:
                    return entry
        raise RequestError("This is no longer in your history.")

    def put(self, png: bytes, name: str = "") -> str:
        """Keep a picture and a small version of it; return its name, which is random by default.

        Raises RequestError if it can't be written.
        """
        name = name or secrets.token_hex(16)
        large, small = self._files(name)
        with Image.open(io.BytesIO(png)) as picture:
            thumbnail = picture.convert("RGB")
        thumbnail.thumbnail((THUMBNAIL_EDGE, THUMBNAIL_EDGE))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            large.write_bytes(png)
            thumbnail.save(small, "JPEG", quality=88)
        except OSError as error:
            for path in (large, small):
                path.unlink(missing_ok=True)
            raise RequestError(cannot_keep(error, self.folder, len(png))) from error
        self._grew(len(png))
        return name

    def put_start(self, start: Start) -> Start:
        """Keep a picture to start from, under its own name and so only once; return it as `start` does."""
        with self._lock:
            if not all(path.exists() for path in self._files(start.name)):
                self.put(start.picture, start.name)
            kept = self.start(start.name, start.strength)
            self._starts = [*(name for name in self._starts if name != start.name), start.name]
            unused = [name for name in self._starts if name not in self._in_use]
            self._unlink(unused[:-UNUSED_STARTS])
            self._starts = [name for name in self._starts if name not in unused[:-UNUSED_STARTS]]
            return kept

    def start(self, name: str, strength: float) -> Start:
        """Return a kept picture to start from, which is not read yet and stays as long as it is in use.

        Raises RequestError if it is gone.
        """
        with self._lock:
            path = self.path(name)
            return Start(self._in_use.setdefault(name, StoredPicture(path)), strength)

    def find_start(self, mark: object) -> str | None:
        """Return the name of the picture to start from that has this mark (see `Start.mark`), if kept."""
        if not isinstance(mark, str) or not _MARK.fullmatch(mark):
            return None
        path = next(self.folder.glob(f"{mark}*.png"), None)
        return path.stem if path else None

    def path(self, name: str, small: bool = False) -> Path:
        """Return the file of a picture. Raises RequestError if there is none of that name."""
        if _NAME.fullmatch(name):
            path = self.folder / f"{name}.{'jpg' if small else 'png'}"
            if path.is_file():
                return path
        raise RequestError("This picture is gone: it was deleted, or made room for newer ones.")

    def open(self, name: str) -> Image.Image:
        """Open a picture as RGB; see `path`."""
        with Image.open(self.path(name)) as picture:
            return picture.convert("RGB")

    def record(self, entry: Entry) -> None:
        """Save an entry, new or changed; the oldest are deleted if there are too many.

        Raises RequestError if it can't be written; then the file is as before.
        """
        with self._lock:
            places = [place for place, known in enumerate(self._entries) if known.id == entry.id]
            for place in places or [len(self._entries)]:
                self._entries[place : place + 1] = [entry]
            self._trim(entry)
            self._save()

    def delete(self, entry_id: object, undo: bool = False) -> None:
        """Delete an entry or, within UNDO_S, bring it back.

        Raises RequestError, and changes nothing, if there is none or if that can't be saved.
        """
        with self._lock:
            entry = self.find(entry_id)
            before, entry.deleted = entry.deleted, 0.0 if undo else time.time()
            try:
                self._save()
            except RequestError:
                entry.deleted = before
                raise

    def clear(self) -> None:
        """Delete everything, with all pictures.

        Raises RequestError, and changes nothing, if the disk can't be written to.
        """
        with self._lock:
            try:
                (self.folder / "history.json").unlink(missing_ok=True)  # first, since it names the pictures
            except OSError as error:
                raise RequestError(cannot_keep(error, self.folder, 0)) from error
            self._entries, self._starts = [], []
            self._dropped.clear()
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def size(self) -> int:
        """Bytes of all pictures that entries name."""
        return sum(self._bytes(entry) for entry in self._entries)

    def _trim(self, spared: Entry) -> None:
        """Delete the oldest, but not `spared`: first entries without finals, then previews not picked."""
        self._forget_deleted()
        oldest = sorted((e for e in self._entries if e is not spared), key=lambda e: bool(e.finals))
        while oldest and len(self._entries) > self._bounds.entries:
            self._remove(oldest.pop(0))
        for entry in oldest:
            if self.size <= self._bounds.shelf_bytes:
                return
            refined = {shot.job["seed"] for shot in entry.finals}
            self._dropped.update(entry.pictures)
            entry.previews = [shot for shot in entry.previews if shot.job["seed"] in refined]
            if not entry.finals or self.size > self._bounds.shelf_bytes:
                self._remove(entry)

    def _forget_deleted(self) -> None:
        now = time.time()
        for entry in [e for e in self._entries if e.deleted and now - e.deleted > UNDO_S]:
            self._remove(entry)

    def _remove(self, entry: Entry) -> None:
        self._entries.remove(entry)
        self._dropped.update(entry.pictures)

    def _clean(self) -> None:
        """Delete entries that can't be brought back any more, and old pictures that no entry names."""
        self._forget_deleted()
        if self._dropped:
            with contextlib.suppress(RequestError):  # a full disk; the next change does it
                self._save()
        if any(self.folder.glob(f"{DAMAGED}*")):  # which may name them
            return
        files = [path for path in self.folder.glob("*") if path.suffix in (".png", ".jpg")]
        old = time.time() - LEFT_OVER_S
        self._unlink([path.stem for path in files if path.stat().st_mtime < old])

    def _unlink(self, names: Iterable[str]) -> None:
        """Delete pictures, except those in use: a kept preview is in several entries."""
        named = {name for entry in self._entries for name in entry.pictures}
        for name in set(names) - named - set(self._in_use):
            for path in self._files(name):
                path.unlink(missing_ok=True)

    def _bytes(self, entry: Entry) -> int:
        files = [path for name in entry.pictures for path in self._files(name)]
        return sum(path.stat().st_size for path in files if path.exists())

    def _files(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.png", self.folder / f"{name}.jpg"

    def _read(self) -> None:
        """Read what was saved. A file with anything that is damaged is kept beside the new one."""
        path = self.folder / "history.json"
        try:
            self._entries, whole = read_entries(path.read_bytes())
            if not whole:
                aside = _keep_copy(path)
        except FileNotFoundError:
            return
        except OSError as error:
            log.exception("The history %s can't be read, or a copy of a damaged one can't be kept", path)
            raise RequestError(
                "Your history can't be read at present, but nothing of it is lost. The operator has to help."
            ) from error
        if whole:
            return
        count = len(self._entries)
        log.warning("A history is damaged; %d of its entries are whole, and it is kept as %s", count, aside)
        self.notice = (
            "A part of your history is damaged and can't be shown; the operator can still find it. "
            f"{count or 'No'} other entries are as they were."
        )
        with contextlib.suppress(RequestError):  # a full disk; the next change saves it
            self._save()

    def _save(self) -> None:
        draft = self.folder / "history.json.new"
        content = json.dumps([asdict(e) for e in self._entries], ensure_ascii=False).encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(content)
            os.replace(draft, self.folder / "history.json")
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise RequestError(cannot_keep(error, self.folder, len(content))) from error
        self._unlink(self._dropped)
        self._dropped.clear()


class History:
    """The shelves of all browsers, in one folder."""

    def __init__(self, folder: Path, bounds: Bounds | None = None, shelves: type[Shelf] = Shelf) -> None:
        self.folder = folder
        self._make = shelves
        self.bounds = bounds or Bounds()
        self._lock = threading.Lock()
        self._shelves: WeakValueDictionary[str, Shelf] = WeakValueDictionary()  # one of each, while in use
        self._trimming = threading.Lock()
        self._grown = 0
        for left in (path for pattern in LEFTOVERS for path in folder.glob(pattern)):
            left.unlink(missing_ok=True)
        self.trim()

    def shelf(self, browser: object, login: str = "") -> Shelf:
        """Return the shelf of a login or, without one, of a browser by its secret id.

        Raises RequestError if `browser` is not an id.
        """
        if not isinstance(browser, str) or not _BROWSER.fullmatch(browser):
            raise RequestError("This page is out of date. Please load it again.")
        owner = f"login {login}" if login else browser
        return self._at(hashlib.sha256(owner.encode()).hexdigest()[:32])

    def path(self, shelf: str, picture: str, small: bool = False) -> Path:
        """Return the file of a picture. Raises RequestError if there is no such shelf or picture."""
        if not _NAME.fullmatch(shelf) or not (self.folder / shelf).is_dir():
            raise RequestError("This picture is gone: it was deleted, or made room for newer ones.")
        return self._at(shelf).path(picture, small)

    def trim(self) -> None:
        """Delete the shelves that were not used for the longest, if all together are too large."""
        with self._trimming:  # two at once would delete twice as much
            used, sizes = {}, {}
            for path in self.folder.glob("*/"):
                with contextlib.suppress(FileNotFoundError):  # it may be deleted meanwhile
                    if _NAME.fullmatch(path.name):
                        used[path.name] = path.stat().st_mtime
                        sizes[path.name] = sum(file.stat().st_size for file in path.glob("*"))
            total = sum(sizes.values())
            for name in sorted(sizes, key=used.__getitem__):
                if total <= self.bounds.all_bytes:
                    return
                total -= sizes[name]
                log.info("The history is full; one browser's is deleted")
                with contextlib.suppress(RequestError):  # the disk; it is in the log
                    self._at(name).clear()

    def _grew(self, count: int) -> None:
        """Count new bytes; sometimes trim all shelves, in a thread."""
        with self._lock:
            self._grown += count
            if self._grown <= GROWTH * self.bounds.all_bytes:
                return
            self._grown = 0
        threading.Thread(target=self.trim, name="trim", daemon=True).start()

    def _at(self, name: str) -> Shelf:
        with self._lock:
            shelf = self._shelves.get(name)
            if shelf is None:
                shelf = self._shelves[name] = self._make(self.folder / name, self.bounds, self._grew)
            return shelf


def _keep_copy(path: Path) -> Path:
    """Keep a file under another name, too, and return that; it takes no room where there are hard links."""
    number = len(list(path.parent.glob(f"{DAMAGED}*")))
    aside = path.with_name(f"{DAMAGED}-{number + 1}" if number else DAMAGED)
    try:
        os.link(path, aside)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(path, aside)
    return aside
