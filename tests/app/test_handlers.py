import base64
import io
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app import handlers, png
from app.handlers import Settings
from app.job import Done
from app.likeness import WORDS, compare
from app.models import ImageModel
from app.prompts import EXAMPLES, surprise
from app.scheduling import POLICIES
from app.session import Session
from app.worker import Worker
from tests.app.conftest import make_job

FORM = Settings("snowy mountains", "", 4, 4, 3.0, "consistency", random_seeds=False, seed=10, full_steps=8)


def finish(views: Iterator[handlers.View | None]) -> dict:
    """The last view."""
    view = list(views)[-1]
    assert view is not None
    return view


def make_grid(worker: Worker, session: Session, form: Settings = FORM) -> dict:
    return finish(handlers.show_previews(worker, session, form, "me"))


def picture_of(url: str) -> bytes:
    assert url.startswith("data:image/png;base64,")
    return base64.b64decode(url.partition(",")[2])


def test_a_grid_has_the_seeds_it_shows(worker: Worker) -> None:
    grid = make_grid(worker, Session())
    assert [tile["seed"] for tile in grid["tiles"]] == [10, 11, 12, 13]
    assert not grid["busy"]
    for tile in grid["tiles"]:
        parameters = png.read(picture_of(tile["picture"]))
        assert parameters.prompt == "snowy mountains"
        assert parameters.settings["Seed"] == str(tile["seed"])
        assert parameters.settings["Steps"] == "4"


def test_tiles_are_painted_as_they_arrive(worker: Worker) -> None:
    ready = [
        sum(tile["ready"] for tile in view["tiles"])
        for view in handlers.show_previews(worker, Session(), FORM, "me")
        if view
    ]
    assert ready[0] == 0
    assert ready == sorted(ready)
    assert {1, 2, 3, 4} <= set(ready)


def test_random_seeds_differ_between_grids(worker: Worker) -> None:
    form = replace(FORM, random_seeds=True)
    session = Session()
    first, second = make_grid(worker, session, form), make_grid(worker, session, form)
    assert not {t["seed"] for t in first["tiles"]} & {t["seed"] for t in second["tiles"]}


def test_kept_previews_stay_exactly_as_they_are(worker: Worker) -> None:
    session = Session()
    before = make_grid(worker, session)
    after = finish(handlers.reroll(worker, session, 8, {"grid": before["id"], "keep": [11, 13]}))
    assert after["id"] != before["id"]
    assert [after["tiles"][i] for i in (1, 3)] == [before["tiles"][i] for i in (1, 3)]
    changed = {after["tiles"][i]["seed"] for i in (0, 2)}
    assert len(changed) == 2
    assert not changed & {10, 11, 12, 13}


def test_a_reroll_asks_as_the_grid_was_asked(worker: Worker) -> None:
    session = Session()
    before = make_grid(worker, session, replace(FORM, steps=5, guidance=2))
    after = finish(handlers.reroll(worker, session, 8, {"grid": before["id"], "keep": []}))
    assert session.grid is not None
    assert {(tile.job.steps, tile.job.guidance) for tile in session.grid.tiles} == {(5, 2)}
    assert len(after["tiles"]) == 4


def test_a_pick_is_refined_from_the_same_noise(worker: Worker) -> None:
    session = Session()
    grid = make_grid(worker, session)
    views = [view for view in handlers.refine(worker, session, 12, {"grid": grid["id"], "seed": 12}) if view]
    percents = [view["percent"] for view in views]
    assert percents == sorted(percents)
    done = views[-1]
    assert (done["state"], done["percent"], done["seed"]) == ("done", 100, 12)
    assert done["preview"] == grid["tiles"][2]["picture"]
    settings = png.read(picture_of(done["picture"])).settings
    assert (settings["Seed"], settings["Steps"], settings["Sampler"]) == ("12", "12", "dpm++2m")
    assert done["likeness"]["words"] in [words for _, words in WORDS]
    assert done["file"] == "tiny-seed-12-12-steps.png"
    # The same seed at full steps, asked for by itself, is the same picture.
    assert session.grid is not None
    again = worker.submit(replace(session.grid.tiles[2].job, kind="refine", steps=12, solver="dpm++2m"))
    ended: Any = list(again.events())[-1]
    picture = ended.picture
    shown = Image.open(io.BytesIO(picture_of(done["picture"])))
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(shown)).max() <= 1


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
        ({"solver": "<b>magic</b>"}, "no solver “&lt;b&gt;magic"),
    ],
)
def test_mistakes_are_told_in_words_and_change_nothing(worker: Worker, change: dict, words: str) -> None:
    session = Session()
    before = make_grid(worker, session)
    with pytest.warns(UserWarning, match=words):
        views = list(handlers.show_previews(worker, session, replace(FORM, **change), "me"))
    assert views == [before]


