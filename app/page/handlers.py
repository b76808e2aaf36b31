"""What happens when somebody clicks: from wishes to jobs, and from the jobs' events to the session.

Each function here does one thing that the page offers and returns at once; what takes time is followed in a
thread of its own, and `app.page.live` shows the session as it changes. Wishes come from the browser, so anything
may be in them: what can't be done raises RequestError, in words, and changes nothing.
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from app.backends.base import Backend
from app.history.shelf import Shot
from app.jobs.handle import Handle, merge
from app.jobs.job import (
    Cancelled,
    Done,
    Event,
    Failed,
    Job,
    Queued,
    Record,
    RequestError,
    Step,
)
from app.jobs.request import build_jobs, refinement_of, reseeded, variations_of
from app.jobs.seeds import fresh_seeds
from app.page.form import check_size, from_link, from_record
from app.page.likeness import compare
from app.page.live import Sketches
from app.page.session import (
    Grid,
    Session,
    Stage,
    Tile,
    entry_of,
    job_of,
    note_of,
    show_entry,
    start_of,
    values_of,
)
from app.page.speculation import Guesses

# What a click in the page says; anything may be in it.
Wish = Mapping[str, Any]

FINAL_SOLVER = "dpm++2m"
# What V gives: the preview itself, and so many near it, whose noise is turned so far towards another seed's.
VARIATIONS = 3
VARIATION_AMOUNT = 0.3
# Serving and painting new previews takes about so long where server and browser share two cores.
PAINTING_S = 0.4
# A cancel names so many wishes at the most, by names of so many letters.
MAX_CALLS = 8
MAX_CALL_LETTERS = 32


@dataclass(frozen=True)
class Form:
    """The page's form, as it comes from the browser. size: see `app.page.form.sizes_of`, or the model's own."""

    prompt: str
    negative_prompt: str = ""
    count: float = 4
    steps: float = 6
    guidance: float = 3.0
    solver: str = "consistency"
    random_seeds: bool = True
    seed: float = 1
    full_steps: float = 40
    size: str | None = None


@dataclass(frozen=True)
class Studio:
    """What all handlers need: who makes the pictures, where sketches of them are shown, and what refines."""

    backend: Backend
    sketches: Sketches
    final_solver: str = FINAL_SOLVER


def preview(studio: Studio, session: Session, form: Form, strength: object = None) -> None:
    """Make a new grid; its tiles are painted as they arrive.

    strength: of the picture that the session starts from, if it has changed.
    """
    facts = studio.backend.facts
    width, height = check_size(form.size, facts)
    jobs = build_jobs(
        "preview",
        facts,
        prompt=form.prompt,
        negative_prompt=form.negative_prompt,
        count=form.count,
        seed=None if form.random_seeds else form.seed,
        steps=form.steps,
        guidance=form.guidance,
        solver=form.solver,
        width=width,
        height=height,
        start=session.start,
        strength=strength,
        owner=session.owner,
    )
    start = jobs[0].start
    with session.lock:
        if session.grid and session.grid.busy and session.grid.asks_the_same(jobs):
            raise RequestError("These previews are already on their way.")
        _paint(studio, session, [Tile(job) for job in jobs], form.full_steps)
        if start and not facts.edits:
            session.start, session.strength = start, start.strength


def reroll(studio: Studio, session: Session, wish: Wish, full_steps: float) -> None:
    """Replace the previews that are not kept (all of them with wish["all"]) by those of fresh seeds.

    The kept ones stay in their places exactly as they are, and the new ones are asked for as these were,
    even if the form has changed since.
    """
    with session.lock:
        grid = _grid_of(session, wish)
        if grid.busy:
            raise RequestError("These previews are already on their way.")
        stay = {tile.seed for tile in grid.tiles if tile.kept and not wish.get("all")}
        fresh = iter(fresh_seeds(len(grid.tiles), taken=[tile.seed for tile in grid.tiles]))
        tiles = [
            replace(tile) if tile.seed in stay else Tile(reseeded(tile.job, next(fresh)))
            for tile in grid.tiles
        ]
        if len(stay) == len(tiles):
            raise RequestError("You keep all of these. Let go of one to have it rerolled.")
        _paint(studio, session, tiles, full_steps)


def vary(studio: Studio, session: Session, wish: Wish, full_steps: float) -> None:
    """Make a grid of the preview of wish["seed"] and of others near it."""
    with session.lock:
        tile = _tile_of(session, wish)
        if tile.job.variation:
            raise RequestError(
                f"This is a variation already. Refine it, or vary the one it came from, #{tile.job.seed}."
            )
        near = [Tile(job) for job in variations_of(tile.job, VARIATIONS, VARIATION_AMOUNT)]
        _paint(studio, session, [replace(tile, kept=False), *near], full_steps)


def keep(session: Session, wish: Wish) -> None:
    """Keep the preview of wish["seed"] through the next reroll, or, if it is kept, don't."""
    with session.lock:
        tile = _tile_of(session, wish)
        tile.kept = not tile.kept
        assert session.grid
        _record(session, session.grid)
    session.changed()


