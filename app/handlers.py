"""What happens when somebody clicks: from the page's inputs to jobs, and from their events to what is shown.

Handlers know the worker and the session and nothing of Gradio's components; the two views they feed,
app/page/grid.js and app/page/stage.js, say what values they take.
"""

import base64
import io
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from html import escape
from typing import Any

import gradio as gr
from PIL import Image

from app.backend import Backend
from app.handle import merge
from app.job import Cancelled, Done, Event, Failed, Job, Queued, RequestError, Step, check_number
from app.likeness import compare
from app.seeds import following_seeds, fresh_seeds
from app.session import Grid, Session, Tile
from app.speculation import Guesses

View = dict[str, Any]
# What a click in a view says; anything may be in it.
Wish = Mapping[str, Any]

# Progress is shown at most this often; pictures and endings at once.
REFRESH_S = 0.15
FINAL_SOLVER = "dpm++2m"


@dataclass(frozen=True)
class Settings:
    """The page's form, as it comes from the browser."""

    prompt: str
    negative_prompt: str
    count: float
    steps: float
    guidance: float
    solver: str
    random_seeds: bool
    seed: float
    full_steps: float


def grid_view(session: Session) -> View | None:
    """What the grid shows now."""
    return _grid_view(session.grid) if session.grid else None


def stage_view(session: Session) -> View | None:
    """What the stage shows now."""
    return session.stage


def _in_words(
    now: Callable[[Session], View | None],
) -> Callable[[Callable[..., Iterator[View]]], Callable[..., Iterator[View | None]]]:
    """For handlers that yield views: a RequestError becomes a warning, and the view stays as it is `now`."""

    def wrap(handler: Callable[..., Iterator[View]]) -> Callable[..., Iterator[View | None]]:
        @wraps(handler)
        def told(worker: Backend, session: Session, *args: Any) -> Iterator[View | None]:
            try:
                yield from handler(worker, session, *args)
            except RequestError as error:
                gr.Warning(escape(str(error)))
            # Gradio empties what a handler should fill and does not; "no change" is not a value it has here.
            yield now(session)

        return told

    return wrap


@_in_words(grid_view)
def show_previews(worker: Backend, session: Session, settings: Settings, owner: str) -> Iterator[View]:
    """Make a new grid and paint its tiles as they arrive. Yields values of the grid view."""
    count = int(check_number("count", settings.count))
    if settings.random_seeds:
        seeds = fresh_seeds(count)
    else:
        seeds = following_seeds(int(check_number("seed", settings.seed)), count)
    first = Job(
        kind="preview",
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        seed=seeds[0],
        steps=int(check_number("steps", settings.steps)),
        guidance=settings.guidance,
        solver=settings.solver,
        model=worker.facts.name,
        size=worker.facts.size,
        owner=owner,
    )
    jobs = [replace(first, seed=seed) for seed in seeds]
    if session.grid and session.grid.busy and session.grid.asks_the_same(jobs):
        raise RequestError("These previews are already on their way.")
    yield from _paint(worker, session, [Tile(job) for job in jobs], settings.full_steps)


@_in_words(grid_view)
def reroll(worker: Backend, session: Session, full_steps: float, wish: Wish) -> Iterator[View]:
    """Replace the previews that are not in wish["keep"] by those of fresh seeds. Yields grid views.

    The kept ones stay in their places exactly as they are, and the new ones are asked for as these were,
    even if the form has changed since.
    """
    grid = _grid_of(session, wish)
    if grid.busy:
        raise RequestError("These previews are already on their way.")
    kept = wish.get("keep")
    kept = kept if isinstance(kept, list) else []
    fresh = iter(fresh_seeds(len(grid.tiles), taken=[tile.job.seed for tile in grid.tiles]))
    tiles = [
        tile if tile.job.seed in kept else Tile(replace(tile.job, seed=next(fresh))) for tile in grid.tiles
    ]
    if tiles != grid.tiles:
        yield from _paint(worker, session, tiles, full_steps)


@_in_words(stage_view)
def refine(worker: Backend, session: Session, full_steps: float, wish: Wish) -> Iterator[View]:
    """Refine the preview of wish["seed"] from its own noise. Yields values of the stage view."""
    tile = _grid_of(session, wish).find(wish.get("seed"))
    if tile is None or tile.picture is None:
        raise RequestError("That preview is not there. Pick one that you see.")
    job = _refinement(tile, full_steps)
    if session.refinement and not session.refinement.ended:
        if session.refinement.job == job:
            raise RequestError("This one is already being refined.")
        session.refinement.cancel()
    session.refinement = handle = session.guesses.take(job) or worker.submit(job)
    try:
        for view in _stage_views(tile, job, handle.events()):
            if session.refinement is handle:
                session.stage = view
                yield view
    finally:
        handle.cancel()


def point_at(session: Session, wish: Wish) -> None:
    """The preview of wish["seed"] is being looked at, so it may well be the one that will be picked."""
    if session.grid and wish.get("grid") == session.grid.id:
        session.guesses.favour(wish.get("seed"))


def stop_refining(session: Session) -> None:
    """Cancel the refinement that is running."""
    if session.refinement:
        session.refinement.cancel()


def _grid_of(session: Session, wish: Wish) -> Grid:
    if session.grid is None or wish.get("grid") != session.grid.id:
        raise RequestError("These previews have been replaced. Please pick from those that you see now.")
    return session.grid


def _refinement(tile: Tile, full_steps: float) -> Job:
    steps = int(check_number("steps", full_steps))
    return replace(tile.job, kind="refine", steps=steps, solver=FINAL_SOLVER)