def test_a_mistake_before_any_grid_shows_nothing(worker: Worker) -> None:
    with pytest.warns(UserWarning, match="empty"):
        assert list(handlers.show_previews(worker, Session(), replace(FORM, prompt=""), "me")) == [None]


def test_stale_and_broken_picks_are_told_in_words(worker: Worker) -> None:
    session = Session()
    old = make_grid(worker, session)
    make_grid(worker, session, replace(FORM, seed=20))
    stale: list[dict[str, Any]] = [{"grid": old["id"], "seed": 10}, {}, {"grid": None, "seed": {}}]
    for wish in stale:
        with pytest.warns(UserWarning, match="have been replaced"):
            assert list(handlers.refine(worker, session, 10, wish)) == [None]
        with pytest.warns(UserWarning, match="have been replaced"):
            finish(handlers.reroll(worker, session, 8, wish))
    assert session.grid is not None
    strange: list[Any] = [10, None, "20", [], math.nan]
    for seed in strange:
        with pytest.warns(UserWarning, match="not there"):
            list(handlers.refine(worker, session, 10, {"grid": session.grid.id, "seed": seed}))


def test_full_steps_are_checked(worker: Worker) -> None:
    session = Session()
    grid = make_grid(worker, session)
    for steps in (math.nan, 0, 5000, None):
        with pytest.warns(UserWarning, match="number of steps"):
            list(handlers.refine(worker, session, steps, {"grid": grid["id"], "seed": 10}))


def test_a_double_click_is_answered_once(worker: Worker) -> None:
    session = Session()
    first = handlers.show_previews(worker, session, FORM, "me")
    shown = next(first)
    with pytest.warns(UserWarning, match="already on their way"):
        list(handlers.show_previews(worker, session, FORM, "me"))
    assert finish(first)["id"] == shown["id"]  # type: ignore[index]


def test_a_new_prompt_replaces_the_grid_that_was_still_growing(worker: Worker) -> None:
    session = Session()
    first = handlers.show_previews(worker, session, replace(FORM, steps=100), "me")
    next(first)
    growing = session.previews
    second = make_grid(worker, session, replace(FORM, prompt="a lake at night"))
    assert second["prompt"] == "a lake at night"
    assert finish(first)["id"] == second["id"], "the first never shows its own grid again"
    assert all(handle.ended for handle in growing)


def test_refining_twice_is_answered_and_another_pick_takes_over(worker: Worker) -> None:
    session = Session()
    grid = make_grid(worker, session)
    first = handlers.refine(worker, session, 100, {"grid": grid["id"], "seed": 10})
    next(first)
    with pytest.warns(UserWarning, match="already being refined"):
        list(handlers.refine(worker, session, 100, {"grid": grid["id"], "seed": 10}))
    taken_over = session.refinement
    done = finish(handlers.refine(worker, session, 10, {"grid": grid["id"], "seed": 11}))
    assert (done["state"], done["seed"]) == ("done", 11)
    assert finish(first)["seed"] == 11
    assert taken_over is not None
    assert taken_over.ended


def test_refining_can_be_cancelled(worker: Worker) -> None:
    session = Session()
    grid = make_grid(worker, session)
    views = handlers.refine(worker, session, 100, {"grid": grid["id"], "seed": 10})
    next(views)
    handlers.stop_refining(session)
    stopped = finish(views)
    assert stopped["state"] == "stopped"
    assert "Cancelled" in stopped["message"]
    assert stopped["preview"] == grid["tiles"][0]["picture"]


