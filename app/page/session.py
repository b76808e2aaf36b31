"""What one browser tab is looking at: its grid of previews, its stage, and the jobs that still run for it.

A tab is known by a secret of its own, so what it shows and what runs for it outlives a refresh; a tab that
stays away ends what runs for it. What it has made is on the shelf of its browser (`app.history.shelf`).
"""

import contextlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from app.history.shelf import Entry, History, Shelf, Shot
from app.jobs.handle import Handle
from app.jobs.job import Job, RequestError, Start, Variation
from app.page.speculation import Guesses

# A tab that went away and does not come back within this time has been closed.
GRACE_S = 20.0
# Tabs that are remembered; of those that are away, the longest away go first.
MAX_TABS = 1000
# Not the picture's, but of whoever asked for it; and the start, which is its entry's.
_NOT_KEPT = ("kind", "owner", "start")


@dataclass
class Tile:
    """A preview. name: that of its picture on the shelf, once finished; sketch: address of the latest.
    decoder: see `Record`."""

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
        """What tells it from its grid's others: its seed, or, of a variation, that which it is turned to."""
        return self.job.variation.seed if self.job.variation else self.job.seed


@dataclass
class Grid:
    """Previews that are shown together. A pick names the grid's id, so that a stale one is recognised."""

    tiles: list[Tile]
    note: str = ""
    ignored: tuple[str, ...] = ()
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def busy(self) -> bool:
        return any(not tile.name and not tile.problem for tile in self.tiles)

    @property
    def start(self) -> Start | None:
        """What all of its previews start from."""
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
    """The picked picture: the tile it comes from, and the job that finishes it.

    state: "running", "done" or "stopped". sketch: address of how far it is. name: the final's on the shelf.
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
    id: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass
class Session:
    """A tab's grid, its stage, its running jobs and what there is to tell it.

    shelf: where its browser's pictures are. pointed: the preview last pointed at. login: the name that it
    has logged in with, if any. lock: held by whoever changes anything. start: what the next grid starts from.
    strength: of the next start. called_off: see `app.page.handlers.cancel`. secret: the tab's own. name: drawn at
    random, for logs.
    """

    shelf: Shelf
    grid: Grid | None = None
    stage: Stage | None = None
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
        """Whom the worker is to be fair to: whoever is at this browser, or of this login, in any tab."""
        return self.shelf.name

    def changed(self) -> None:
        """Tell whoever shows this session that something is new."""
        for listener in list(self.listeners):
            listener()

    def tell(self, words: str, kind: str = "warning", **more: Any) -> None:
        """Show a message: kind is "warning" or "info"."""
        with self.lock:
            notice = {"id": secrets.token_hex(4), "time": time.time(), "text": words, "kind": kind, **more}
            self.notices = [*self.notices[-4:], notice]
        self.changed()

    def follow(self, work: Callable[[], None]) -> None:
        """Have `work`, which listens to jobs, done beside, for as long as it takes."""
        self.followers = [thread for thread in self.followers if thread.is_alive()]
        thread = threading.Thread(target=work, name="follower", daemon=True)
        self.followers.append(thread)
        thread.start()

    def settle(self, timeout_s: float | None = None) -> None:
        """Wait until nothing runs any more, guesses aside."""
        for thread in list(self.followers):
            thread.join(timeout_s)

    def stop(self) -> None:
        """Cancel everything that runs."""
        with self.lock:
            for handle in [*self.previews, *filter(None, [self.refinement])]:
                handle.cancel()
            self.guesses.drop()


class Sessions:
    """The tabs that are open, or were a moment ago; see GRACE_S for `grace_s`."""

    def __init__(self, history: History, grace_s: float = GRACE_S) -> None:
        self.history = history
        self.closed = False
        self._grace_s = grace_s
        self._lock = threading.Lock()
        self._tabs: OrderedDict[tuple[str, str], Session] = OrderedDict()
        self._leaving: dict[int, threading.Timer] = {}

    def of(self, browser: object, tab: object, login: str = "") -> Session:
        """The session of a tab, by the secrets of its browser and its own, and, where there is one, by the
        login; RequestError without."""
        shelf = self.history.shelf(browser, login)
        if not isinstance(tab, str) or not 16 <= len(tab) <= 64 or not tab.isalnum():
            raise RequestError("This page is out of date. Please load it again.")
        with self._lock:
            session = self._tabs.get((shelf.name, tab))
            if session is None:
                alone = not any(name == shelf.name and s.listeners for (name, _), s in self._tabs.items())
                session = Session(shelf, login=login, secret=tab)
                self._tabs[shelf.name, tab] = session
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
        """A page shows this session, and wants to be called whenever it has changed."""
        with self._lock:
            timer = self._leaving.pop(id(session), None)
        if timer:
            timer.cancel()
        session.listeners.add(listener)

    def detach(self, session: Session, listener: Callable[[], None]) -> None:
        """The page is gone; when none comes back within the grace time, what runs is cancelled."""
        session.listeners.discard(listener)
        if session.listeners:
            return
        timer = threading.Timer(self._grace_s, self._leave, [session])
        timer.daemon = True
        with self._lock:
            self._leaving[id(session)] = timer
        timer.start()

    def close(self) -> None:
        """Have all pages' streams end."""
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
    """Put an entry of the history back into the grid, and its last final onto the stage."""
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
    grid = Grid(tiles, note=note_of(tiles), id=entry.id)
    stage = None
    if entry.finals:
        shot = entry.finals[-1]
        job = job_of(shot, "refine", session, start)
        tile = next((t for t in tiles if (t.job.seed, t.job.variation) == (job.seed, job.variation)), None)
        if tile:
            stage = Stage(grid.id, tile, job, "done", 100, "", name=shot.picture)
            stage.revision, stage.likeness, stage.seconds = shot.revision, shot.likeness, shot.seconds
    with session.lock:
        session.stop()
        session.grid, session.stage, session.previews, session.refinement = grid, stage, [], None
    session.changed()