def _paint(worker: Backend, session: Session, tiles: list[Tile], full_steps: float) -> Iterator[View]:
    """Show `tiles` as the session's grid, make the pictures that are missing, and guess which is wanted."""
    refinements = [_refinement(tile, full_steps) for tile in tiles]
    missing = [tile for tile in tiles if not tile.picture]
    handles = worker.submit_all([tile.job for tile in missing])
    for handle in session.previews:
        handle.cancel()
    session.guesses.drop()
    prompt = tiles[0].job.prompt
    grid = Grid(
        tiles, note="Waiting for the first previews …", ignored=tuple(worker.facts.unknown_words(prompt))
    )
    session.grid, session.previews = grid, handles
    shown = 0.0
    yield _grid_view(grid)
    began = time.perf_counter()
    try:
        for position, event in merge(handles):
            if session.grid is not grid:
                return
            _note_event(missing[position], event)
            seconds = time.perf_counter() - began
            grid.note = _progress_note(grid, event) if grid.busy else _finished_note(missing, seconds)
            if isinstance(event, Done | Failed | Cancelled) or time.perf_counter() - shown > REFRESH_S:
                shown = time.perf_counter()
                yield _grid_view(grid)
    finally:
        for handle in handles:
            handle.cancel()
    if not any(tile.problem for tile in tiles):
        session.guesses = Guesses.begin(worker, refinements)


def _note_event(tile: Tile, event: Event) -> None:
    match event:
        case Step():
            tile.step, tile.steps = event.step, event.steps
            if event.picture:
                tile.shown = _jpeg_url(event.picture)
        case Done():
            tile.picture, tile.record = event.picture, event.record
            tile.shown = _png_url(event.record.png(event.picture))
        case Failed():
            tile.problem = event.message
        case Cancelled():
            tile.problem = "Cancelled."


def _progress_note(grid: Grid, event: Event) -> str:
    match event:
        case Queued() if event.place:
            return f"{event.place} in line before these, about {_seconds(event.estimate_s)}"
        case Step():
            return f"Sketching, about {_seconds(event.remaining_s)} left"
    return grid.note


def _finished_note(made: list[Tile], seconds: float) -> str:
    job = made[0].job
    number = f"{len(made)} preview{'s' if len(made) != 1 else ''}"
    return f"{number} in {seconds:.1f} s · {job.steps} steps · {job.solver}. Pick one to refine it."


def _grid_view(grid: Grid) -> View:
    return {
        "id": grid.id,
        "prompt": grid.tiles[0].job.prompt,
        "note": grid.note,
        "ignored": _ignored_note(grid.ignored),
        "busy": grid.busy,
        "tiles": [
            {
                "seed": tile.job.seed,
                "picture": tile.shown,
                "ready": tile.picture is not None,
                "step": tile.step,
                "steps": tile.steps,
                "problem": tile.problem,
            }
            for tile in grid.tiles
        ],
    }


def _ignored_note(words: tuple[str, ...]) -> str:
    if not words:
        return ""
    return f"The model does not know and ignored: {', '.join(f'“{word}”' for word in words)}."


def _stage_views(tile: Tile, job: Job, events: Iterator[Event]) -> Iterator[View]:
    """What the stage shows for each event of a refinement, at a readable rate."""
    view: View = {
        "id": f"{job.seed}-{time.monotonic_ns()}",
        "state": "running",
        "seed": job.seed,
        "prompt": job.prompt,
        "preview": tile.shown,
        "picture": "",
        "steps": [tile.job.steps, job.steps],
        "percent": 0,
        "message": "Starting …",
        "likeness": {"words": "", "detail": ""},
        "facts": [],
        "file": "",
    }
    shown = 0.0
    for event in events:
        match event:
            case Queued() if event.place:
                view["message"] = f"{event.place} in line before this one, about {_seconds(event.estimate_s)}"
            case Step():
                view["percent"] = round(100 * event.step / event.steps)
                view["message"] = f"Refining, {view['percent']} %, about {_seconds(event.remaining_s)} left"
                if event.picture:
                    view["picture"] = _jpeg_url(event.picture)
                elif time.perf_counter() - shown < REFRESH_S:
                    continue
            case Done():
                view |= _finished_stage(tile, event)
            case Failed():
                view |= {"state": "stopped", "message": event.message, "picture": ""}
            case Cancelled():
                view |= {
                    "state": "stopped",
                    "message": "Cancelled. The preview is still there.",
                    "picture": "",
                }
        shown = time.perf_counter()
        yield dict(view)


def _finished_stage(tile: Tile, event: Done) -> View:
    assert tile.picture
    record, job = event.record, event.record.job
    likeness = compare(tile.picture, event.picture)
    number = (
        "equal pixel by pixel" if likeness.decibels == float("inf") else f"{likeness.decibels:.1f} dB PSNR"
    )
    facts = [
        ["Prompt", job.prompt],
        ["Not wanted", job.negative_prompt],
        ["Preview", f"{tile.job.steps} steps, {tile.job.solver}"],
        ["Final", f"{job.steps} steps, {job.solver}, {record.seconds:.1f} s"],
        ["Guidance", f"{job.guidance:g}"],
        ["Model", f"{job.model} {record.revision[:10]}"],
    ]
    return {
        "state": "done",
        "picture": _png_url(record.png(event.picture)),
        "percent": 100,
        "message": "Drag across the picture to compare it with its preview.",
        "likeness": {"words": likeness.words, "detail": f"Preview against final: {number}"},
        "facts": [fact for fact in facts if fact[1]],
        "file": f"{job.model}-seed-{job.seed}-{job.steps}-steps.png",
    }


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _png_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _jpeg_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
