"""What clicks do to a session, without a browser."""

import errno
import io
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.history.shelf import History
from app.jobs import png
from app.jobs.job import Done, RequestError
from app.models import ImageModel
from app.page import handlers, progress
from app.page.click import Click, Form, Studio
from app.page.filling import wanted_of
from app.page.layout import STATIC
from app.page.likeness import WORDS, compare
from app.page.prompts import EXAMPLES, surprise
from app.page.session import Session, Sessions
from app.page.sketches import Sketches
from app.page.views import grid_view, stage_view
from app.worker import Worker
from app.worker.scheduling import POLICIES, SPECULATED_SHARE
from tests.conftest import make_job

FORM = Form("snowy mountains", "", 4, 4, 3.0, "consistency", random_seeds=False, seed=10, full_steps=8)
NewSession = Callable[[], Session]


@pytest.fixture
def new_session(tmp_path: Path) -> NewSession:
    """Makes sessions, each of a browser of its own."""
    history = History(tmp_path / "history")
    numbers = iter(range(1000))
    return lambda: Session(history.shelf(f"{next(numbers):064x}"))


@pytest.fixture
def studio(worker: Worker) -> Studio:
    return Studio(worker, Sketches())


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


def test_a_grid_has_the_seeds_it_shows(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    grid = make_grid(studio, session)
    assert [tile["seed"] for tile in grid["tiles"]] == [10, 11, 12, 13]
    assert not grid["busy"]
    for tile in grid["tiles"]:
        parameters = png.read(picture_of(session, tile["picture"]))
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
    with pytest.raises(RequestError, match="keep all"):
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
    settings = png.read(picture_of(session, done["picture"])).settings
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
        ({"guidance": None}, "nothing is not a number"),
        ({"seed": -4}, "The seed"),
        ({"full_steps": 0}, "number of steps"),
        ({"solver": "<b>magic</b>"}, "no solver “<b>magic"),
    ],
)
def test_mistakes_are_told_in_words_and_change_nothing(
    studio: Studio, new_session: NewSession, change: dict, words: str
) -> None:
    session = new_session()
    before = make_grid(studio, session)
    with pytest.raises(RequestError, match=words):
        handlers.preview(Click(studio, session, form=replace(FORM, **change)))
    assert settled_grid(session) == before


def test_stale_and_broken_picks_are_told_in_words(studio: Studio, new_session: NewSession) -> None:
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
    settings = png.read(picture_of(session, done["picture"])).settings
    assert (settings["Seed"], settings["Variation seed"]) == ("12", str(varied["seed"]))
    with pytest.raises(RequestError, match="a variation already"):
        handlers.vary(
            Click(studio, session, {"grid": after["id"], "seed": varied["seed"]}, Form(full_steps=8))
        )
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


def test_refining_twice_is_answered_and_another_pick_takes_over(
    studio: Studio, new_session: NewSession
) -> None:
    session = new_session()
    grid = make_grid(studio, session)
    handlers.refine(Click(studio, session, {"grid": grid["id"], "seed": 10}, Form(full_steps=100)))
    with pytest.raises(RequestError, match="already being refined"):
        handlers.refine(Click(studio, session, {"grid": grid["id"], "seed": 10}, Form(full_steps=100)))
    taken_over = session.refinement
    done = refine(studio, session, 11, 10)
    assert (done["state"], done["seed"]) == ("done", 11)
    assert taken_over is not None
    assert taken_over.ended


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


def test_likeness_falls_with_distance() -> None:
    base = np.full((32, 32, 3), 120, np.uint8)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=base.shape)
    pictures = [
        Image.fromarray((base + scale * noise).clip(0, 255).astype(np.uint8))
        for scale in (0, 2, 8, 16, 30, 90)
    ]
    likenesses = [compare(pictures[0], picture) for picture in pictures]
    assert likenesses[0].decibels == math.inf
    decibels = [likeness.decibels for likeness in likenesses]
    assert decibels == sorted(decibels, reverse=True)
    assert len({likeness.words for likeness in likenesses}) == len(WORDS)


def test_surprises_are_sentences_and_vary() -> None:
    prompts = {surprise() for _ in range(50)}
    assert len(prompts) > 20
    assert all(prompt == " ".join(prompt.split()) for prompt in prompts | set(EXAMPLES))


