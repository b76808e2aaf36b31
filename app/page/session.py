"""The session of a browser tab: its grid of previews, its stage, and its running jobs.

A tab has a secret of its own, so all that outlives a refresh; the jobs of a tab that stays away are
cancelled. What it has made is on the shelf of its browser (`app.history.shelf`).
"""

import contextlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from app.history.shelf import Entry, History, Shelf, Shot
from app.jobs.handle import Handle
from app.jobs.job import Job, RequestError, Start, Variation
from app.page.speculation import Guesses

# A tab that does not come back within this time has been closed.
GRACE_S = 20.0
# More tabs are not remembered; of those that are away, the longest away go first.
MAX_TABS = 1000
# Fields of a job that the history does not keep with each picture: the start is kept with the grid.
_NOT_KEPT = ("kind", "owner", "start")


@dataclass
class Tile:
    """A preview.

    Attributes:
        step, steps: denoiser calls made, and of how many.
        sketch: address of its latest sketch.
        problem: message in place of a missing picture.
        name: its picture's on the shelf, once finished.
        kept: whether it stays through rerolls.
        decoder: see `app.jobs.job.Record`.
    """

    job: Job
    step: int = 0
    steps: int = 0
    sketch: str = ""
    problem: str = ""
    name: str = ""
    revision: str = ""
    kept: bool = False
    decoder: str = ""

    @property
    def seed(self) -> int:
        """Its seed or, of a variation, the one that it is turned to: no other tile of its grid has it."""
        return self.job.variation.seed if self.job.variation else self.job.seed


@dataclass
class Grid:
    """Previews that are shown together.

    Attributes:
        note: what the page says of them.
        ignored: words of the prompt that the model does not know.
        id: clicks name it, so that one that came too late is recognised.
    """

    tiles: list[Tile]
    note: str = ""
    ignored: tuple[str, ...] = ()
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def busy(self) -> bool:
        return any(not tile.name and not tile.problem for tile in self.tiles)

    @property
    def start(self) -> Start | None:
        """The picture that all of its previews start from."""
        return self.tiles[0].job.start

    def find(self, seed: object) -> Tile | None:
        """The tile of a seed, if it is in this grid."""
        return next((tile for tile in self.tiles if tile.seed == seed), None)

    def asks_the_same(self, jobs: Sequence[Job]) -> bool:
        """Whether these jobs would make this grid again, but for the seeds."""
        mine = [replace(tile.job, seed=0) for tile in self.tiles]
        return mine == [replace(job, seed=0) for job in jobs]


@dataclass
class Stage:
    """A picked picture.

    Attributes:
        grid: id of the grid that it comes from.
        tile: the preview.
        job: refines it.
        handle: of that job; None if it comes from the history.
        state: "running", "done" or "stopped".
        sketch: address of its latest sketch.
        name: the final's on the shelf.
        likeness: of preview and final; see `app.page.likeness`.
    """

    grid: str
    tile: Tile
    job: Job
    state: str = "running"
    percent: int = 0
    message: str = "Starting …"
    sketch: str = ""
    name: str = ""
    revision: str = ""
    seconds: float = 0.0
    likeness: dict[str, str] | None = None
    handle: Handle | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def running(self) -> bool:
        return self.handle is not None and not self.handle.ended


