"""The views of a study's page; they hide how pictures are made, so conditions look alike.

The names are those of `app.page.views`, since the same scripts show both pages.
"""

import math
from typing import Any

from app.backends.base import Backend
from app.page.session import Session
from app.page.views import View, grid_view, picture_address, stage_view, status_view
from app.study.page.participation import Participation, Participations
from app.study.plan import Study
from app.study.plan.labels import fill

# Progress is sent in this many parts: finer ones would give away the number of steps.
PARTS = 4
# Only what is named here is passed on of the ordinary page's views; the scripts also need the empty values.
GRID = ("id", "prompt", "busy")
TILE = ("seed", "picture", "ready", "kept")
STAGE = ("id", "grid", "state", "seed", "prompt", "preview", "picture")
EMPTY_STAGE = {
    "label": "",
    "tags": ["", ""],
    "likeness": {"words": "", "detail": ""},
    "facts": [],
    "link": {},
    "file": "",
}


def study_views(visits: Participations, backend: Backend, session: Session) -> dict[str, Any]:
    """Return everything that a page of the study shows."""
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


def own_words(study: Study, message: str, instead: str = "problem") -> str:
    """Return a message if it is one of the study's own labels, or else the label named `instead`."""
    return message if message in study.labels.values() else study.labels[instead]


def page_view(visit: Participation) -> View:
    """Return the page of the participant's phase."""
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
        view |= {
            "outcome": visit.outcome,
            "picture": picture_address(visit.session.shelf, visit.final) if chosen else "",
            "questions": [vars(each) for each in study.ratings if chosen],
        }
    if visit.phase == "closing":
        view["questions"] = [vars(each) | {"choices": [*each.choices]} for each in visit.closing_questions]
    if visit.phase == "thanks" and visit.who:
        view |= {"text": _paragraphs(study.thanks), "code": visit.who.code}
    return view


def clock_view(visit: Participation) -> View:
    """Return the whole seconds until the trial's time is up, and until giving up is offered."""
    study = visit.lab.study
    return {
        "left": max(0, math.ceil(study.time_cap_s - visit.seconds)),
        "give_up": max(0, math.ceil(study.give_up_after_s - visit.seconds)),
    }


def blind_grid(session: Session, not_made: str) -> View | None:
    """Return the part of `app.page.views.grid_view` that a participant may see.

    Args:
        not_made: the message for a picture that is missing, in place of the reason.
    """
    view = grid_view(session)
    if view is None:
        return None
    tiles = [
        {name: tile[name] for name in TILE}
        | {"step": _part(tile["step"], tile["steps"]), "steps": PARTS}
        | {"problem": tile["problem"] and not_made, "label": "", "how": ""}
        for tile in view["tiles"]
    ]
    return {name: view[name] for name in GRID} | {"note": "", "ignored": [], "tiles": tiles}


def blind_stage(session: Session, not_finished: str) -> View | None:
    """Return the part of `app.page.views.stage_view` that a participant may see.

    Args:
        not_finished: the message for a picture that was stopped, in place of the reason.
    """
    view = stage_view(session)
    if view is None:
        return None
    shown = {name: view[name] for name in STAGE} | EMPTY_STAGE
    shown["percent"] = 100 * _part(view["percent"], 100) // PARTS
    shown["message"] = not_finished if view["state"] == "stopped" else ""
    return shown


def _part(step: int, steps: int) -> int:
    return PARTS * step // steps if steps else 0


def _paragraphs(text: str) -> list[str]:
    return [" ".join(each.split()) for each in text.split("\n\n") if each.strip()]
