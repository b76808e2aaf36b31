"""Which picture a tab's next grids start from: one from a file, a final, or that of an earlier picture."""

from collections.abc import Mapping
from typing import Any

from app.jobs.job import RequestError, Start
from app.jobs.uploads import start_from
from app.page.form import made_here, start_of_settings
from app.page.session import Session


def begin_with(session: Session, data: bytes) -> None:
    """Have the next grids start from the picture in a file. Raises RequestError, in words, if it is none."""
    start = start_from(data, session.strength)
    session.shelf.put_start(start)
    _begin(session, start)


def begin_with_final(session: Session, wish: Mapping[str, Any]) -> None:
    """The same with the finished picture on the stage, which wish["stage"] names."""
    stage = session.stage
    if stage is None or stage.id != wish.get("stage") or not stage.name:
        raise RequestError("That picture is not finished. Refine a preview first.")
    begin_with(session, session.shelf.path(stage.name).read_bytes())


def begin_with_nothing(session: Session) -> None:
    """Have the next grids start from noise alone; what is being made goes on."""
    _begin(session, None)


def begin_as(session: Session, wish: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Have the next grids start as the picture that `wanted` tells of (see `app.page.handlers.wanted_of`).

    Gives, in words, what lacks for that. A link that names no start leaves what there is, since it is
    followed again at every refresh.
    """
    made = start_of_settings(wanted)
    if made is None:
        if made_here(wanted) and "link" not in wish:
            begin_with_nothing(session)
        return []
    mark, session.strength = made
    data = session.shelf.find_start(mark)
    _begin(session, Start(data, session.strength) if data else None)
    missing = (
        "It was made from a starting picture, which is not here: add that picture to have the same made."
    )
    return [] if data else [missing]


def _begin(session: Session, start: Start | None) -> None:
    with session.lock:
        session.start = start
    session.changed()
