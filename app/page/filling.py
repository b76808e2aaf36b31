"""Fill the form in: from a link, a PNG, or a picture of the grid or the history."""

from collections.abc import Mapping
from typing import Any

from app.jobs.job import Record, RequestError
from app.models import ModelFacts
from app.page.click import Click
from app.page.form import (
    form_for,
    form_values,
    from_link,
    from_record,
    held_values,
    made_here,
    parts_with,
    start_of_settings,
)
from app.page.session import job_of, start_of
from app.page.starting import set_start

# A click to fill the form in names one of these.
SOURCES = {"link", "picture", "entry", "stage"}


def fill(click: Click) -> dict[str, dict[str, Any]]:
    """Return what changes in the form: Gradio's properties of its parts, by their names in `Form`.

    With values["new"] the page has just been opened, and its form is fitted to the model; values["held"] has
    the fields that its tab had before. values["dropped"] names a picture that was dropped on the page, and so
    does the message on it.
    """
    facts, session, held = click.studio.backend.facts, click.session, click.values.get("held")
    changes = form_for(facts) if click.values.get("new") else {}
    if isinstance(held, Mapping):
        return _with_values(changes, held_values(held, facts), facts)
    if SOURCES & click.values.keys():
        dropped = click.values.get("dropped")
        more = {"about": "fill"} | ({"dropped": dropped[:32]} if isinstance(dropped, str) else {})
        try:
            wanted = wanted_of(click)
            values, notes = form_values(wanted, facts)
            notes += set_start_as(click, wanted)
        except RequestError as error:
            session.tell(str(error), **more)
            return changes
        words = ["Prompt, seed and settings of this picture are back."] if "dropped" in more else []
        if words + notes:
            session.tell(" ".join(words + notes), "warning" if notes else "info", **more)
        if made_here(wanted) and "size" not in values:
            changes["size"] = form_for(facts)["size"]
        changes = _with_values(changes, values, facts)
    return changes


def _with_values(
    changes: Mapping[str, dict[str, Any]], values: Mapping[str, Any], facts: ModelFacts
) -> dict[str, dict[str, Any]]:
    parts = parts_with(values, facts)
    return {name: changes.get(name, {}) | parts.get(name, {}) for name in {**changes, **parts}}


def wanted_of(click: Click) -> dict[str, Any]:
    """Return how the picture that a click names was made, in the form of `app.page.form.from_picture`.

    Raises RequestError if there is no such picture.
    """
    values, session = click.values, click.session
    if isinstance(values.get("link"), Mapping):
        return from_link(values["link"])
    if isinstance(values.get("picture"), Mapping):
        return dict(values["picture"])
    if "entry" in values:
        entry = session.shelf.find(values["entry"])
        for shot in [*entry.previews, *entry.finals]:
            if shot.picture == values.get("picture"):
                job = job_of(shot, "preview", session, start_of(session, entry))
                return from_record(Record(job, shot.revision, 0, 0, shot.decoder))
        raise RequestError("This picture is gone from the history.")
    stage = session.stage
    if stage is None or stage.id != values.get("stage"):
        raise RequestError("That picture has been replaced. Please use the one that you see now.")
    wanted = from_record(Record(stage.tile.job, stage.tile.revision, 0, 0, stage.tile.decoder))
    wanted["settings"] |= {"Full steps": str(stage.job.steps), "Full sampler": stage.job.solver}
    return wanted


def set_start_as(click: Click, wanted: Mapping[str, Any]) -> list[str]:
    """Have the next grids start as the wanted picture did; return a message if its start is not here.

    A link that names no start leaves the present one, since it is followed again at every refresh.
    """
    session, made = click.session, start_of_settings(wanted)
    if made is None:
        if made_here(wanted) and "link" not in click.values:
            set_start(session, None)
        return []
    mark, session.strength = made
    name = session.shelf.find_start(mark)
    set_start(session, session.shelf.start(name, session.strength) if name else None)
    if name:
        return []
    return ["It was made from a starting picture that is not here. Add that picture to get the same result."]
