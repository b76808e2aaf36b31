"""Grids that start from a picture, and grids of other shapes, without a browser."""

import io
import json
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio_client
import httpx
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from app.history.export import export_zip
from app.history.shelf import UNUSED_STARTS, History
from app.jobs import metadata, png, uploads
from app.jobs.job import RequestError, Start
from app.jobs.uploads import START_EDGE, read_picture, start_from
from app.models import ImageModel
from app.page import handlers
from app.page.click import Click, Form, Studio
from app.page.filling import set_start_as, wanted_of
from app.page.form import form_for, form_values, from_link, from_picture, preview_steps
from app.page.session import Session, Sessions
from app.page.sketches import Sketches
from app.page.starting import begin_with, begin_with_final, begin_with_nothing
from app.page.views import grid_view, stage_view, start_view
from app.worker import Worker
from tests.app.jobs.test_uploads import bomb, file_of
from tests.app.page.clicks import FORM, NewSession, make_grid, picture_of, refine
from tests.app.page.test_image_to_image import png as noise
from tests.conftest import Served

SIZES = ((64, 64), (96, 64), (64, 96))


@pytest.fixture
def wide_studio(model: ImageModel) -> Iterator[Studio]:
    """One whose model makes pictures of several shapes."""
    facts = replace(model.facts, sizes=SIZES, smallest=64, largest=96)
    worker = Worker(replace(model, facts=facts))
    yield Studio(worker, Sketches())
    worker.close()


def begun(session: Session, seed: int = 3, size: tuple[int, int] = (64, 64)) -> Start:
    begin_with(session, noise(size, seed))
    assert session.start
    return session.start


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


# ---- what somebody sends


def test_a_start_is_upright_opaque_small_and_silent() -> None:
    photo = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    exif = photo.getexif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text(png.CHUNK, "who and where")
    start = start_from(file_of(photo, exif=exif, pnginfo=text), 0.4)
    picture = Image.open(io.BytesIO(start.picture))
    assert (picture.format, picture.mode, picture.size, picture.info) == ("PNG", "RGB", (20, 40), {})
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert start.strength == 0.4


def test_the_same_pixels_are_the_same_start() -> None:
    picture = Image.radial_gradient("L").convert("RGB")
    one, other = start_from(file_of(picture)), start_from(file_of(picture, compress_level=0))
    assert one == other and one.name == other.name
    assert start_from(noise()).name != one.name


@pytest.mark.parametrize("size", [(2 * START_EDGE, 30), (START_EDGE + 100, START_EDGE + 100)])
def test_a_start_is_no_larger_than_what_is_made_of_it(size: tuple[int, int]) -> None:
    start = start_from(file_of(Image.new("RGB", size, "green")))
    assert max(read_picture(start.picture).size) == START_EDGE


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"Dear all", "not a picture"),
        (file_of(Image.new("RGB", (8, 8)), "TIFF"), "Choose a PNG, JPEG or WebP"),
        (noise((64, 64))[:-2000], "damaged"),
        (noise((4, 64)), "4 × 64 pixels"),
        (bomb(30_000, 30_000), "too large"),
        (bytes(uploads.MAX_BYTES + 1), "at most 20 MB"),
    ],
)
def test_what_is_no_picture_is_told_and_changes_nothing(
    new_session: NewSession, data: bytes, words: str
) -> None:
    session = new_session()
    before = begun(session)
    with pytest.raises(RequestError, match=words):
        begin_with(session, data)
    assert session.start == before


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_an_animation_it_is_the_first_picture(new_session: NewSession, kind: str) -> None:
    colours = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = file_of(colours[0], kind, save_all=True, append_images=colours[1:], lossless=True)
    if kind == "GIF":
        with pytest.raises(RequestError, match="Choose a PNG"):
            start_from(data)
    else:
        assert read_picture(start_from(data).picture).getpixel((8, 8)) == (255, 0, 0)


# ---- grids


