"""From jobs' events to what a session shows: previews fill the grid, the refinement fills the stage."""

import time
from dataclasses import replace

from app.history.shelf import Shot
from app.jobs.handle import Handle, merge
from app.jobs.job import Cancelled, Done, Event, Failed, Job, Queued, RequestError, Step
from app.jobs.request import refinement_of
from app.page.click import Click, Studio
from app.page.likeness import compare
from app.page.session import Grid, Session, Stage, Tile, note_of, record_grid, seed_label, values_of
from app.page.speculation import Guesses

# Serving and painting new previews takes about so long where server and browser share two cores.
PAINTING_S = 0.4


def paint(click: Click, tiles: list[Tile]) -> None:
    """Show `tiles` as the session's grid, and have the pictures made that are missing."""
    studio, session = click.studio, click.session
    refinements = [refinement_of(tile.job, click.form.full_steps, click.final_solver) for tile in tiles]
    missing = [tile for tile in tiles if not tile.name]
    handles = studio.backend.submit_all([tile.job for tile in missing])
    for handle in session.previews:
        handle.cancel()
    session.guesses.drop()
    ignored = tuple(studio.backend.facts.unknown_words(tiles[0].job.prompt))
    grid = Grid(tiles, note="Waiting for the first previews …", ignored=ignored)
    session.grid, session.previews = grid, handles
    shown = {tile.name for tile in tiles}
    session.picks = [pick for pick in session.picks if pick.running or pick.tile.name in shown]
    session.changed()

    def follow() -> None:
        _follow_previews(studio, session, grid, missing, handles)
        _guess(studio, session, grid, refinements)

    session.follow(follow)


def _follow_previews(
    studio: Studio, session: Session, grid: Grid, missing: list[Tile], handles: list[Handle]
) -> None:
    """Fill the missing tiles as their events come."""
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
                    record_grid(session, grid)
                case Failed():
                    tile.problem = event.message
                case Cancelled():
                    tile.problem = "Cancelled."
            if grid.busy:
                grid.note = _progress(event) or grid.note
            else:
                made = [tile for tile in missing if tile.name]
                seconds = time.perf_counter() - began
                grid.note = f"{note_of(made)} · {seconds:.1f} s" if made else "No previews were made."
        session.changed()


def _guess(studio: Studio, session: Session, grid: Grid, refinements: list[Job]) -> None:
    """Refine the previews speculatively, after a pause for painting them."""
    if any(tile.problem for tile in grid.tiles):
        return
    time.sleep(PAINTING_S)
    with session.lock:
        picked = session.stage and session.stage.grid == grid.id
        if session.grid is grid and not picked:
            session.guesses = Guesses.begin(studio.backend, refinements)
            if session.pointed:  # meanwhile
                session.guesses.favour(session.pointed)


def follow_refinement(studio: Studio, session: Session, stage: Stage, handle: Handle) -> None:
    """Show the progress of a refinement, and at its end the likeness of preview and final.

    The end of one that is not on the stage any more is told.
    """
    for event in handle.events():
        final = None
        if isinstance(event, Done):
            try:
                final = _keep_final(session, stage, event)
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
                    if stage in session.picks and session.stage is not stage:
                        told = (
                            f"The picture of seed {seed_label(stage.job)} is finished, too: it is in Earlier."
                        )
                        session.tell(told, "info")
                case Failed():
                    stage.state, stage.message = "stopped", event.message
                    if stage in session.picks and session.stage is not stage:
                        session.tell(f"The picture of seed {seed_label(stage.job)}: {event.message}")
                case Cancelled():
                    stage.state, stage.message = "stopped", "Cancelled. The preview is still there."
        session.changed()


def _keep_final(session: Session, stage: Stage, done: Done) -> Shot:
    """Put a final on the shelf and into the history. Raises RequestError if it can't be kept."""
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


def _progress(event: Event) -> str:
    """Return a message on a grid's progress, or "" if the event has none."""
    match event:
        case Queued() if event.place:
            return f"{event.place} in line before these, about {_seconds(event.estimate_s)}"
        case Step():
            return f"Sketching, about {_seconds(event.remaining_s)} left"
    return ""


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
