"""The picture that a tab's next grids start from: from a file, a final, or that of an earlier picture."""

from app.jobs.job import RequestError, Start
from app.jobs.uploads import start_from
from app.page.click import Click
from app.page.session import Session


def begin_with(session: Session, data: bytes) -> None:
    """Have the next grids start from the picture in a file. Raises RequestError if it can't be used."""
    set_start(session, session.shelf.put_start(start_from(data, session.strength)))


def begin_with_final(click: Click) -> None:
    """Have the next grids start from the finished picture on the stage, which values["stage"] names."""
    session, stage = click.session, click.session.stage
    if stage is None or stage.id != click.values.get("stage") or not stage.name:
        raise RequestError("That picture is not finished. Refine a preview first.")
    begin_with(session, session.shelf.path(stage.name).read_bytes())


def begin_with_nothing(click: Click) -> None:
    """Have the next grids start from noise alone; what is being made goes on."""
    set_start(click.session, None)


def set_start(session: Session, start: Start | None) -> None:
    """Have the next grids start from this, and show it."""
    with session.lock:
        session.start = start
    session.changed()