def test_a_grid_starts_from_the_picture_and_all_that_comes_of_it_does(
    studio: Studio, new_session: NewSession
) -> None:
    session = new_session()
    plain = make_grid(studio, session)
    start = begun(session)
    handlers.preview(Click(studio, session, {"strength": 0.5}, FORM))
    session.settle()
    grid = grid_view(session)
    assert grid and session.grid and session.start
    assert session.grid.start == session.start == replace(start, strength=0.5)
    for one, other in zip(plain["tiles"], grid["tiles"], strict=True):
        assert one["seed"] == other["seed"]
        assert (
            np.abs(
                pixels(picture_of(session, one["picture"])) - pixels(picture_of(session, other["picture"]))
            ).max()
            > 3
        )
    begin_with_nothing(Click(studio, session))
    handlers.reroll(Click(studio, session, {"grid": grid["id"]}, Form(full_steps=8)))
    session.settle()
    handlers.vary(
        Click(
            studio, session, {"grid": session.grid.id, "seed": session.grid.tiles[0].seed}, Form(full_steps=8)
        )
    )
    session.settle()
    done = refine(studio, session, session.grid.tiles[1].seed)
    assert {tile.job.start for tile in session.grid.tiles} == {replace(start, strength=0.5)}
    settings = metadata.read(picture_of(session, done["picture"])).settings
    assert (settings["Denoising strength"], settings["Init image hash"]) == ("0.5", start.mark)
    assert ["Made from", "a picture, strength 50%"] in done["facts"]
    assert make_grid(studio, session)["id"] and session.grid.start is None, "what is asked for anew has none"


def test_the_likely_pick_is_refined_ahead_from_the_same_start(
    studio: Studio, worker: Worker, new_session: NewSession
) -> None:
    session = new_session()
    begun(session)
    make_grid(studio, session)
    while not worker.made["speculative"]:
        time.sleep(0.01)
    done = refine(studio, session, 12)
    assert done["state"] == "done"
    assert worker.made["refine"] < worker.made["speculative"] + worker.made["refine"] < 4 * 8 + 1


def test_a_picture_that_is_removed_while_previews_run_stays_theirs(
    studio: Studio, new_session: NewSession
) -> None:
    session = new_session()
    start = begun(session)
    handlers.preview(Click(studio, session, form=replace(FORM, steps=30)))
    begin_with_nothing(Click(studio, session))
    for seed in range(10, 10 + 2 * UNUSED_STARTS):  # so many others that it has to make room
        begun(session, seed)
    session.settle()
    entry = session.shelf.entries[0]
    assert entry.start and entry.start["picture"] == start.name
    assert session.shelf.path(start.name).read_bytes() == start.picture
    assert refine(studio, session, 12)["state"] == "done"


def test_pictures_that_nothing_was_made_of_make_room(new_session: NewSession) -> None:
    session = new_session()
    names = [begun(session, seed).name for seed in range(UNUSED_STARTS + 5)]
    kept = {path.stem for path in session.shelf.folder.glob("*.png")}
    assert set(names[-UNUSED_STARTS:]) <= kept <= set(names[-UNUSED_STARTS - 2 :]), "one or two are in use"


def test_tabs_hold_no_picture_in_memory(tmp_path: Path) -> None:
    sessions = Sessions(History(tmp_path))
    data = noise((700, 700))
    tracemalloc.start()
    try:
        for number in range(10):
            begin_with(sessions.of(BROWSER, f"{number:032}"), noise((700, 700), number))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < len(data), "all ten together take less than one picture"


def test_a_tab_s_picture_stays_though_others_make_room(tmp_path: Path) -> None:
    sessions = Sessions(History(tmp_path))
    mine, other = sessions.of(BROWSER, "0" * 32), sessions.of(BROWSER, "1" * 32)
    start = begun(mine)
    data = start.picture
    del start
    for seed in range(10, 10 + 3 * UNUSED_STARTS):
        begun(other, seed)
    assert mine.start and mine.start.picture == data


def test_a_picture_that_is_gone_is_told_and_costs_nobody_else(
    studio: Studio, worker: Worker, tmp_path: Path, new_session: NewSession
) -> None:
    sessions = Sessions(History(tmp_path))
    mine, other, stranger = sessions.of(BROWSER, "0" * 32), sessions.of(BROWSER, "1" * 32), new_session()
    begun(mine)
    handlers.clear_history(Click(studio, other))
    for _ in range(5):
        with pytest.raises(RequestError, match="gone"):
            handlers.preview(Click(studio, mine, form=FORM))
    assert worker.healthy and make_grid(studio, stranger)["busy"] is False
    begun(mine)
    assert make_grid(studio, mine)["tiles"][0]["ready"]


