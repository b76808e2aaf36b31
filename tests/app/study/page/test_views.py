"""A study's page uses only the study's words, and each tab is a participant."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.backends.base import Backend
from app.jobs.job import RequestError
from app.page.session import Sessions
from app.page.sketches import Sketches
from app.server.limits import Limits
from app.study.log.recording import RecordingBackend
from app.study.log.store import open_store
from app.study.log.writer import Writer
from app.study.page.layout import PlainShelf, TabHistory
from app.study.page.participation import Lab, Participations
from app.study.page.views import study_views
from app.study.plan.definition import Study
from app.worker import Worker
from tests.app.study.page.test_participation import do

TABS = ("0" * 64, "1" * 64)
Join = Callable[..., tuple[Any, ...]]


class Broken(RecordingBackend):
    """A backend that can't make pictures any more."""

    healthy = False


@pytest.fixture
def join(worker: Worker, study: Study, tmp_path: Path) -> Any:
    """Has two tabs open a German study by one login; gives all visits, and each one's."""
    writer = Writer(open_store(str(tmp_path / "log")))

    def join(backend: Backend = worker) -> tuple[Any, ...]:
        german = replace(study, language="de")
        visits = Participations(Lab(german, writer, str(tmp_path / "log"), backend, Sketches(), Limits(100)))
        sessions = Sessions(TabHistory(tmp_path / "now", shelves=PlainShelf))
        return visits, *(visits.of(sessions.of(tab, tab, "lab")) for tab in TABS)

    yield join
    writer.close()


def test_tabs_with_one_login_are_different_participants(join: Join) -> None:
    visits, one, other = join()
    do(one, "agree", agree=True)
    assert (one.phase, other.phase) == ("trial", "consent")
    do(other, "agree", agree=True)
    assert one.who.participant != other.who.participant and one.who.place != other.who.place
    do(one, "preview")
    assert study_views(visits, visits.lab.backend, one.session)["grid"]
    assert study_views(visits, visits.lab.backend, other.session)["grid"] is None


def test_the_apps_messages_are_replaced_by_the_studys_words(
    join: Join, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    visits, visit, _ = join()
    labels = visits.lab.study.labels
    do(visit, "agree", agree=True)
    visit.session.tell("There is no room on the disk.")
    do(visit, "satisfied")
    views = study_views(visits, worker, visit.session)
    assert [each["text"] for each in views["notices"]] == [labels["problem"], labels["pick_first"]]
    assert views["status"]["message"] == ""
    broken = Broken(worker, lambda body: pytest.fail("nothing is asked for"))
    assert study_views(visits, broken, visit.session)["status"]["message"] == labels["broken"]

    def full(self: PlainShelf, png: bytes, name: str = "") -> str:
        raise RequestError("There is no room on the disk.")

    do(visit, "preview")
    monkeypatch.setattr(PlainShelf, "put", full)
    visit.session.stage = None
    tile = visit.session.grid.tiles[0]
    if visit.now.condition.mode == "full":
        visit.plan[visit.number] = replace(visit.now, condition=visit.lab.study.conditions[1])
    do(visit, "refine", seed=tile.seed)
    stage = study_views(visits, worker, visit.session)["stage"]
    assert (stage["state"], stage["message"]) == ("stopped", labels["not_finished"])
    do(visit, "reroll")
    grid = study_views(visits, worker, visit.session)["grid"]
    assert [(each["problem"], each["picture"]) for each in grid["tiles"]] == [(labels["not_made"], "")] * 2


def test_a_chosen_picture_that_cannot_be_kept_still_ends_the_trial(join: Join) -> None:
    _, visit, _ = join()
    visit.lab = replace(visit.lab, study=replace(visit.lab.study, keep_pictures=True, practice=""))
    do(visit, "agree", agree=True)
    do(visit, "preview", prompt="a lake")
    do(visit, "refine", seed=visit.session.grid.tiles[0].seed)
    visit.session.shelf.clear()
    do(visit, "satisfied")
    assert visit.phase == "rating"