def note_of(tiles: Sequence[Tile]) -> str:
    """What to say of previews that are there."""
    job = tiles[0].job
    number = f"{len(tiles)} preview{'s' if len(tiles) != 1 else ''}"
    return f"{number} · {job.steps} steps · {job.solver}"


def entry_of(session: Session, grid: Grid, old: Entry | None) -> Entry:
    """A grid, as far as it is finished, as an entry of the history; `old` is what there is of it already."""
    return Entry(
        id=grid.id,
        time=old.time if old else time.time(),
        previews=[
            Shot(values_of(tile.job), tile.name, tile.revision, tile.kept, decoder=tile.decoder)
            for tile in grid.tiles
            if tile.name
        ],
        finals=old.finals if old else [],
        start=_start_values(session, grid.start),
    )


def values_of(job: Job) -> dict[str, Any]:
    """A job as plain values for JSON, without what is only of the moment."""
    return {name: value for name, value in asdict(job).items() if name not in _NOT_KEPT}


def job_of(shot: Shot, kind: Any, session: Session, start: Start | None) -> Job:
    """The job that `values_of` wrote down."""
    values = {name: value for name, value in shot.job.items() if name not in _NOT_KEPT}
    variation = values.pop("variation", None)
    return Job(
        kind=kind,
        owner=session.owner,
        variation=Variation(**variation) if variation else None,
        start=start,
        **values,
    )


def start_of(session: Session, entry: Entry) -> Start | None:
    """What an entry's pictures start from. Raises RequestError where it is gone."""
    if not entry.start:
        return None
    return Start(session.shelf.path(entry.start["picture"]).read_bytes(), entry.start["strength"])


def _start_values(session: Session, start: Start | None) -> dict[str, Any] | None:
    if start is None:
        return None
    session.shelf.put_start(start)  # it may have made room for others meanwhile
    return {"picture": start.name, "strength": start.strength}
