"""From a picture of ours to the form, and from there to the same picture."""

import io
import re
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from app.jobs.job import Job, Record, RequestError, Start, Variation
from app.jobs.request import refinement_of
from app.models import ImageModel
from app.page import handlers
from app.page.click import Click, Form, Studio
from app.page.filling import fill
from app.page.form import from_picture, held_values
from app.page.session import Grid, Session, Stage, Tile
from app.page.sketches import Sketches
from app.page.views import stage_view
from solver import SOLVERS
from tests.app.page.clicks import NewSession
from tests.conftest import make_job

PICTURE = Image.new("RGB", (16, 16))
SEEDS = st.integers(0, 2**32 - 1)
AMOUNTS = st.floats(0, 1)
VARIATIONS = st.builds(
    Variation,
    SEEDS,
    AMOUNTS,
    st.none() | st.builds(Variation, SEEDS, AMOUNTS, st.none() | st.builds(Variation, SEEDS, AMOUNTS)),
)
PROMPTS = st.text(min_size=1, max_size=30).filter(lambda text: text.split()) | st.sampled_from(
    [
        "Negative prompt: fog",
        "a hill, Steps: 4, Seed: 9",
        "Steps: 4, Sampler: euler, Seed: 9",
        "a \0 b",
        '"{',
    ],
)


def start_file() -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def studio_of(model: ImageModel) -> Any:
    """Makes studios whose model has a preview decoder of this name."""
    return lambda decoder="": Studio(
        SimpleNamespace(facts=replace(model.facts, preview_decoder=decoder)),
        Sketches(),
    )


def filled(studio: Studio, session: Session, source: dict[str, Any]) -> Form:
    """The form after a page was opened and the source was filled in."""
    names, values = {field.name for field in fields(Form)}, dict[str, Any]()
    for click in ({"new": True}, source):
        for name, part in fill(Click(studio, session, click)).items():
            assert name in names
            values |= {name: part["value"]} if "value" in part else {}
            if "minimum" in part and "value" in part:
                assert part["minimum"] <= part["value"] <= part["maximum"]
    return Form(**values)


def asked(studio: Studio, session: Session, form: Form) -> tuple[Job, Job]:
    """The jobs of the first preview that this form makes, and of its refinement."""
    made: list[list[Tile]] = []
    click = Click(studio, session, form=form)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "paint", lambda _, tiles: made.append(tiles))
        handlers.preview(click)
    (tiles,) = made
    assert len({tile.seed for tile in tiles}) == len(tiles), "each is found by its seed"
    first = tiles[0].job
    return first, refinement_of(first, form.full_steps, click.final_solver)


def same(job: Job, other: Job) -> bool:
    return replace(job, kind="preview", owner="") == replace(other, kind="preview", owner="")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_picture_of_any_job_brings_the_same_job_back(
    data: st.DataObject, studio_of: Any, new_session: NewSession
) -> None:
    studio, session = studio_of(data.draw(st.sampled_from(["", "taesd"]))), new_session()
    facts = studio.backend.facts
    variation = data.draw(st.none() | VARIATIONS)
    start = data.draw(st.none() | st.floats(0.05, 1).map(lambda strength: Start(start_file(), strength)))
    job = Job(
        kind=data.draw(st.sampled_from(["preview", "refine"])),
        prompt=data.draw(PROMPTS),
        negative_prompt=data.draw(PROMPTS | st.just("")),
        seed=data.draw(SEEDS),
        steps=data.draw(st.integers(1, 100)),
        guidance=data.draw(st.floats(1, 30) | st.sampled_from([1, 3, 7.5])),
        solver=data.draw(st.sampled_from(SOLVERS)),
        model=facts.name,
        width=facts.width,
        height=facts.height,
        variation=variation,
        start=start,
    )
    if start:
        session.shelf.put_start(start)
    decoder = facts.decoder_of(job)
    png = Record(job, facts.revision, job.steps, 1.0, decoder).png(PICTURE)
    form = filled(studio, session, {"picture": from_picture(png)})
    preview, final = asked(studio, session, form)
    candidates = {facts.decoder_of(each): each for each in (final, preview) if same(each, job)}
    assert decoder in candidates, (job, preview, final)


