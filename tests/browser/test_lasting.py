"""Nothing is lost: refresh, two tabs, history, links, dropped pictures, and a connection that breaks."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from app.jobs import metadata, png
from tests.browser.conftest import Hold, OpenPage, preview, seeds, sources, wait_for_grid


def test_a_refresh_in_the_middle_of_a_refinement(page: Any, hold: Hold) -> None:
    preview(page)
    before = sources(page)
    page.locator(".keep").nth(3).click()
    go_on = hold("refine")
    page.locator(".tile .refine").first.click()
    page.locator(".stage[data-state=running]").wait_for()
    page.reload()
    page.locator(".stage[data-state=running]").wait_for()
    page.wait_for_function("document.querySelector('#prompt input').value === 'snowy mountains'")
    assert sources(page)[1:] == before[1:]
    assert page.locator(".keep").nth(3).inner_text() == "Kept"
    go_on()
    page.locator(".stage[data-state=done]").wait_for()
    assert "dB" in page.locator(".likeness").inner_text()
    assert page.errors == []


def test_two_tabs_have_a_grid_each_and_one_history(page: Any, open_page: OpenPage) -> None:
    preview(page, "quiet hills")
    mine = sources(page)
    other = open_page(like=page)
    assert other.locator(".tile.ghost").count() == 4
    other.locator(".entry-prompt", has_text="quiet hills").wait_for()
    preview(other, "a lake at night")
    assert sources(page) == mine
    page.locator(".entry-prompt", has_text="a lake at night").wait_for()
    stranger = open_page()
    assert stranger.locator(".entry").count() == 0
    assert page.errors == other.errors == stranger.errors == []


def test_earlier_pictures_can_be_opened_and_used_as_a_start(page: Any) -> None:
    preview(page, "quiet hills")
    first = seeds(page)
    preview(page, "a lake at night")
    page.locator(".entry .open").nth(1).click()
    page.locator(".tile img[alt*='quiet hills']").first.wait_for()
    assert seeds(page) == first
    page.locator(".entry").nth(1).locator(".entry-picture").nth(2).click()
    page.wait_for_function("document.querySelector('#prompt input').value === 'quiet hills'")
    page.press("#prompt input", "Enter")
    page.wait_for_function("seed => document.querySelector('.seed').textContent === '#' + seed", arg=first[2])
    wait_for_grid(page)
    assert page.errors == []


def test_deleting_is_one_click_and_can_be_undone(page: Any) -> None:
    preview(page, "quiet hills")
    page.locator(".entry .delete").click()
    page.locator(".entry").wait_for(state="detached")
    page.get_by_role("button", name="Undo").click()
    page.locator(".entry").wait_for()
    page.get_by_role("button", name="Delete all").click()
    page.get_by_role("button", name="Delete everything").click()
    page.locator(".history").wait_for(state="hidden")
    assert page.locator(".tile.ghost").count() == 4
    page.reload()
    page.locator(".tile.ghost").first.wait_for()
    assert page.errors == []


def test_a_link_restores_prompt_seed_and_settings(open_page: OpenPage) -> None:
    page = open_page("?prompt=wide+sea+at+dawn&seed=41&guidance=4&steps=5&solver=unipc")
    page.wait_for_function("document.querySelector('#prompt input').value === 'wide sea at dawn'")
    page.press("#prompt input", "Enter")
    wait_for_grid(page)
    assert seeds(page) == ["41", "42", "43", "44"]
    assert "5 steps · unipc" in page.locator(".grid-note").inner_text()
    assert page.errors == []


def type_setting(page: Any, label: str, value: str) -> None:
    page.locator(".settings").get_by_label(label).first.fill(value)
    page.keyboard.press("Tab")


def setting(page: Any, label: str) -> str:
    return str(page.locator(".settings").get_by_label(label).first.input_value())


def test_the_form_outlives_a_refresh_and_a_link_is_followed_once(open_page: OpenPage) -> None:
    page = open_page("?prompt=wide+sea&seed=41&variations=7:0.3&full_solver=euler&guidance=4")
    note = page.locator(".settings-note")
    note.get_by_text("first seed 41 ~ 7:0.3").wait_for()
    page.press("#prompt input", "Enter")
    wait_for_grid(page)
    assert seeds(page) == [f"41 ~ {seed}" for seed in (7, 8, 9, 10)]
    before = sources(page)
    page.locator(".settings .label-wrap").click()
    assert setting(page, "Variation") == "7:0.3" and setting(page, "Full solver") == "euler"
    page.locator("#prompt input").fill("wide sea at dawn")
    type_setting(page, "Negative prompt", "fog")
    type_setting(page, "Variation", "7:0.3, 8:0.1")
    note.get_by_text("7:0.3, 8:0.1 · a negative prompt").wait_for()
    page.reload()
    note.get_by_text("7:0.3, 8:0.1 · a negative prompt").wait_for()
    assert page.locator("#prompt input").input_value() == "wide sea at dawn"
    assert sources(page) == before
    page.press("#prompt input", "Enter")
    page.locator(".tile .seed", has_text="#41 ~ 7 ~ 8").first.wait_for()
    wait_for_grid(page)
    page.locator(".tile .refine").first.click()
    page.locator(".stage[data-state=done]").wait_for()
    facts = page.locator(".facts").inner_text()
    assert "turned 30% towards that of 7, then 10% towards that of 8" in facts and "40 steps, euler" in facts
    page.locator(".settings .label-wrap").click()
    page.get_by_label("Random seeds").check()
    note.get_by_text("a negative prompt", exact=True).wait_for()
    page.goto(page.url)
    note.get_by_text("first seed 41 ~ 7:0.3", exact=True).wait_for()
    assert page.errors == []


def drop(page: Any, name: str, data: bytes) -> None:
    page.evaluate(
        """([name, bytes]) => {
            const moved = new DataTransfer();
            moved.items.add(new File([new Uint8Array(bytes)], name));
            const options = { dataTransfer: moved, bubbles: true, cancelable: true };
            const told = (type) => document.body.dispatchEvent(new DragEvent(type, options));
            ["dragover", "drop"].forEach(told);
        }""",
        [name, list(data)],
    )


def test_a_dropped_picture_restores_its_prompt_and_another_is_a_start(page: Any, tmp_path: Path) -> None:
    from PIL import Image

    picture = Image.new("RGB", (64, 64))
    settings = {"Steps": "30", "Sampler": "Euler a", "CFG scale": "7", "Seed": "99", "Model": "other"}
    drop(page, "any.name", png.write(picture, png.Parameters("a boat on the lake", "stars", settings)))
    page.wait_for_function("document.querySelector('#prompt input').value === 'a boat on the lake'")
    page.get_by_text("It was made by other").wait_for()
    page.press("#prompt input", "Enter")
    wait_for_grid(page)
    assert seeds(page)[0] == "99"
    plain = io.BytesIO()
    picture.save(plain, "PNG")
    assert page.errors == []
    drop(page, "photo.png", plain.getvalue())
    page.locator(".start-picture").wait_for()
    drop(page, "letter.png", b"Dear all, this is no picture.")
    page.get_by_text("not a picture").wait_for()
    assert page.locator(".start-picture").is_visible()


def test_the_session_is_exported_with_its_pictures(page: Any, tmp_path: Path) -> None:
    preview(page, "quiet hills")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    download.value.save_as(tmp_path / "session.zip")
    with zipfile.ZipFile(tmp_path / "session.zip") as zipped:
        assert zipped.testzip() is None
        (grid,) = json.loads(zipped.read("session.json"))
        assert [str(shot["seed"]) for shot in grid["previews"]] == seeds(page)
        for shot in grid["previews"]:
            assert metadata.read(zipped.read(shot["file"])).settings["Seed"] == str(shot["seed"])
    assert page.errors == []


def test_a_lost_connection_is_told_and_comes_back(page: Any) -> None:
    preview(page, "quiet hills")
    page.context.set_offline(True)
    page.get_by_text("The connection is lost").wait_for()
    before = sources(page)
    for do in (lambda: page.press("#prompt input", "Enter"), page.locator(".keep").first.click):
        do()
        page.locator(".toast", has_text="so this was not done").wait_for()
        page.locator(".toast-close").click()
    assert page.locator(".is-expecting").count() == 0
    page.context.set_offline(False)
    page.locator(".lost").wait_for(state="hidden")
    assert sources(page) == before
    preview(page, "a lake at night")


@pytest.mark.parametrize("storage", ["localStorage", "sessionStorage"])
def test_without_storage_the_page_works_all_the_same(open_page: OpenPage, storage: str) -> None:
    page = open_page()
    page.add_init_script(
        f"Object.defineProperty(window, '{storage}', {{ get() {{ throw new Error('forbidden'); }} }})"
    )
    page.reload()
    preview(page, "quiet hills")
