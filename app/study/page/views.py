"""What a study's page is told: nothing that says how pictures are made, so that nobody can tell conditions.

The names are those of `app.page.views`, for the same scripts show both.
"""

import math
from typing import Any

from app.backends.base import Backend
from app.page.session import Session
from app.page.views import View, picture_address, status_view, tile_picture
from app.study.page.participation import Participation, Participations, questions_of
from app.study.plan.definition import Study
from app.study.plan.labels import fill

# How far a picture is, is told in so many parts; the number of its steps could be read off finer ones.
PARTS = 4


def study_views(visits: Participations, backend: Backend, session: Session) -> dict[str, Any]:
    """All that a page of the study shows."""
    visit = visits.of(session)
    with session.lock:
        visit.catch_up()
        status, study = status_view(backend), visit.lab.study
        words = study.labels
        broken = status["ready"] and status["message"]
        trial = visit.phase == "trial"
        return {
            "status": {"ready": status["ready"], "message": words["broken"] if broken else ""},
            "study": page_view(visit),
            "clock": clock_view(visit) if trial else None,
            "grid": blind_grid(session, words["not_made"]) if trial else None,
            "stage": blind_stage(session, words["not_finished"]) if trial else None,
            "notices": [each | {"text": own_words(study, each["text"])} for each in session.notices],
        }


def own_words(study: Study, told: str, instead: str = "problem") -> str:
    """What was told, where it is in the study's own words, or else the label that is to stand for it."""
    return told if told in study.labels.values() else study.labels[instead]


def page_view(visit: Participation) -> View:
    """The page that the participant is on."""
    study, words = visit.lab.study, visit.lab.study.labels
    view: View = {
        "phase": visit.phase,
        "language": study.language,
        "title": study.title,
        "words": dict(words),
    }
    if visit.phase == "consent":
        own_words = any(task.goal for task in study.tasks) or bool(study.texts)
        return view | {"text": _paragraphs(study.consent), "own_words": own_words}
    if visit.phase in ("trial", "rating"):
        count = sum(not each.practice for each in visit.plan)
        task, place = visit.now.task, visit.now.position + 1
        heading = words["practice"] if visit.now.practice else fill(words["trial"], place=place, count=count)
        done = sum(not each.practice for each in visit.plan[: visit.number])
        view |= {"trial": visit.trial, "heading": heading, "done": done, "count": count}
        view |= {"task": task.prompt or task.goal, "own": bool(task.goal)}
    if visit.phase == "rating":
        chosen = visit.outcome == "satisfied"
        fields = ("id", "question", "low", "high", "points")
        view |= {
            "outcome": visit.outcome,
            "picture": picture_address(visit.session.shelf, visit.final) if chosen else "",
            "questions": [{name: getattr(each, name) for name in fields} for each in study.ratings if chosen],
        }
    if visit.phase == "closing":
        view["questions"] = [
            {"id": each.id, "question": each.question, "choices": list(each.choices)}
            for each in questions_of(visit)
        ]
    if visit.phase == "thanks" and visit.who:
        view |= {"text": _paragraphs(study.thanks), "code": visit.who.code}
    return view


def clock_view(visit: Participation) -> View:
    """Whole seconds until the trial's time is over, and until giving it up is offered."""
    study = visit.lab.study
    return {
        "left": max(0, math.ceil(study.time_cap_s - visit.seconds)),
        "give_up": max(0, math.ceil(study.give_up_after_s - visit.seconds)),
    }


def blind_grid(session: Session, not_made: str) -> View | None:
    """See `app.page.views.grid_view`. not_made: what to say in place of why a picture is not there."""
    grid = session.grid
    if grid is None:
        return None
    return {
        "id": grid.id,
        "prompt": grid.tiles[0].job.prompt,
        "note": "",
        "ignored": "",
        "busy": grid.busy,
        "tiles": [
            {
                "seed": tile.seed,
                "label": "",
                "picture": tile_picture(session.shelf, tile),
                "ready": bool(tile.name),
                "step": _part(tile.step, tile.steps),
                "steps": PARTS,
                "problem": tile.problem and not_made,
                "kept": tile.kept,
                "how": "",
            }
            for tile in grid.tiles
        ],
    }


def blind_stage(session: Session, not_finished: str) -> View | None:
    """See `app.page.views.stage_view`. not_finished: what to say in place of why it was stopped."""
    stage = session.stage
    if stage is None:
        return None
    final = picture_address(session.shelf, stage.name) if stage.name else ""
    return {
        "id": stage.id,
        "grid": stage.grid,
        "state": stage.state,
        "seed": stage.tile.seed,
        "label": "",
        "prompt": stage.job.prompt,
        "preview": picture_address(session.shelf, stage.tile.name),
        "picture": final or (stage.sketch if stage.state == "running" else ""),
        "tags": ["", ""],
        "percent": 100 * _part(stage.percent, 100) // PARTS,
        "message": not_finished if stage.state == "stopped" else "",
        "likeness": {"words": "", "detail": ""},
        "facts": [],
        "link": {},
        "file": "",
    }


def _part(step: int, steps: int) -> int:
    return PARTS * step // steps if steps else 0


def _paragraphs(text: str) -> list[str]:
    return [" ".join(each.split()) for each in text.split("\n\n") if each.strip()]
