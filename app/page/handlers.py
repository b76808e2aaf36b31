"""The actions of clicks. A click on Refine goes this way, from the browser to the worker and back:

1. `static/grid.js` calls `act("refine", …)` with the grid's id and the preview's seed; `act` in `backend.js`
   triggers the event "act" of `gr.HTML#studio`.
2. `layout.build_page`: the listener `act` makes a `Click` of what was sent, and passes it to `perform`.
3. `perform` looks "refine" up in `ACTIONS` and calls `refine(click)`.
4. `refine` builds a job and submits it: `click.studio.backend.submit(job)`. That is a
   `app.server.metered.MeteredBackend`, which counts and limits, and passes it on to a backend of
   `app.backends`: by default `app.worker.Worker`, whose thread calls the network.
5. `progress.follow_refinement` reads the job's events in a thread and changes `session.stage`.
6. `live`: the page's stream sends what `views.stage_view` says of it, and `static/stage.js` shows that.

Each function returns at once. Values come from the browser and may be anything: what can't be done raises
RequestError with a message for the user, and changes nothing.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from app.jobs.job import RequestError, Variation
from app.jobs.request import build_jobs, refinement_of, reseeded, variations_of
from app.jobs.seeds import fresh_seeds
from app.page import starting
from app.page.click import Click
from app.page.form import check_size
from app.page.progress import follow_refinement, paint
from app.page.session import Session, Stage, Tile, record_grid, show_entry

# V shows the preview and this many variations, with the noise turned by this amount towards other seeds'.
VARIATIONS = 3
VARIATION_AMOUNT = 0.3
# Maximum number of clicks that a cancel names, and length of their names.
MAX_CALLS = 8
MAX_CALL_LETTERS = 32

Watch = Callable[[Click], AbstractContextManager[Click]]
"""A context around a click's action; yields the click to perform, which may have another studio."""


def perform(click: Click, submits: bool, watch: Watch) -> None:
    """Perform the action values["do"], unless a cancel named this click.

    Args:
        submits: whether the click came with the form and through the queue, as those of SUBMITTING do.
        watch: context around the action.
    """
    name = click.values.get("do")
    if not isinstance(name, str) or name not in ACTIONS or submits != (name in SUBMITTING):
        raise RequestError("This page is out of date. Please load it again.")
    if is_called_off(click.session, click.values):
        return click.session.tell("Cancelled.", "info")
    with watch(click) as watched:
        ACTIONS[name](watched)
    if is_called_off(click.session, click.values):  # meanwhile
        _cancel_running(click.session)


def preview(click: Click) -> None:
    """Make a new grid from the form. values["strength"] replaces that of the picture to start from."""
    session, form, facts = click.session, click.form, click.studio.backend.facts
    width, height = check_size(form.size, facts)
    variation = None if form.random_seeds else Variation.parse(form.variation)
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
        strength=click.values.get("strength"),
        variation=variation,
        owner=session.owner,
    )
    start = jobs[0].start
    with session.lock:
        if session.grid and session.grid.busy and session.grid.asks_the_same(jobs):
            raise RequestError("These previews are already on their way.")
        paint(click, [Tile(job) for job in jobs])
        if start and not facts.edits:
            session.start, session.strength = start, start.strength


def reroll(click: Click) -> None:
    """Replace the previews that are not kept, or all with values["all"], by those of fresh seeds.

    The kept ones stay in their places. The new ones use the settings of these, not those of the form.
    """
    with click.session.lock:
        grid = click.grid()
        if grid.busy:
            raise RequestError("These previews are already on their way.")
        stay = {tile.seed for tile in grid.tiles if tile.kept and not click.values.get("all")}
        if len(stay) == len(grid.tiles):
            raise RequestError("All previews are kept. Unmark one to reroll it.")
        fresh = iter(fresh_seeds(len(grid.tiles), taken=[tile.seed for tile in grid.tiles]))
        tiles = [
            replace(tile) if tile.seed in stay else Tile(reseeded(tile.job, next(fresh)))
            for tile in grid.tiles
        ]
        paint(click, tiles)


def vary(click: Click) -> None:
    """Make a grid of a preview and of others near it."""
    with click.session.lock:
        tile = click.tile()
        near = [Tile(job) for job in variations_of(tile.job, VARIATIONS, VARIATION_AMOUNT)]
        paint(click, [replace(tile, kept=False), *near])