@dataclass
class Session:
    """A tab's grid, its stage, its running jobs and its messages.

    Attributes:
        shelf: the pictures of its browser or login.
        picks: all picks that are running or have a preview in the grid, the latest last. One is on the stage.
        previews, refinement, guesses: the jobs; of the refinements the latest.
        pointed: the preview last pointed at.
        notices: the latest messages.
        login: the name that the user has logged in with, if any.
        start: the picture that the next grid starts from.
        strength: of the next start.
        called_off: see `app.page.handlers.cancel`.
        secret: the tab's own.
        name: drawn at random, for logs.
        lock: to be held while anything is changed.
        listeners: called after changes.
        followers: threads that read jobs' events.
    """

    shelf: Shelf
    grid: Grid | None = None
    stage: Stage | None = None
    picks: list[Stage] = field(default_factory=list)
    previews: list[Handle] = field(default_factory=list)
    refinement: Handle | None = None
    guesses: Guesses = field(default_factory=Guesses)
    pointed: Job | None = None
    notices: list[dict[str, Any]] = field(default_factory=list)
    login: str = ""
    start: Start | None = None
    strength: float = Start.strength
    called_off: tuple[str, ...] = ()
    secret: str = field(default="", repr=False)
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    lock: threading.RLock = field(default_factory=threading.RLock)
    listeners: set[Callable[[], None]] = field(default_factory=set)
    followers: list[threading.Thread] = field(default_factory=list)

    @property
    def owner(self) -> str:
        """The owner of its jobs, for whom the worker takes turns: all tabs of a browser, or of a login."""
        return self.shelf.name

    def pick_of(self, tile: Tile) -> Stage | None:
        """The latest pick of a preview."""
        found = (pick for pick in reversed(self.picks) if tile.name and pick.tile.name == tile.name)
        return next(found, None)

    def changed(self) -> None:
        """Call the listeners."""
        for listener in list(self.listeners):
            listener()

    def tell(self, message: str, kind: str = "warning", **more: Any) -> None:
        """Show a message: kind is "warning" or "info"."""
        with self.lock:
            notice = {"id": secrets.token_hex(4), "time": time.time(), "text": message, "kind": kind, **more}
            self.notices = [*self.notices[-4:], notice]
        self.changed()

    def follow(self, work: Callable[[], None]) -> None:
        """Run `work`, which reads jobs' events, in a thread."""
        self.followers = [thread for thread in self.followers if thread.is_alive()]
        thread = threading.Thread(target=work, name="follower", daemon=True)
        self.followers.append(thread)
        thread.start()

    def settle(self, timeout_s: float | None = None) -> None:
        """Wait until only guesses are running."""
        for thread in list(self.followers):
            thread.join(timeout_s)

    def stop(self) -> None:
        """Cancel everything that runs."""
        with self.lock:
            for handle in [*self.previews, *(pick.handle for pick in self.picks)]:
                if handle:
                    handle.cancel()
            self.guesses.drop()


class Sessions:
    """The tabs that are open, or were less than `grace_s` seconds ago."""

    def __init__(self, history: History, grace_s: float = GRACE_S) -> None:
        self.history = history
        self.closed = False
        self._grace_s = grace_s
        self._lock = threading.Lock()
        self._tabs: OrderedDict[tuple[str, str], Session] = OrderedDict()
        self._leaving: dict[int, threading.Timer] = {}

    def of(self, browser: object, tab: object, login: str = "") -> Session:
        """Return a tab's session, by the secrets of its browser and its own, and by the login if any.

        Raises RequestError if these are no such secrets.
        """
        shelf = self.history.shelf(browser, login)
        if not isinstance(tab, str) or not 16 <= len(tab) <= 64 or not tab.isalnum():
            raise RequestError("This page is out of date. Please load it again.")
        with self._lock:
            session = self._tabs.get((shelf.name, tab))
            if session is None:
                alone = not any(name == shelf.name and s.listeners for (name, _), s in self._tabs.items())
                session = Session(shelf, login=login, secret=tab)
                self._tabs[shelf.name, tab] = session
                if shelf.notice:
                    session.tell(shelf.notice)
                    shelf.notice = ""
                if alone and shelf.entries:
                    with contextlib.suppress(RequestError):  # what it started from may be lost
                        show_entry(session, shelf.entries[0])
                        session.start = session.grid.start if session.grid else None
            self._tabs.move_to_end((shelf.name, tab))
            away = [key for key, each in self._tabs.items() if not each.listeners and each is not session]
            for key in away[: max(0, len(self._tabs) - MAX_TABS)]:
                self._tabs.pop(key).stop()
        return session

    def attach(self, session: Session, listener: Callable[[], None]) -> None:
        """Have a page, which shows this session, called after changes."""
        with self._lock:
            timer = self._leaving.pop(id(session), None)
        if timer:
            timer.cancel()
        session.listeners.add(listener)

    def detach(self, session: Session, listener: Callable[[], None]) -> None:
        """Forget a page. If none comes back within the grace time, what runs is cancelled."""
        session.listeners.discard(listener)
        if session.listeners:
            return
        timer = threading.Timer(self._grace_s, self._leave, [session])
        timer.daemon = True
        with self._lock:
            self._leaving[id(session)] = timer
        timer.start()

    def close(self) -> None:
        """End all pages' streams."""
        self.closed = True
        with self._lock:
            sessions, timers = list(self._tabs.values()), list(self._leaving.values())
        for timer in timers:
            timer.cancel()
        for session in sessions:
            session.changed()

    def _leave(self, session: Session) -> None:
        with self._lock:
            self._leaving.pop(id(session), None)
        if not session.listeners:
            session.stop()


