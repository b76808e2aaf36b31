"""What a tab shows outlives a refresh and a restart, and nothing is lost."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.history.shelf import History
from app.jobs.job import RequestError
from app.page import handlers
from app.page.click import Click, Form, Studio
from app.page.filling import wanted_of
from app.page.session import Session, Sessions
from app.page.views import grid_view, stage_view
from tests.app.page.clicks import FORM, NewSession, make_grid, refine, settled_grid


def of(sessions: Sessions, tab: int = 0, browser: int = 0) -> Session:
    return sessions.of(f"{browser:064x}", f"{tab:064x}")


def test_a_refresh_finds_everything_as_it_was(studio: Studio, tmp_path: Path) -> None:
    sessions = Sessions(History(tmp_path), grace_s=60)
    session = of(sessions)
    sessions.attach(session, print)
    grid = make_grid(studio, session)
    handlers.refine(Click(studio, session, {"grid": grid["id"], "seed": 10}, Form(full_steps=100)))
    sessions.detach(session, print)
    again = of(sessions)
    assert again is session
    sessions.attach(again, print)
    again.settle()
    stage = stage_view(again)
    assert stage is not None
    assert stage["state"] == "done", "the refinement went on while nobody looked"


def test_a_closed_tab_ends_what_runs_for_it(studio: Studio, tmp_path: Path) -> None:
    sessions = Sessions(History(tmp_path), grace_s=0.05)
    session = of(sessions)
    sessions.attach(session, print)
    handlers.preview(Click(studio, session, form=replace(FORM, steps=100, count=8)))
    sessions.detach(session, print)
    session.settle()
    assert all(handle.ended for handle in session.previews)
    assert {tile["problem"] for tile in settled_grid(session)["tiles"]} == {"Cancelled."}


def test_after_a_restart_the_last_grid_is_there(studio: Studio, tmp_path: Path) -> None:
    session = of(Sessions(History(tmp_path)))
    grid = make_grid(studio, session)
    handlers.keep(Click(studio, session, {"grid": grid["id"], "seed": 11}))
    done = refine(studio, session, 12)
    again = of(Sessions(History(tmp_path)), tab=5)
    view, stage = grid_view(again), stage_view(again)
    assert view is not None and stage is not None
    assert view["id"] == grid["id"]
    assert [tile["picture"] for tile in view["tiles"]] == [tile["picture"] for tile in grid["tiles"]]
    assert [tile["kept"] for tile in view["tiles"]] == [False, True, False, False]
    assert (stage["picture"], stage["likeness"], stage["facts"]) == (
        done["picture"],
        done["likeness"],
        done["facts"],
    )
    assert refine(studio, again, 13)["state"] == "done", "and it can be gone on with"


def test_a_second_tab_begins_empty_and_another_browser_sees_nothing(studio: Studio, tmp_path: Path) -> None:
    sessions = Sessions(History(tmp_path))
    first = of(sessions)
    sessions.attach(first, print)
    make_grid(studio, first)
    second = of(sessions, tab=1)
    assert second.grid is None
    assert second.shelf.entries == first.shelf.entries
    assert of(sessions, browser=1).shelf.entries == []


def test_only_ids_are_taken_for_ids(tmp_path: Path) -> None:
    sessions = Sessions(History(tmp_path))
    wrong: list[Any] = [None, "", "../etc", "A" * 64, "0" * 63, "0" * 65, 7, ["0" * 64]]
    for browser in wrong:
        with pytest.raises(RequestError, match="load it again"):
            sessions.of(browser, "0" * 64)
    for tab in (None, "short", "../../../../../etc/passwd", 7):
        with pytest.raises(RequestError, match="load it again"):
            sessions.of("0" * 64, tab)


def test_deleting_can_be_undone_and_all_can_be_deleted(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    first = make_grid(studio, session)
    make_grid(studio, session, replace(FORM, seed=20))
    handlers.delete_entry(Click(studio, session, {"entry": first["id"]}))
    assert session.notices[-1]["undo"] == first["id"]
    assert first["id"] not in [entry.id for entry in session.shelf.entries]
    handlers.delete_entry(Click(studio, session, {"entry": first["id"], "undo": True}))
    handlers.open_entry(Click(studio, session, {"entry": first["id"]}))
    view = grid_view(session)
    assert view and [tile["seed"] for tile in view["tiles"]] == [10, 11, 12, 13]
    handlers.clear_history(Click(studio, session))
    assert session.shelf.entries == [] and session.grid is None
    assert not session.shelf.folder.exists()


def test_any_earlier_picture_is_a_start(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    grid = make_grid(studio, session, replace(FORM, negative_prompt="lake", guidance=2.5))
    refine(studio, session, 11)
    assert session.stage and session.stage.grid == grid["id"]
    wanted = wanted_of(Click(studio, session, {"stage": session.stage.id}))
    assert (wanted["prompt"], wanted["negative_prompt"]) == ("snowy mountains", "lake")
    assert wanted["settings"]["Seed"] == "11"
    entry = session.shelf.entries[0]
    same = wanted_of(Click(studio, session, {"entry": entry.id, "picture": entry.previews[1].picture}))
    final = {"Full steps": "8", "Full sampler": "dpm++2m"}
    assert wanted == same | {"settings": same["settings"] | final}


def test_a_full_disk_is_told_where_the_picture_would_be(
    studio: Studio, new_session: NewSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = new_session()
    write, full = Path.write_bytes, [".png"]

    def short(path: Path, data: bytes) -> int:
        if path.suffix in full and path.is_relative_to(session.shelf.folder):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", short)
    grid = make_grid(studio, session)
    assert not grid["busy"] and all("the disk is full" in tile["problem"] for tile in grid["tiles"])
    full[:] = [".new"]  # there is room for pictures, but not for the history
    grid = make_grid(studio, session)
    assert all(tile["ready"] for tile in grid["tiles"])
    assert any("the disk is full" in notice["text"] for notice in session.notices)
    full[:] = [".png"]
    stage = refine(studio, session, seed=10)
    assert stage["state"] == "stopped" and "the disk is full" in stage["message"]
    full.clear()
    assert refine(studio, session, seed=10)["state"] == "done"