def test_two_people_do_not_disturb_each_other(worker: Worker) -> None:
    mine, yours = Session(), Session()
    one = handlers.show_previews(worker, mine, FORM, "me")
    two = handlers.show_previews(worker, yours, replace(FORM, seed=50), "you")
    next(one), next(two)
    assert [t["seed"] for t in finish(one)["tiles"]] == [10, 11, 12, 13]
    assert [t["seed"] for t in finish(two)["tiles"]] == [50, 51, 52, 53]
    assert (
        make_grid(worker, Session())["tiles"][0]["picture"]
        == finish(one_again(worker, mine))["tiles"][0]["picture"]
    )


def one_again(worker: Worker, session: Session) -> Iterator[handlers.View | None]:
    return handlers.show_previews(worker, session, FORM, "me")


def test_when_the_browser_goes_the_jobs_end(worker: Worker) -> None:
    session = Session()
    views = handlers.show_previews(worker, session, replace(FORM, steps=100), "me")
    next(views)
    worker.cancel("me")
    assert all(tile["problem"] == "Cancelled." for tile in finish(views)["tiles"])
    # A generator that is closed rather than read to its end cancels as well.
    again: Any = handlers.show_previews(worker, session, replace(FORM, steps=99), "me")
    next(again)
    again.close()
    assert all(list(handle.events()) and handle.ended for handle in session.previews)


def test_ignored_words_are_named(worker: Worker) -> None:
    grid = make_grid(worker, Session(), replace(FORM, prompt="snowy zeppelin mountains"))
    assert "“zeppelin”" in grid["ignored"]
    assert make_grid(worker, Session())["ignored"] == ""


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


def test_while_one_looks_the_likely_picks_are_refined(worker: Worker) -> None:
    session = Session()
    grid = make_grid(worker, session)
    while worker.made["speculative"] < 4 * 5:  # 60 % of eight steps, for each of four
        time.sleep(0.01)
    guessed = finish(handlers.refine(worker, session, 8, {"grid": grid["id"], "seed": 12}))
    assert guessed["state"] == "done"
    assert worker.made["refine"] == 3, "the pick went on where its guess stood"
    assert worker.made["wasted"] == 3 * 5, "and the guesses at the others ended"
    unguessed = finish(handlers.refine(worker, session, 8, {"grid": grid["id"], "seed": 11}))
    assert unguessed["state"] == "done"


def test_a_guessed_picture_is_the_picture(worker: Worker, model: ImageModel) -> None:
    plain = Worker(model, policy=POLICIES["step-priority"])
    finals = []
    for maker in (worker, plain):
        session = Session()
        grid = make_grid(maker, session)
        time.sleep(0.2)
        finals.append(finish(handlers.refine(maker, session, 8, {"grid": grid["id"], "seed": 10})))
    assert plain.made["speculative"] == 0
    one, other = (np.asarray(Image.open(io.BytesIO(picture_of(f["picture"])))).astype(int) for f in finals)
    assert np.abs(one - other).max() <= 1
    plain.close()


def test_pointing_at_a_preview_has_it_refined_to_the_end(worker: Worker) -> None:
    session = Session()
    grid = make_grid(worker, session)
    handlers.point_at(session, {"grid": grid["id"], "seed": 13})
    handlers.point_at(session, {"grid": "another", "seed": 12})
    handlers.point_at(session, {"seed": [1]})
    while worker.made["speculative"] < 8 + 3 * 5:
        time.sleep(0.01)
    assert finish(handlers.refine(worker, session, 8, {"grid": grid["id"], "seed": 13}))["state"] == "done"
    assert worker.made["refine"] == 0


def test_other_settings_are_another_picture_than_the_guessed(worker: Worker) -> None:
    session = Session()
    grid = make_grid(worker, session)
    done = finish(handlers.refine(worker, session, 9, {"grid": grid["id"], "seed": 13}))
    assert done["steps"] == [4, 9]
    assert worker.made["refine"] == 9


def test_guesses_end_with_their_grid(worker: Worker) -> None:
    session = Session()
    make_grid(worker, session)
    first = session.guesses
    make_grid(worker, session)
    assert session.guesses is not first
    worker.cancel("me")
    assert isinstance(list(worker.submit(make_job(worker.model)).events())[-1], Done)
    time.sleep(0.1)
    assert worker.made["speculative"] <= 40, "nobody's guesses are going on"