def keep(click: Click) -> None:
    """Keep a preview through the next reroll, or unmark it."""
    with click.session.lock:
        tile = click.tile()
        tile.kept = not tile.kept
        record_grid(click.session, click.grid())
    click.session.changed()


def refine(click: Click) -> None:
    """Refine a preview from its own noise, onto the stage; others that are being refined go on.

    One that was refined like this before is shown again.
    """
    session = click.session
    with session.lock:
        tile, grid = click.tile(), click.grid()
        job = refinement_of(tile.job, click.form.full_steps, click.final_solver)
        if all(entry.id != grid.id for entry in session.shelf.entries):
            record_grid(session, grid)  # it was deleted, and is needed again, for its final
        known = session.pick_of(tile)
        if known and known.job == job and known.state != "stopped":
            if known is session.stage and known.running:
                raise RequestError("This one is already being refined.")
            session.stage = known
            return session.changed()
        handle = session.guesses.take(job) or click.studio.backend.submit(job)
        stage = Stage(grid.id, tile, job, handle=handle)
        session.refinement, session.stage = handle, stage
        session.picks.append(stage)
    session.changed()
    session.follow(lambda: follow_refinement(click.studio, session, stage, handle))


def show(click: Click) -> None:
    """Put a preview onto the stage as it is, for a study whose previews are finished pictures."""
    with click.session.lock:
        tile, grid = click.tile(), click.grid()
        click.session.stage = Stage(
            grid.id, tile, tile.job, "done", 100, "", name=tile.name, revision=tile.revision
        )
    click.session.changed()


def point_at(click: Click) -> None:
    """Favour the preview that the user points at, as it is likely to be picked."""
    session, values = click.session, click.values
    with session.lock:
        tile = session.grid.find(values.get("seed")) if session.grid else None
        if tile and session.grid and values.get("grid") == session.grid.id:
            session.pointed = tile.job
            session.guesses.favour(tile.job)


def cancel(click: Click) -> None:
    """Cancel the refinement on the stage, or else the others, or else the running previews.

    A cancel does not queue and may overtake what it is meant for. So values["calls"] names the page's latest
    clicks of SUBMITTING, each by its values["call"]; one that arrives later is not begun.
    """
    calls = click.values.get("calls")
    with click.session.lock:
        if isinstance(calls, list):
            click.session.called_off = tuple(str(call)[:MAX_CALL_LETTERS] for call in calls[:MAX_CALLS])
        _cancel_running(click.session)


def is_called_off(session: Session, values: Mapping[str, Any]) -> bool:
    """Whether a cancel named the click with these values."""
    return "call" in values and values["call"] in session.called_off


def open_entry(click: Click) -> None:
    """Bring a grid of the history back, with its final."""
    show_entry(click.session, click.session.shelf.find(click.values.get("entry")))


def delete_entry(click: Click) -> None:
    """Delete a grid from the history, or bring it back with values["undo"]."""
    entry, undo = click.values.get("entry"), bool(click.values.get("undo"))
    click.session.shelf.delete(entry, undo)
    if not undo:
        click.session.tell("Deleted.", "info", undo=entry)


def clear_history(click: Click) -> None:
    """Delete everything that this browser has made, at once and for good."""
    session = click.session
    with session.lock:
        session.stop()
        session.shelf.clear()
        session.grid = session.stage = session.start = None
        session.picks = []
    session.tell("Everything that you made here is deleted.", "info")


# By the name that the page's scripts send.
ACTIONS: Mapping[str, Callable[[Click], None]] = {
    "preview": preview,
    "reroll": reroll,
    "vary": vary,
    "refine": refine,
    "keep": keep,
    "point_at": point_at,
    "cancel": cancel,
    "begin": starting.begin_with_final,
    "begin_anew": starting.begin_with_nothing,
    "open": open_entry,
    "delete": delete_entry,
    "clear": clear_history,
}
# Those that submit jobs come with the form and through Gradio's queue. See `QUEUED` in static/backend.js.
SUBMITTING = frozenset({"preview", "reroll", "vary", "refine"})


def _cancel_running(session: Session) -> None:
    with session.lock:
        staged = session.stage and session.stage.running and session.stage.handle
        others = [pick.handle for pick in session.picks if pick.running]
        for handle in [staged] if staged else others or session.previews:
            if handle:
                handle.cancel()
