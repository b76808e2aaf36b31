"""What clicks do to a session, without a browser."""

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.jobs import metadata
from app.jobs.job import Cancelled, RequestError
from app.page import handlers
from app.page.click import Click, Form, Studio
from app.page.likeness import WORDS
from app.page.scripts import STATIC
from app.page.views import grid_view, stage_view
from tests.app.page.clicks import FORM, NewSession, make_grid, picture_of, refine, settled_grid


def test_a_grid_has_the_seeds_it_shows(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    grid = make_grid(studio, session)
    assert [tile["seed"] for tile in grid["tiles"]] == [10, 11, 12, 13]
    assert not grid["busy"]
    for tile in grid["tiles"]:
        parameters = metadata.read(picture_of(session, tile["picture"]))
        assert parameters.prompt == "snowy mountains"
        assert parameters.settings["Seed"] == str(tile["seed"])
        assert parameters.settings["Steps"] == "4"


def test_tiles_are_painted_as_they_arrive(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    ready: list[int] = []

    def note() -> None:
        with session.lock:
            view = grid_view(session)
        ready.append(sum(tile["ready"] for tile in view["tiles"]) if view else 0)

    session.listeners.add(note)
    make_grid(studio, session)
    assert ready[0] == 0
    assert ready == sorted(ready)
    assert {1, 2, 3, 4} <= set(ready)


def test_random_seeds_differ_between_grids(studio: Studio, new_session: NewSession) -> None:
    form = replace(FORM, random_seeds=True)
    session = new_session()
    first, second = make_grid(studio, session, form), make_grid(studio, session, form)
    assert not {t["seed"] for t in first["tiles"]} & {t["seed"] for t in second["tiles"]}


def test_kept_previews_stay_exactly_as_they_are(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    before = make_grid(studio, session)
    for seed in (11, 12, 13, 12):
        handlers.keep(Click(studio, session, {"grid": before["id"], "seed": seed}))
    before = settled_grid(session)
    handlers.reroll(Click(studio, session, {"grid": before["id"]}, Form(full_steps=8)))
    after = settled_grid(session)
    assert after["id"] != before["id"]
    assert [after["tiles"][i] for i in (1, 3)] == [before["tiles"][i] for i in (1, 3)]
    changed = {after["tiles"][i]["seed"] for i in (0, 2)}
    assert len(changed) == 2
    assert not changed & {10, 11, 12, 13}
    handlers.reroll(Click(studio, session, {"grid": after["id"], "all": True}, Form(full_steps=8)))
    assert not {11, 13} & {tile["seed"] for tile in settled_grid(session)["tiles"]}


def test_when_all_are_kept_there_is_nothing_to_reroll(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    grid = make_grid(studio, session)
    for tile in grid["tiles"]:
        handlers.keep(Click(studio, session, {"grid": grid["id"], "seed": tile["seed"]}))
    with pytest.raises(RequestError, match="All previews are kept"):
        handlers.reroll(Click(studio, session, {"grid": grid["id"]}, Form(full_steps=8)))


def test_a_reroll_asks_as_the_grid_was_asked(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    before = make_grid(studio, session, replace(FORM, steps=5, guidance=2))
    handlers.reroll(Click(studio, session, {"grid": before["id"]}, Form(full_steps=8)))
    assert len(settled_grid(session)["tiles"]) == 4
    assert session.grid is not None
    assert {(tile.job.steps, tile.job.guidance) for tile in session.grid.tiles} == {(5, 2)}


def test_a_pick_is_refined_from_the_same_noise(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    grid = make_grid(studio, session)
    percents: list[int] = []
    session.listeners.add(lambda: percents.append(session.stage.percent if session.stage else 0))
    done = refine(studio, session, 12, 12)
    assert percents == sorted(percents)
    assert (done["state"], done["percent"], done["seed"]) == ("done", 100, 12)
    assert done["preview"] == grid["tiles"][2]["picture"]
    settings = metadata.read(picture_of(session, done["picture"])).settings
    assert (settings["Seed"], settings["Steps"], settings["Sampler"]) == ("12", "12", "dpm++2m")
    assert done["likeness"]["words"] in [words for _, words in WORDS]
    assert done["file"] == "tiny-seed-12-12-steps.png"
    # The same seed at full steps, asked for by itself, is the same picture.
    assert session.grid is not None
    again = studio.backend.submit(
        replace(session.grid.tiles[2].job, kind="refine", steps=12, solver="dpm++2m")
    )
    ended: Any = list(again.events())[-1]
    shown = Image.open(io.BytesIO(picture_of(session, done["picture"])))
    assert np.abs(np.asarray(ended.picture).astype(int) - np.asarray(shown)).max() <= 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "   "}, "prompt is empty"),
        ({"prompt": "lake " * 40}, "too long"),
        ({"count": 9}, "number of previews"),
        ({"count": math.nan}, "not a number"),
        ({"steps": math.nan}, "not a number"),
        ({"guidance": math.inf}, "not a number"),
        ({"guidance": None}, "an empty field is not a number"),
        ({"seed": -4}, "The seed"),
        ({"full_steps": 0}, "number of steps"),
        ({"solver": "<b>magic</b>"}, "no solver “<b>magic"),
    ],
)
def test_mistakes_are_answered_with_a_message_and_change_nothing(
    studio: Studio, new_session: NewSession, change: dict, words: str
) -> None:
    session = new_session()
    before = make_grid(studio, session)
    with pytest.raises(RequestError, match=words):
        handlers.preview(Click(studio, session, form=replace(FORM, **change)))
    assert settled_grid(session) == before


def test_stale_and_broken_picks_are_answered_with_a_message(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    old = make_grid(studio, session)
    make_grid(studio, session, replace(FORM, seed=20))
    stale: list[dict[str, Any]] = [{"grid": old["id"], "seed": 10}, {}, {"grid": None, "seed": {}}]
    for wish in stale:
        with pytest.raises(RequestError, match="have been replaced"):
            handlers.refine(Click(studio, session, wish, Form(full_steps=10)))
        with pytest.raises(RequestError, match="have been replaced"):
            handlers.reroll(Click(studio, session, wish, Form(full_steps=8)))
        with pytest.raises(RequestError, match="have been replaced"):
            handlers.keep(Click(studio, session, wish))
    assert session.grid is not None
    strange: list[Any] = [10, None, "20", [], math.nan]
    for seed in strange:
        with pytest.raises(RequestError, match="not there"):
            handlers.refine(
                Click(studio, session, {"grid": session.grid.id, "seed": seed}, Form(full_steps=10))
            )


def test_full_steps_are_checked(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    grid = make_grid(studio, session)
    for steps in (math.nan, 0, 5000, None):
        with pytest.raises(RequestError, match="number of steps"):
            handlers.refine(Click(studio, session, {"grid": grid["id"], "seed": 10}, Form(full_steps=steps)))  # type: ignore[arg-type]


def test_variations_are_near_the_preview_that_they_come_from(
    studio: Studio, new_session: NewSession, tmp_path: Path
) -> None:
    session = new_session()
    before = make_grid(studio, session)
    handlers.vary(Click(studio, session, {"grid": before["id"], "seed": 12}, Form(full_steps=8)))
    after = settled_grid(session)
    assert after["tiles"][0]["picture"] == before["tiles"][2]["picture"]

    def pixels(tile: dict[str, Any]) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(picture_of(session, tile["picture"])))).astype(float)

    centre = pixels(before["tiles"][2])
    near = [np.abs(pixels(tile) - centre).mean() for tile in after["tiles"][1:]]
    far = [np.abs(pixels(before["tiles"][i]) - centre).mean() for i in (0, 1, 3)]
    assert min(near) > 0 and max(near) < min(far)
    varied = after["tiles"][1]
    assert varied["label"] == f"12 ~ {varied['seed']}"
    done = refine(studio, session, varied["seed"])
    settings = metadata.read(picture_of(session, done["picture"])).settings
    assert (settings["Seed"], settings["Variation seed"]) == ("12", str(varied["seed"]))
    handlers.open_entry(Click(studio, session, {"entry": after["id"]}))
    assert stage_view(session) == done | {"id": stage_view(session)["id"]}  # type: ignore[index]
    handlers.reroll(Click(studio, session, {"grid": after["id"]}, Form(full_steps=8)))
    assert session.grid and {tile.job.seed for tile in session.grid.tiles[1:]} == {12}


def test_a_double_click_is_answered_once(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    form = replace(FORM, steps=50)
    handlers.preview(Click(studio, session, form=form))
    assert session.grid
    shown = session.grid.id
    with pytest.raises(RequestError, match="already on their way"):
        handlers.preview(Click(studio, session, form=form))
    with pytest.raises(RequestError, match="already on their way"):
        handlers.reroll(Click(studio, session, {"grid": shown}, Form(full_steps=8)))
    assert settled_grid(session)["id"] == shown


def test_a_new_prompt_replaces_the_grid_that_was_still_growing(
    studio: Studio, new_session: NewSession
) -> None:
    session = new_session()
    handlers.preview(Click(studio, session, form=replace(FORM, steps=100)))
    growing = session.previews
    second = make_grid(studio, session, replace(FORM, prompt="a lake at night"))
    assert second["prompt"] == "a lake at night"
    assert all(handle.ended for handle in growing)


def test_refining_twice_is_answered_and_another_pick_goes_on_beside(
    studio: Studio, new_session: NewSession
) -> None:
    session = new_session()
    grid = make_grid(studio, session)

    def pick(seed: int, steps: int) -> None:
        assert session.grid
        handlers.refine(
            Click(studio, session, {"grid": session.grid.id, "seed": seed}, Form(full_steps=steps))
        )

    pick(10, 100)
    with pytest.raises(RequestError, match="already being refined"):
        pick(10, 100)
    first = session.stage
    pick(11, 10)
    second = session.stage
    assert first and second and first.running
    handlers.reroll(Click(studio, session, {"grid": grid["id"]}, Form(full_steps=8)))
    done = settled_grid(session)
    assert (first.state, second.state, session.stage) == ("done", "done", second)
    (entry,) = [each for each in session.shelf.entries if each.id == grid["id"]]
    assert {shot.job["seed"] for shot in entry.finals} == {10, 11}
    assert "The picture of seed 10 is finished, too" in session.notices[-1]["text"]
    assert all(tile["pick"] is None for tile in done["tiles"]), "these are others"
    handlers.open_entry(Click(studio, session, {"entry": grid["id"]}))
    picks = [tile["pick"] and tile["pick"]["state"] for tile in settled_grid(session)["tiles"]]
    assert picks == ["done", "done", None, None]
    made = len(entry.finals)
    pick(10, 100)
    assert session.stage and (session.stage.tile.seed, session.stage.state) == (10, "done"), (
        "it is shown again"
    )
    session.settle()
    assert len(session.shelf.find(grid["id"]).finals) == made


def test_a_cancel_ends_the_refinement_on_the_stage_before_the_others(
    studio: Studio, new_session: NewSession
) -> None:
    session = new_session()
    grid = make_grid(studio, session)
    for seed in (10, 11):
        handlers.refine(Click(studio, session, {"grid": grid["id"], "seed": seed}, Form(full_steps=100)))
    first, second = session.picks
    handlers.cancel(Click(studio, session))
    assert second.handle and isinstance(list(second.handle.events())[-1], Cancelled)
    assert first.running
    handlers.cancel(Click(studio, session))
    session.settle()
    assert (first.state, second.state) == ("stopped", "stopped")
    handlers.refine(Click(studio, session, {"grid": grid["id"], "seed": 10}, Form(full_steps=100)))
    assert session.stage and session.stage.running
    handlers.open_entry(Click(studio, session, {"entry": grid["id"]}))
    assert session.stage.running, "what is opened goes on"
    handlers.clear_history(Click(studio, session))
    session.settle()
    assert not session.picks and session.shelf.entries == []


def test_a_cancel_calls_off_what_it_names_and_nothing_else(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    late, other = {"do": "refine", "call": "1-1"}, {"do": "refine", "call": "1-2"}
    handlers.cancel(Click(studio, session, {"calls": ["1-0", "1-1"]}))
    assert handlers.is_called_off(session, late)
    assert not handlers.is_called_off(session, other)
    handlers.cancel(Click(studio, session))
    assert handlers.is_called_off(session, late), "it may still come"
    assert not handlers.is_called_off(session, {"do": "refine"})


@pytest.mark.parametrize("calls", [None, "1-1", {"1-1": 1}, [["1-1"], {}, None, "x" * 1_000_000] * 1000])
def test_odd_values_call_nothing_off_and_are_not_kept(
    studio: Studio, new_session: NewSession, calls: object
) -> None:
    session = new_session()
    handlers.cancel(Click(studio, session, {"calls": calls}))
    others: list[object] = ["1-1", ["1-1"], {}, None]
    for call in others:
        assert not handlers.is_called_off(session, {"call": call})
    assert sum(map(len, session.called_off)) < 1000


def test_refining_and_previews_can_be_cancelled(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    grid = make_grid(studio, session)
    handlers.refine(Click(studio, session, {"grid": grid["id"], "seed": 10}, Form(full_steps=100)))
    handlers.cancel(Click(studio, session))
    session.settle()
    stopped = stage_view(session)
    assert stopped is not None
    assert stopped["state"] == "stopped"
    assert "Cancelled" in stopped["message"]
    assert stopped["preview"] == grid["tiles"][0]["picture"]
    handlers.preview(Click(studio, session, form=replace(FORM, steps=100)))
    handlers.cancel(Click(studio, session))
    tiles = settled_grid(session)["tiles"]
    assert {(tile["problem"], tile["picture"]) for tile in tiles} == {("Cancelled.", "")}


def test_a_pick_from_a_deleted_grid_brings_it_back_with_all_its_finals(
    studio: Studio, new_session: NewSession
) -> None:
    session = new_session()
    grid = make_grid(studio, session)
    refine(studio, session, 10)
    handlers.delete_entry(Click(studio, session, {"entry": grid["id"]}))
    assert session.shelf.entries == []
    refine(studio, session, 11)
    (entry,) = session.shelf.entries
    assert (entry.id, [shot.job["seed"] for shot in entry.finals]) == (grid["id"], [10, 11])
    handlers.delete_entry(Click(studio, session, {"entry": grid["id"]}))
    handlers.keep(Click(studio, session, {"grid": grid["id"], "seed": 12}))
    (entry,) = session.shelf.entries
    assert len(entry.finals) == 2 and entry.previews[2].kept


def test_two_people_do_not_disturb_each_other(studio: Studio, new_session: NewSession) -> None:
    mine, yours = new_session(), new_session()
    handlers.preview(Click(studio, mine, form=FORM))
    handlers.preview(Click(studio, yours, form=replace(FORM, seed=50)))
    assert [t["seed"] for t in settled_grid(mine)["tiles"]] == [10, 11, 12, 13]
    assert [t["seed"] for t in settled_grid(yours)["tiles"]] == [50, 51, 52, 53]
    with pytest.raises(RequestError, match="no longer in your history"):
        handlers.open_entry(Click(studio, yours, {"entry": mine.grid.id if mine.grid else ""}))


def test_ignored_words_are_named(studio: Studio, new_session: NewSession) -> None:
    grid = make_grid(studio, new_session(), replace(FORM, prompt="snowy zeppelin mountains"))
    assert grid["ignored"] == ["zeppelin"]
    assert make_grid(studio, new_session())["ignored"] == []


# ---- by the names that the page's scripts send


def test_an_action_is_done_only_as_it_should_come(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    names: list[tuple[Any, bool]] = [(None, True), ([], True), ("", False), ("__init__", False)]
    names += [(name, name not in handlers.SUBMITTING) for name in handlers.ACTIONS]
    for name, submits in names:
        with pytest.raises(RequestError, match="out of date"):
            handlers.perform(Click(studio, session, {"do": name}, FORM), submits, nullcontext)
    assert session.grid is None
    handlers.perform(Click(studio, session, {"do": "preview"}, FORM), True, nullcontext)
    assert len(settled_grid(session)["tiles"]) == 4


def test_what_was_called_off_is_not_begun(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    handlers.perform(Click(studio, session, {"do": "cancel", "calls": ["1-1"]}), False, nullcontext)
    handlers.perform(Click(studio, session, {"do": "preview", "call": "1-1"}, FORM), True, nullcontext)
    assert session.grid is None and session.notices[-1]["text"] == "Cancelled."


def test_what_is_called_off_while_it_begins_ends(studio: Studio, new_session: NewSession) -> None:
    session = new_session()

    @contextmanager
    def cancelled_meanwhile(click: Click) -> Iterator[Click]:
        yield click
        session.called_off = ("1-1",)

    form = replace(FORM, steps=100)
    click = Click(studio, session, {"do": "preview", "call": "1-1"}, form)
    handlers.perform(click, True, cancelled_meanwhile)
    assert {tile["problem"] for tile in settled_grid(session)["tiles"]} == {"Cancelled."}


def test_the_scripts_know_which_actions_submit_jobs() -> None:
    script = "\n".join(path.read_text(encoding="utf-8") for path in STATIC.glob("*.js"))
    (listed,) = re.findall(r"QUEUED = new Set\(\[(.*?)\]\)", script)
    assert set(re.findall(r'"(\w+)"', listed)) == handlers.SUBMITTING