def test_while_one_looks_the_likely_picks_are_refined(
    studio: Studio, worker: Worker, new_session: NewSession
) -> None:
    session = new_session()
    make_grid(studio, session)
    each = round(SPECULATED_SHARE * 8)
    while worker.made["speculative"] < 4 * each:
        time.sleep(0.01)
    assert refine(studio, session, 12)["state"] == "done"
    assert worker.made["refine"] == 8 - each, "the pick went on where its guess stood"
    assert worker.made["wasted"] == 3 * each, "and the guesses at the others ended"
    assert refine(studio, session, 11)["state"] == "done"


def test_a_guessed_picture_is_the_picture(worker: Worker, model: ImageModel, new_session: NewSession) -> None:
    plain = Worker(model, policy=POLICIES["step-priority"])
    finals = []
    for maker in (worker, plain):
        session, studio = new_session(), Studio(maker, Sketches())
        make_grid(studio, session)
        while maker is worker and not worker.made["speculative"]:
            time.sleep(0.01)
        finals.append(picture_of(session, refine(studio, session, 10)["picture"]))
    assert plain.made["speculative"] == 0
    one, other = (np.asarray(Image.open(io.BytesIO(final))).astype(int) for final in finals)
    assert np.abs(one - other).max() <= 1
    plain.close()


def test_pointing_at_a_preview_has_it_refined_to_the_end(
    studio: Studio, worker: Worker, new_session: NewSession
) -> None:
    session = new_session()
    grid = make_grid(studio, session)
    handlers.point_at(Click(studio, session, {"grid": grid["id"], "seed": 13}))
    handlers.point_at(Click(studio, session, {"grid": "another", "seed": 12}))
    handlers.point_at(Click(studio, session, {"seed": [1]}))
    while worker.made["speculative"] < 8 + 3 * round(SPECULATED_SHARE * 8):
        time.sleep(0.01)
    assert refine(studio, session, 13)["state"] == "done"
    assert worker.made["refine"] == 0


def paint_until_told(studio: Studio, session: Session, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Has previews made that are still being painted; they are painted once the event is set."""
    painting, told = threading.Event(), threading.Event()

    def paint(seconds: float) -> None:
        painting.set()
        told.wait(30)

    with monkeypatch.context() as patch:
        patch.setattr(progress.time, "sleep", paint)
        handlers.preview(Click(studio, session, form=FORM))
        assert painting.wait(30)
    return told


def test_pointing_before_anything_is_guessed_counts_too(
    studio: Studio, worker: Worker, new_session: NewSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = new_session()
    pointed = paint_until_told(studio, session, monkeypatch)
    assert session.grid
    handlers.point_at(Click(studio, session, {"grid": session.grid.id, "seed": 13}))
    pointed.set()
    session.settle()
    all_of_it = 8 + 3 * round(SPECULATED_SHARE * 8)
    deadline = time.monotonic() + 30
    while worker.made["speculative"] < all_of_it and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker.made["speculative"] == all_of_it


def test_other_settings_are_another_picture_than_the_guessed(
    studio: Studio, worker: Worker, new_session: NewSession
) -> None:
    session = new_session()
    make_grid(studio, session)
    assert refine(studio, session, 13, 9)["tags"] == ["Preview · 4 steps", "Final · 9 steps"]
    assert worker.made["refine"] == 9


def test_a_pick_made_at_once_leaves_nothing_to_guess(
    studio: Studio, worker: Worker, new_session: NewSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = new_session()
    picked = paint_until_told(studio, session, monkeypatch)
    assert worker.made["speculative"] == 0, "while previews are painted, nothing else is computed"
    assert session.grid
    handlers.refine(Click(studio, session, {"grid": session.grid.id, "seed": 12}, Form(full_steps=8)))
    picked.set()
    session.settle()
    assert worker.made["refine"] == 8
    assert worker.made["speculative"] == 0


def test_guesses_end_with_their_grid(studio: Studio, worker: Worker, new_session: NewSession) -> None:
    session = new_session()
    make_grid(studio, session)
    first = session.guesses
    make_grid(studio, session)
    assert session.guesses is not first
    session.stop()
    assert isinstance(list(worker.submit(make_job(worker.model)).events())[-1], Done)
    time.sleep(0.1)
    assert worker.made["speculative"] <= 40, "nobody's guesses are going on"


# ---- nothing is lost


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
    wanted = wanted_of(Click(studio, session, {"grid": grid["id"], "seed": 11}))
    assert (wanted["prompt"], wanted["negative_prompt"]) == ("snowy mountains", "lake")
    assert wanted["settings"]["Seed"] == "11"
    entry = session.shelf.entries[0]
    same = wanted_of(Click(studio, session, {"entry": entry.id, "picture": entry.previews[1].picture}))
    assert same == wanted


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