def refine(studio: Studio, session: Session, wish: Wish, full_steps: float) -> None:
    """Refine the preview of wish["seed"] from its own noise, onto the stage."""
    with session.lock:
        tile = _tile_of(session, wish)
        job = refinement_of(tile.job, full_steps, studio.final_solver)
        if session.grid and all(entry.id != session.grid.id for entry in session.shelf.entries):
            _record(session, session.grid)  # it was deleted, and yet somebody wants it, with its final
        if session.refinement and not session.refinement.ended:
            if session.refinement.job == job:
                raise RequestError("This one is already being refined.")
            session.refinement.cancel()
        handle = session.guesses.take(job) or studio.backend.submit(job)
        stage = Stage(wish["grid"], tile, job)
        session.refinement, session.stage = handle, stage
    session.changed()
    session.follow(lambda: _follow_refinement(studio, session, stage, handle))


def show(session: Session, wish: Wish) -> None:
    """Put the picture of wish["seed"] onto the stage as it is: nothing of it is left to be refined."""
    with session.lock:
        tile = _tile_of(session, wish)
        session.stage = Stage(wish["grid"], tile, tile.job, "done", 100, "")
        session.stage.name, session.stage.revision = tile.name, tile.revision
    session.changed()


def point_at(session: Session, wish: Wish) -> None:
    """The preview of wish["seed"] is being looked at, so it may well be the one that will be picked."""
    tile = session.grid.find(wish.get("seed")) if session.grid else None
    if tile and session.grid and wish.get("grid") == session.grid.id:
        with session.lock:
            session.pointed = tile.job
            session.guesses.favour(tile.job)


def cancel(session: Session, wish: Wish = MappingProxyType({})) -> None:
    """Cancel the refinement that is running, or else the previews that are on their way.

    wish["calls"] names the page's latest wishes; one that is still to come is not begun, see `is_called_off`.
    """
    calls = wish.get("calls")
    with session.lock:
        if isinstance(calls, list):
            session.called_off = tuple(str(call)[:MAX_CALL_LETTERS] for call in calls[:MAX_CALLS])
        if session.refinement and not session.refinement.ended:
            session.refinement.cancel()
        else:
            for handle in session.previews:
                handle.cancel()


def is_called_off(session: Session, wish: Wish) -> bool:
    """Whether the wish was cancelled; maybe before it came, since a cancel does not queue."""
    return "call" in wish and wish["call"] in session.called_off


def open_entry(session: Session, wish: Wish) -> None:
    """Bring a grid of the history back, with its final."""
    show_entry(session, session.shelf.find(wish.get("entry")))


def delete_entry(session: Session, wish: Wish) -> None:
    """Delete a grid from the history; wish["undo"] brings it back."""
    undo = bool(wish.get("undo"))
    session.shelf.delete(wish.get("entry"), undo)
    if not undo:
        session.tell("Deleted.", "info", undo=wish.get("entry"))


def clear_history(session: Session) -> None:
    """Delete everything that this browser has made, at once and for good."""
    with session.lock:
        session.stop()
        session.shelf.clear()
        session.grid = session.stage = session.start = None
    session.tell("Everything that you made here is deleted.", "info")


def wanted_of(session: Session, wish: Wish) -> dict[str, Any]:
    """What to fill the form with (see `app.page.form`), whatever the wish names: a link's query, what a PNG
    said, or a picture of the grid or of the history. Raises RequestError where there is no such picture."""
    if isinstance(wish.get("link"), Mapping):
        return from_link(wish["link"])
    if isinstance(wish.get("picture"), Mapping):
        return dict(wish["picture"])
    if "entry" in wish:
        entry = session.shelf.find(wish["entry"])
        for shot in [*entry.previews, *entry.finals]:
            if shot.picture == wish.get("picture"):
                job = job_of(shot, "preview", session, start_of(session, entry))
                return from_record(Record(job, shot.revision, 0, 0))
    tile = _tile_of(session, wish)
    return from_record(Record(tile.job, tile.revision, 0, 0))


def _grid_of(session: Session, wish: Wish) -> Grid:
    if session.grid is None or wish.get("grid") != session.grid.id:
        raise RequestError("These previews have been replaced. Please pick from those that you see now.")
    return session.grid


def _tile_of(session: Session, wish: Wish) -> Tile:
    tile = _grid_of(session, wish).find(wish.get("seed"))
    if tile is None or not tile.name:
        raise RequestError("That preview is not there. Pick one that you see.")
    return tile


def _record(session: Session, grid: Grid) -> None:
    """Write the grid, as far as it is finished, into the history, or tell why that can't be done."""
    old = None
    with contextlib.suppress(RequestError):
        old = session.shelf.find(grid.id)
    try:
        session.shelf.record(entry_of(session, grid, old))
    except RequestError as error:
        session.tell(str(error))