@pytest.mark.parametrize("strength", [0, 2, "much", [], float("nan")])
def test_a_strength_out_of_range_is_told_and_changes_nothing(
    studio: Studio, new_session: NewSession, strength: Any
) -> None:
    session = new_session()
    start = begun(session)
    with pytest.raises(RequestError, match="The strength"):
        handlers.preview(Click(studio, session, {"strength": strength}, FORM))
    assert session.start == start and session.grid is None


def test_a_final_can_be_the_next_start(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    make_grid(studio, session)
    with pytest.raises(RequestError, match="not finished"):
        begin_with_final(Click(studio, session, {"stage": "another"}))
    done = refine(studio, session, 12)
    begin_with_final(Click(studio, session, {"stage": done["id"]}))
    assert session.start
    final = pixels(picture_of(session, done["picture"]))
    assert np.array_equal(pixels(session.start.picture), final)
    assert b"parameters" not in session.start.picture, "it says nothing of where it came from"


def test_two_people_have_a_start_each(studio: Studio, new_session: NewSession) -> None:
    mine, yours = new_session(), new_session()
    begun(mine, 3), begun(yours, 4)
    handlers.preview(Click(studio, mine, form=FORM))
    handlers.preview(Click(studio, yours, form=FORM))
    mine.settle()
    yours.settle()
    assert mine.grid and yours.grid and mine.grid.start != yours.grid.start
    one, other = grid_view(mine), grid_view(yours)
    assert one and other
    first, second = (
        pixels(picture_of(s, v["tiles"][0]["picture"])) for s, v in ((mine, one), (yours, other))
    )
    assert np.abs(first - second).max() > 3


# ---- nothing is lost


def test_after_a_restart_the_start_is_there(studio: Studio, tmp_path: Path) -> None:
    session = Sessions(History(tmp_path)).of("0" * 64, "0" * 64)
    begun(session)
    handlers.preview(Click(studio, session, {"strength": 0.7}, FORM))
    session.settle()
    again = Sessions(History(tmp_path)).of("0" * 64, "1" * 64)
    assert again.start == session.start
    assert start_view(again) == start_view(session)
    assert refine(studio, again, 11)["state"] == "done"
    handlers.reroll(Click(studio, again, {"grid": again.grid.id if again.grid else ""}, Form(full_steps=8)))
    again.settle()
    assert again.grid and again.grid.start == session.start


def test_a_lost_start_leaves_the_page_usable(studio: Studio, tmp_path: Path) -> None:
    session = Sessions(History(tmp_path)).of("0" * 64, "0" * 64)
    start = begun(session)
    make_grid(studio, session)
    session.shelf.path(start.name).unlink()
    again = Sessions(History(tmp_path)).of("0" * 64, "1" * 64)
    assert again.grid is None and len(again.shelf.entries) == 1
    with pytest.raises(RequestError, match="gone"):
        handlers.open_entry(Click(studio, again, {"entry": again.shelf.entries[0].id}))


def test_a_start_goes_with_the_last_grid_that_was_made_of_it(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    start = begun(session)
    make_grid(studio, session)
    handlers.clear_history(Click(studio, session))
    assert session.start is None
    assert not session.shelf.folder.exists()
    with pytest.raises(RequestError, match="gone"):
        session.shelf.path(start.name)


def test_the_export_has_the_start(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    make_grid(studio, session)
    start = begun(session)
    make_grid(studio, session)
    with zipfile.ZipFile(export_zip(session.shelf)) as zipped:
        with_start, without = json.loads(zipped.read("session.json"))
        assert zipped.read(with_start["start"]["file"]) == start.picture
    assert with_start["start"]["strength"] == start.strength
    assert without["start"] is None


def test_an_earlier_picture_brings_its_start_back(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    first = make_grid(studio, session)
    start = begun(session)
    handlers.preview(Click(studio, session, {"strength": 0.3}, FORM))
    session.settle()
    assert session.grid
    entry = session.shelf.entries[0]
    refine(studio, session, 11)
    assert session.stage
    begun(session, 9)
    for wish in (
        {"stage": session.stage.id},
        {"entry": entry.id, "picture": entry.previews[1].picture},
        {"picture": from_picture(session.shelf.path(entry.previews[1].picture).read_bytes())},
    ):
        begin_with_nothing(Click(studio, session))
        wanted = wanted_of(Click(studio, session, wish))
        assert set_start_as(Click(studio, session, wish), wanted) == []
        assert session.start == replace(start, strength=0.3)
    plain = {"entry": first["id"], "picture": session.shelf.find(first["id"]).previews[0].picture}
    assert set_start_as(Click(studio, session, plain), wanted_of(Click(studio, session, plain))) == []
    assert session.start is None, "a picture that was made of noise alone is so again"


def test_without_the_start_it_is_said_that_it_lacks(studio: Studio, new_session: NewSession) -> None:
    maker, other = new_session(), new_session()
    start = begun(maker)
    handlers.preview(Click(studio, maker, {"strength": 0.3}, FORM))
    maker.settle()
    begun(other, 9)
    wish = {
        "picture": from_picture(maker.shelf.path(maker.shelf.entries[0].previews[0].picture).read_bytes())
    }
    (missing,) = set_start_as(Click(studio, other, wish), wanted_of(Click(studio, other, wish)))
    assert "starting picture that is not here" in missing
    assert other.start is None, "another picture would make another one"
    begin_with(other, start.picture)
    assert other.start == replace(start, strength=0.3), "given again, it is as it was"
    assert set_start_as(Click(studio, other, wish), wanted_of(Click(studio, other, wish))) == []


def test_a_link_names_the_start(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    start = begun(session)
    make_grid(studio, session)
    link = refine(studio, session, 12)["link"]
    wish = {"link": link}
    begin_with_nothing(Click(studio, session))
    assert set_start_as(Click(studio, session, wish), from_link(link)) == []
    assert session.start == start
    stranger = new_session()
    assert set_start_as(Click(studio, stranger, wish), from_link(link)) != []
    begun(stranger)
    plain = {"link": {"prompt": "lake", "seed": "4"}}
    assert set_start_as(Click(studio, stranger, plain), from_link(plain["link"])) == []
    assert stranger.start, "a refresh follows the link again, and takes away nothing"


@pytest.mark.parametrize("mark", ["", "../../etc", "*", "0" * 9, "G" * 10, ["0"], 7, None])
def test_only_marks_are_taken_for_marks(new_session: NewSession, mark: Any) -> None:
    session = new_session()
    begun(session)
    assert session.shelf.find_start(mark) is None


def test_a_strength_of_enlarging_is_no_start(studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    settings = {"Seed": "1", "Denoising strength": "0.7", "Hires upscale": "2"}
    wish = {"picture": {"prompt": "lake", "settings": settings}}
    assert set_start_as(Click(studio, session, wish), wish["picture"]) == []
    del settings["Hires upscale"]
    assert set_start_as(Click(studio, session, wish), wish["picture"]) != []
    assert session.strength == 0.7


# ---- sizes, and models that edit


def test_a_size_of_the_models_is_taken_and_no_other(wide_studio: Studio, new_session: NewSession) -> None:
    session = new_session()
    begun(session, size=(200, 50))
    grid = make_grid(wide_studio, session, replace(FORM, size="96x64"))
    assert grid["size"] == (96, 64)
    assert Image.open(io.BytesIO(picture_of(session, grid["tiles"][0]["picture"]))).size == (96, 64)
    handlers.reroll(Click(wide_studio, session, {"grid": grid["id"]}, Form(full_steps=8)))
    session.settle()
    assert session.grid
    done = refine(wide_studio, session, session.grid.tiles[0].seed)
    assert done["size"] == (96, 64)
    assert ["Size", "96 × 64 pixels"] in done["facts"]
    values, notes = form_values(from_link(done["link"]), wide_studio.backend.facts)
    assert (values["size"], notes) == ("96x64", [])
    for wrong in ("128x64", "96", "a lake", "96x64x3", "-96x64"):
        with pytest.raises(RequestError, match="Choose one of: 64x64, 96x64, 64x96"):
            handlers.preview(Click(wide_studio, session, form=replace(FORM, size=wrong)))
    begin_with_nothing(Click(wide_studio, session))
    assert make_grid(wide_studio, session)["size"] == (64, 64)


def test_the_form_offers_what_the_model_can_do(model: ImageModel) -> None:
    form = form_for(model.facts)
    assert not form["size"]["visible"]
    wide = form_for(replace(model.facts, sizes=SIZES))
    assert wide["size"]["visible"]
    assert [value for _, value in wide["size"]["choices"]] == ["64x64", "96x64", "64x96"]
    told = form_for(replace(model.facts, guidance_kind="none", guidance_limits=(1.0, 1.0), guidance=1.0))
    assert not told["guidance"]["visible"] and not told["negative_prompt"]["visible"]
    editing = replace(model.facts, edits=True)
    assert preview_steps(editing)[0] == 3 < form_for(editing)["steps"]["value"] <= 5
    values, _ = form_values({"prompt": "lake", "settings": {"Steps": "3"}}, editing)
    assert values["steps"] == 3


def test_a_page_that_was_open_before_a_restart_keeps_its_choices(served: Served) -> None:
    """The app has not told it of sizes, nor that fewer steps will do, since it began."""
    parts = {getattr(part, "label", ""): part for part in served.page.blocks.values()}
    assert parts["Size"].choices == [] and parts["Preview steps"].minimum == 4
    for label, value in (("Size", "96x64"), ("Preview steps", 3)):
        assert parts[label].preprocess(value) == value


def test_an_edit_knows_no_strength(model: ImageModel, new_session: NewSession) -> None:
    worker = Worker(replace(model, facts=replace(model.facts, edits=True)))
    session = new_session()
    begun(session)
    # The tiny model does not really edit, so its grid is only asked for.
    handlers.preview(Click(Studio(worker, Sketches()), session, {"strength": 0.3}, FORM))
    assert session.grid and session.grid.start and session.grid.start.strength == 1
    assert session.strength == Start.strength
    session.stop()
    session.settle()
    worker.close()


# ---- as it is served

BROWSER, TAB = "5a" * 32, "7b" * 32


def sent(url: str, data: bytes, named: bytes | None = None) -> httpx.Response:
    line = json.dumps({"browser": BROWSER, "tab": TAB}).encode() if named is None else named
    return httpx.post(f"{url}start", content=line + b"\n" + data, timeout=60)


def test_a_picture_is_sent_and_shown_to_its_tab(served: Served) -> None:
    assert sent(served.url, noise()).status_code == 204
    session = served.page.sessions.of(BROWSER, TAB)
    view = start_view(session)
    assert view
    shown = httpx.get(f"{served.url}{view['picture']}")
    assert (shown.status_code, shown.headers["content-type"]) == (200, "image/jpeg")
    assert stage_view(session) is None


@pytest.mark.parametrize("named", [b"", b"{", b"[]", b'{"browser": "../..", "tab": "x"}'])
def test_whoever_does_not_say_who_they_are_is_refused(url: str, named: bytes) -> None:
    answer = sent(url, noise(), named)
    assert (answer.status_code, answer.json()["error"][-9:]) == (400, "it again.")


def test_a_bad_file_is_refused_with_a_message(url: str) -> None:
    answer = sent(url, b"Dear all")
    assert answer.status_code == 400
    assert "not a picture" in answer.json()["error"]
    assert "the limit is 20 MB" in sent(url, bytes(uploads.MAX_BYTES + 5000)).json()["error"]


def test_programs_get_the_pages_picture(served: Served, tmp_path: Path) -> None:
    (tmp_path / "start.png").write_bytes(noise((90, 64)))
    client = gradio_client.Client(served.url, verbose=False, download_files=str(tmp_path / "got"))
    options: dict[str, Any] = {"prompt": "snowy mountains", "seed": 10, "steps": 4, "count": 1}
    options |= {"picture": gradio_client.handle_file(tmp_path / "start.png"), "strength": 0.5}
    (file,), (record,) = client.predict(**options, api_name="/preview")
    studio, session = Studio(served.worker, Sketches()), served.page.sessions.of("6c" * 32, TAB)
    begin_with(session, noise((90, 64)))
    handlers.preview(Click(studio, session, {"strength": 0.5}, replace(FORM, count=1)))
    session.settle()
    grid = grid_view(session)
    assert grid and record["strength"] == 0.5
    shown = pixels(picture_of(session, grid["tiles"][0]["picture"]))
    assert np.abs(pixels(Path(file).read_bytes()) - shown).max() <= 1
