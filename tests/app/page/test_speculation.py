"""While one looks at previews, the likely picks are refined."""

import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from app.jobs.job import Done
from app.models import ImageModel
from app.page import handlers, progress
from app.page.click import Click, Form, Studio
from app.page.session import Session
from app.page.sketches import Sketches
from app.worker import Worker
from app.worker.scheduling import SPECULATED_SHARE
from tests.app.page.clicks import FORM, NewSession, make_grid, picture_of, refine
from tests.conftest import make_job
from tools.load.policies import POLICIES


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