def show_entry(session: Session, entry: Entry) -> None:
    """Put an entry of the history back into the grid, and its last final onto the stage.

    Running previews are cancelled; refinements go on.
    """
    start = start_of(session, entry)
    tiles = [
        Tile(
            job_of(shot, "preview", session, start),
            name=shot.picture,
            revision=shot.revision,
            kept=shot.kept,
            decoder=shot.decoder,
        )
        for shot in entry.previews
    ]
    if not tiles:
        raise RequestError("The previews of this picture are gone. The picture itself is in the export.")
    grid, picks = Grid(tiles, note=note_of(tiles), id=entry.id), []
    for shot in entry.finals:
        job = job_of(shot, "refine", session, start)
        tile = next((t for t in tiles if (t.job.seed, t.job.variation) == (job.seed, job.variation)), None)
        if tile:
            pick = Stage(grid.id, tile, job, "done", 100, "", name=shot.picture, revision=shot.revision)
            pick.likeness, pick.seconds = shot.likeness, shot.seconds
            picks.append(pick)
    with session.lock:
        for handle in session.previews:
            handle.cancel()
        session.guesses.drop()
        picks += [pick for pick in session.picks if pick.running]
        session.grid, session.picks, session.previews = grid, picks, []
        session.stage = next((pick for pick in reversed(picks) if pick.grid == grid.id), None)
    session.changed()


def seed_label(job: Job) -> str:
    """Return the seed and, of a variation, those that it is turned to."""
    turns = job.variation.turns if job.variation else ()
    return " ~ ".join(str(seed) for seed in (job.seed, *(turn.seed for turn in turns)))


def note_of(tiles: Sequence[Tile]) -> str:
    """Return a summary of previews: their number, steps and solver."""
    job = tiles[0].job
    number = f"{len(tiles)} preview{'s' if len(tiles) != 1 else ''}"
    return f"{number} · {job.steps} steps · {job.solver}"


def record_grid(session: Session, grid: Grid) -> None:
    """Write the finished pictures of a grid into the history, or show the error."""
    time_made, finals = time.time(), []
    with contextlib.suppress(RequestError):
        old = session.shelf.find(grid.id)
        time_made, finals = old.time, old.finals
    previews = [
        Shot(values_of(tile.job), tile.name, tile.revision, tile.kept, decoder=tile.decoder)
        for tile in grid.tiles
        if tile.name
    ]
    try:
        start = None
        if grid.start:
            session.shelf.put_start(grid.start)  # it may have made room for others meanwhile
            start = {"picture": grid.start.name, "strength": grid.start.strength}
        session.shelf.record(Entry(grid.id, time_made, previews, finals, start=start))
    except RequestError as error:
        session.tell(str(error))


def values_of(job: Job) -> dict[str, Any]:
    """Return a job as plain values for JSON, without the fields of _NOT_KEPT."""
    return {name: value for name, value in asdict(job).items() if name not in _NOT_KEPT}


def job_of(shot: Shot, kind: Any, session: Session, start: Start | None) -> Job:
    """Return the job that `values_of` wrote down. Raises RequestError if this version has no such job."""
    values = {field.name: shot.job[field.name] for field in fields(Job) if field.name in shot.job}
    variation = values.pop("variation", None)
    try:
        return Job(
            **values | {"kind": kind, "owner": session.owner, "start": start},
            variation=Variation(**variation) if variation else None,
        )
    except TypeError as error:
        raise RequestError(
            "Another version of this app made this picture, and it can't be made again."
        ) from error


def start_of(session: Session, entry: Entry) -> Start | None:
    """Return the picture that an entry's pictures start from. Raises RequestError if it is gone."""
    if not entry.start:
        return None
    return session.shelf.start(entry.start["picture"], entry.start["strength"])