def test_a_link_and_an_entry_of_a_variation_bring_it_back(
    studio: Studio, model: ImageModel, new_session: NewSession
) -> None:
    session = new_session()
    job = make_job(model, seed=5, steps=9, guidance=20.25, variation=Variation(7, 0.123456789))
    stage = Stage(
        "grid", Tile(job, name="0" * 32), refinement_of(job, 12, "euler"), "done", 100, "", "", "0" * 32
    )
    session.grid, session.stage = Grid([stage.tile], id="grid"), stage
    here = filled(studio, session, {"stage": stage.id})
    assert (here.full_steps, here.full_solver) == (12, "euler")
    assert same(asked(studio, session, here)[1], stage.job)
    view = stage_view(session)
    assert view
    preview, final = asked(studio, session, filled(studio, session, {"link": view["link"]}))
    assert same(preview, job) and same(final, stage.job)
    assert "turned 12% towards that of 7" in session.notices[-1]["text"]


def test_all_previews_of_a_restored_variation_are_variations(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    link = {"prompt": "lake", "seed": "5", "variations": "6:0.3, 9:0.2", "full_solver": "euler"}
    form = filled(studio, session, {"link": link})
    assert (form.seed, form.variation, form.full_solver) == (5, "6:0.3, 9:0.2", "euler")
    assert "the others are turned towards the seeds after 9" in session.notices[-1]["text"]
    handlers.preview(Click(studio, session, form=form))
    assert session.grid
    jobs = [tile.job for tile in session.grid.tiles]
    assert [(job.seed, job.variation) for job in jobs] == [
        (5, Variation(9 + place, 0.2, Variation(6, 0.3))) for place in range(4)
    ]
    session.settle()
    handlers.vary(Click(studio, session, {"grid": session.grid.id, "seed": 10}, form))
    assert [tile.job.variation.of for tile in session.grid.tiles[1:] if tile.job.variation] == [
        jobs[1].variation
    ] * 3
    assert asked(studio, session, replace(form, random_seeds=True))[0].variation is None
    assert asked(studio, session, replace(form, variation=" "))[0].variation is None
    for wrong in ("6", "6:2", "x:0.3", ", ".join(["6:0.3"] * 9), None):
        with pytest.raises(RequestError, match=r"vari|seed"):
            handlers.preview(Click(studio, session, form=replace(form, variation=wrong)))  # type: ignore[arg-type]
    later = filled(studio, session, {"link": {"prompt": "lake", "seed": "5"}})
    assert later.variation == ""


def test_the_form_outlives_a_refresh(studio: Studio, new_session: NewSession) -> None:
    facts = studio.backend.facts
    form = Form("a lake ", "fog", 3, 5, 2.5, "unipc", False, 77, 12, None, "6:0.3", "euler")
    held = vars(form)
    assert filled(studio, new_session(), {"held": held}) == form
    strange = {name: [value] for name, value in held.items()} | {"guidance": 1e9, "more": 1}
    assert held_values(strange, facts) == {}
    assert held_values({"prompt": "x" * 100_000, "count": 99, "size": "9x9"}, facts) == {}


def test_a_seed_that_does_not_fit_leaves_no_old_one(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    form = filled(
        studio, session, {"picture": {"prompt": "lake", "settings": {"Seed": "693194942663826797"}}}
    )
    assert form.random_seeds
    assert "693194942663826797" in session.notices[-1]["text"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"link": {"prompt": "hill " * 500}}, "at most 2,000"),
        ({"entry": "0" * 32, "picture": "1" * 32}, "no longer in your history"),
        ({"picture": {"prompt": "", "settings": {}}}, "no prompt"),
        ({"new": True, "link": {"prompt": "hill " * 500}}, "at most 2,000"),
        (
            {"picture": {"prompt": "a", "settings": {"Seed": [], "Size": {}, "Model": 3, "Steps": None}}},
            "made by 3",
        ),
        ({"stage": "x"}, "replaced"),
    ],
)
def test_a_refusal_is_one_message(
    studio: Studio, new_session: NewSession, source: dict[str, Any], words: str
) -> None:
    session = new_session()
    try:
        fill(Click(studio, session, source | {"dropped": "7"}))
        assert re.search(words, session.notices[0]["text"])
    except RequestError as error:
        assert re.search(words, str(error))
    assert len(session.notices) <= 1
    for notice in session.notices:
        assert ("are back" in notice["text"]) == ("made by 3" in words)
