"""The views of the page: texts, numbers and addresses of pictures, as plain values for its scripts."""

from typing import Any

from app.backends.base import Backend
from app.jobs.job import Job, RequestError, exact_number
from app.models import ModelFacts
from app.page.click import Studio
from app.page.form import turned
from app.page.session import Session, Shelf, Stage, Tile, seed_label

View = dict[str, Any]


def page_views(backend: Backend, session: Session) -> View:
    """Return all that the ordinary page shows."""
    with session.lock:
        views: View = {
            "status": status_view(backend) | {"login": session.login},
            "start": start_view(session),
            "grid": grid_view(session),
            "stage": stage_view(session),
            "notices": session.notices,
        }
    return views | {"history": history_view(session.shelf)}


def status_view(backend: Backend) -> View:
    """Return whether pictures can be made and by which model; a message if not."""
    try:
        facts = backend.facts
    except RequestError as loading:
        return {"ready": False, "message": str(loading), "model": "loading …", "edits": False, "warnings": []}
    message = (
        "" if backend.healthy else "No pictures can be made at present. The operator has to look into it."
    )
    return {
        "ready": True,
        "message": message,
        "model": _model_line(facts),
        "edits": facts.edits,
        "warnings": list(facts.warnings),
    }


def start_view(session: Session) -> View | None:
    """Return the picture that the next grid starts from."""
    if session.start is None:
        return None
    picture = picture_address(session.shelf, session.start.name, small=True)
    return {"picture": picture, "strength": round(100 * session.start.strength)}


def grid_view(session: Session) -> View | None:
    """Return the grid as it is now."""
    grid = session.grid
    if grid is None:
        return None
    return {
        "id": grid.id,
        "prompt": grid.tiles[0].job.prompt,
        "size": _size(grid.tiles[0].job),
        "note": grid.note,
        "ignored": list(grid.ignored),
        "busy": grid.busy,
        "tiles": [
            {
                "seed": tile.seed,
                "label": seed_label(tile.job),
                "picture": tile_picture(session.shelf, tile),
                "ready": bool(tile.name),
                "step": tile.step,
                "steps": tile.steps,
                "problem": tile.problem,
                "kept": tile.kept,
                "how": f"{tile.job.steps} steps, {tile.job.solver}",
                "pick": pick_view(session, tile),
            }
            for tile in grid.tiles
        ],
    }


def pick_view(session: Session, tile: Tile) -> View | None:
    """Return how far the refinement of a preview is; None without one."""
    pick = session.pick_of(tile)
    if pick is None:
        return None
    return {"state": pick.state, "percent": pick.percent, "message": pick.message} | _pictures(session, pick)


def _pictures(session: Session, stage: Stage) -> View:
    final = picture_address(session.shelf, stage.name) if stage.name else ""
    return {
        "picture": final or (stage.sketch if stage.state == "running" else ""),
        "tags": [f"Preview · {stage.tile.job.steps} steps", f"Final · {stage.job.steps} steps"],
    }


def stage_view(session: Session) -> View | None:
    """Return the stage as it is now."""
    stage = session.stage
    if stage is None:
        return None
    return _pictures(session, stage) | {
        "id": stage.id,
        "grid": stage.grid,
        "state": stage.state,
        "seed": stage.tile.seed,
        "label": seed_label(stage.job),
        "prompt": stage.job.prompt,
        "size": _size(stage.job),
        "preview": picture_address(session.shelf, stage.tile.name),
        "percent": stage.percent,
        "message": stage.message,
        "likeness": stage.likeness or {"words": "", "detail": ""},
        "facts": _facts(stage),
        "link": _link(stage),
        "file": f"{stage.job.model.replace('/', '-')}-seed-{stage.job.seed}-{stage.job.steps}-steps.png",
    }


def history_view(shelf: Shelf) -> list[View]:
    """Return what was made in this browser, the newest first."""
    return [
        {
            "id": entry.id,
            "time": entry.time,
            "prompt": first.job["prompt"],
            "pictures": [
                {
                    "seed": shot.job["seed"],
                    "small": picture_address(shelf, shot.picture, small=True),
                    "name": shot.picture,
                    "final": final,
                    "how": f"{shot.job['steps']} steps, {shot.job['solver']}",
                }
                for final, shots in ((True, entry.finals), (False, entry.previews))
                for shot in shots
            ],
        }
        for entry in shelf.entries
        for first in [*entry.previews, *entry.finals][:1]
    ]


def _start(job: Job) -> str:
    if not job.start:
        return ""
    return "a picture" if job.start.strength == 1 else f"a picture, strength {job.start.strength:.0%}"


def _size(job: Job) -> tuple[int, int]:
    return job.width, job.height


def _variation(job: Job) -> str:
    return f"noise of seed {job.seed} {turned(job.variation)}" if job.variation else ""


def tile_picture(shelf: Shelf, tile: Tile) -> str:
    """Return the address of a preview or its sketch; none if that would hide why it can't be made."""
    if tile.name:
        return picture_address(shelf, tile.name)
    return "" if tile.problem else tile.sketch


def picture_address(shelf: Shelf, name: str, small: bool = False) -> str:
    """Return the address of a picture on a shelf, below the page's own."""
    return f"pictures/{shelf.name}/{name}.{'jpg' if small else 'png'}"


def _model_line(facts: ModelFacts) -> str:
    by = f", previews drawn by {facts.preview_decoder}" if facts.preview_decoder else ""
    line = f"{facts.name}, {facts.width} × {facts.height} pixels, on {facts.place}{by}"
    if facts.learned.tables or facts.learned.policy:
        return line
    return f"{line}. It has no learned solver; the command “consistency-solver learn” makes one"


def _link(stage: Stage) -> dict[str, str]:
    """Return the query of a link to this picture, see `app.page.form.from_link`."""
    job = stage.tile.job
    link = {"prompt": job.prompt, "negative_prompt": job.negative_prompt, "seed": str(job.seed)}
    link |= {"steps": str(job.steps), "solver": job.solver, "guidance": exact_number(job.guidance)}
    link |= {"model": job.model, "size": f"{job.width}x{job.height}", "full_steps": str(stage.job.steps)}
    if stage.job.solver != Studio.final_solver:
        link |= {"full_solver": stage.job.solver}
    if job.variation:
        link |= {"variations": str(job.variation)}
    if job.start:
        link |= {"start": job.start.mark, "strength": exact_number(job.start.strength)}
    return {name: value for name, value in link.items() if value}


def _facts(stage: Stage) -> list[list[str]]:
    job, preview = stage.job, stage.tile.job
    drawn = f", drawn by {stage.tile.decoder}" if stage.tile.decoder else ""
    took = f", {stage.seconds:.1f} s" if stage.seconds else ""
    facts = [
        ["Prompt", job.prompt],
        ["Negative prompt", job.negative_prompt],
        ["Preview", f"{preview.steps} steps, {preview.solver}{drawn}"],
        ["Final", f"{job.steps} steps, {job.solver}{took}"],
        ["Guidance", f"{job.guidance:g}"],
        ["Variation", _variation(job)],
        ["Made from", _start(job)],
        ["Size", f"{job.width} × {job.height} pixels"],
        ["Model", f"{job.model} {stage.revision[:10]}"],
    ]
    return [fact for fact in facts if fact[1]]
