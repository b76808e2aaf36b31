"""Clicks on a page, and what it shows afterwards."""

from collections.abc import Callable
from typing import Any

from app.page import handlers
from app.page.click import Click, Form, Studio
from app.page.session import Session
from app.page.views import grid_view, stage_view

FORM = Form("snowy mountains", "", 4, 4, 3.0, "consistency", random_seeds=False, seed=10, full_steps=8)
NewSession = Callable[[], Session]


def make_grid(studio: Studio, session: Session, form: Form = FORM) -> dict[str, Any]:
    handlers.preview(Click(studio, session, form=form))
    return settled_grid(session)


def settled_grid(session: Session) -> dict[str, Any]:
    session.settle()
    view = grid_view(session)
    assert view is not None
    return view


def refine(studio: Studio, session: Session, seed: int, steps: float = 8) -> dict[str, Any]:
    assert session.grid
    handlers.refine(Click(studio, session, {"grid": session.grid.id, "seed": seed}, Form(full_steps=steps)))
    session.settle()
    view = stage_view(session)
    assert view is not None
    return view


def picture_of(session: Session, address: str) -> bytes:
    place, shelf, file = address.split("/")
    assert (place, shelf) == ("pictures", session.shelf.name)
    return session.shelf.path(file.removesuffix(".png")).read_bytes()