def _paint(studio: Studio, session: Session, tiles: list[Tile], full_steps: float) -> None:
    """Show `tiles` as the session's grid, and have the pictures made that are missing."""
    refinements = [refinement_of(tile.job, full_steps, studio.final_solver) for tile in tiles]
    missing = [tile for tile in tiles if not tile.name]
    handles = studio.backend.submit_all([tile.job for tile in missing])
    for handle in session.previews:
        handle.cancel()
    session.guesses.drop()
    ignored = tuple(studio.backend.facts.unknown_words(tiles[0].job.prompt))
    grid = Grid(tiles, note="Waiting for the first previews …", ignored=ignored)
    session.grid, session.previews = grid, handles
    session.changed()
    session.follow(lambda: _follow_previews(studio, session, grid, missing, handles, refinements))


def _follow_previews(
    studio: Studio,
    session: Session,
    grid: Grid,
    missing: list[Tile],
    handles: list[Handle],
    refinements: list[Job],
) -> None:
    """Fill the missing tiles as their events come, and then guess which will be picked."""
    began = time.perf_counter()
    for position, event in merge(handles):
        tile, name = missing[position], ""
        if isinstance(event, Done):
            try:
                name = session.shelf.put(event.record.png(event.picture))
            except RequestError as error:
                event = Failed(str(error))
        with session.lock:
            match event:
                case Step():
                    tile.step, tile.steps = event.step, event.steps
                    tile.sketch = studio.sketches.put(event.picture) if event.picture else tile.sketch
                case Done():
                    tile.name, tile.revision = name, event.record.revision
                    tile.decoder = event.record.decoder
                    _record(session, grid)
                case Failed():
                    tile.problem = event.message
                case Cancelled():
                    tile.problem = "Cancelled."
            seconds = time.perf_counter() - began
            grid.note = _progress_note(grid, event) if grid.busy else _made_note(missing, seconds)
        session.changed()
    _guess(studio, session, grid, refinements)


def _guess(studio: Studio, session: Session, grid: Grid, refinements: list[Job]) -> None:
    """Begin to refine what may be picked, once the previews have had the processor to be painted with."""
    if any(tile.problem for tile in grid.tiles):
        return
    time.sleep(PAINTING_S)
    with session.lock:
        picked = session.stage and session.stage.grid == grid.id
        if session.grid is grid and not picked:
            session.guesses = Guesses.begin(studio.backend, refinements)
            if session.pointed:  # meanwhile
                session.guesses.favour(session.pointed)


def _follow_refinement(studio: Studio, session: Session, stage: Stage, handle: Handle) -> None:
    """Show on the stage how far the refinement is, and at the end how alike preview and final are."""
    for event in handle.events():
        final = None
        if isinstance(event, Done):
            try:
                final = _finish(session, stage, event)
            except RequestError as error:
                event = Failed(str(error))
        with session.lock:
            match event:
                case Queued() if event.place:
                    stage.message = f"{event.place} in line before it, about {_seconds(event.estimate_s)}"
                case Step():
                    stage.percent = round(100 * event.step / event.steps)
                    stage.message = f"{stage.percent} %, about {_seconds(event.remaining_s)} left"
                    stage.sketch = studio.sketches.put(event.picture) if event.picture else stage.sketch
                case Done() if final:
                    stage.state, stage.percent, stage.message = "done", 100, ""
                    stage.name, stage.revision = final.picture, final.revision
                    stage.likeness, stage.seconds = final.likeness, final.seconds
                case Failed():
                    stage.state, stage.message = "stopped", event.message
                case Cancelled():
                    stage.state, stage.message = "stopped", "Cancelled. The preview is still there."
        session.changed()


def _finish(session: Session, stage: Stage, done: Done) -> Shot:
    """Put a final on the shelf and into the history. Raises RequestError where it can't be kept."""
    try:
        likeness = compare(session.shelf.open(stage.tile.name), done.picture)
        entry = session.shelf.find(stage.grid)
    except RequestError as error:
        raise RequestError("Its preview was deleted meanwhile.") from error
    exact = likeness.decibels == float("inf")
    number = "equal pixel by pixel" if exact else f"{likeness.decibels:.1f} dB PSNR"
    final = Shot(
        values_of(done.record.job),
        session.shelf.put(done.record.png(done.picture)),
        done.record.revision,
        likeness={"words": likeness.words, "detail": f"Preview against final: {number}"},
        seconds=done.record.seconds,
    )
    with session.lock:
        session.shelf.record(replace(entry, finals=[*entry.finals, final]))
    return final


def _made_note(missing: list[Tile], seconds: float) -> str:
    made = [tile for tile in missing if tile.name]
    return f"{note_of(made)} · {seconds:.1f} s" if made else "No previews were made."


def _progress_note(grid: Grid, event: Event) -> str:
    match event:
        case Queued() if event.place:
            return f"{event.place} in line before these, about {_seconds(event.estimate_s)}"
        case Step():
            return f"Sketching, about {_seconds(event.remaining_s)} left"
    return grid.note


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
