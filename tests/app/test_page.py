"""The whole way in a real browser: prompt, previews, reroll, pick, refined picture, download."""

import os
import time
from pathlib import Path

import pytest

from app import png
from app.job import Cancelled
from app.latency import BROWSER_OPTIONS, BROWSERS, find_browser
from app.scheduling import SPECULATED_SHARE
from tests.app.conftest import Served

sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser():
    found = find_browser()
    if found is None:
        reason = f"no browser to open the page with: none of {', '.join(BROWSERS)} is installed"
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(BROWSER_OPTIONS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url: str):
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.errors, page.foreign = [], []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on(
        "request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else page.foreign.append(r.url)
    )
    page.goto(url)
    page.locator("#prompt input").wait_for()
    yield page
    page.close()


def preview(page, prompt: str) -> None:
    page.fill("#prompt input", prompt)
    page.press("#prompt input", "Enter")
    wait_for_grid(page)


def wait_for_grid(page) -> None:
    page.locator(".grid[aria-busy=false] .tile img:not([hidden])").first.wait_for()


def sources(page) -> list[str]:
    return page.eval_on_selector_all(".tile img", "images => images.map(image => image.src)")


def test_from_prompt_to_downloaded_picture(page, tmp_path: Path) -> None:
    preview(page, "snowy mountains with a zeppelin")
    before = sources(page)
    assert len(set(before)) == 4
    assert page.locator(".tile img").first.evaluate("image => image.naturalWidth") == 64
    assert page.locator(".tile img").first.bounding_box()["width"] >= 220
    assert "zeppelin" in page.locator(".grid-ignored").inner_text()

    others = page.get_by_role("button", name="Reroll the others")
    assert others.is_disabled()
    page.locator(".keep").nth(1).click()
    others.click()
    page.wait_for_function("before => document.querySelector('.tile img').src !== before", arg=before[0])
    wait_for_grid(page)
    after = sources(page)
    assert after[1] == before[1]
    assert not set(after) & (set(before) - {before[1]})

    seed = page.locator(".seed").nth(1).inner_text().removeprefix("#")
    page.locator(".tile .refine").nth(1).click()
    page.locator(".stage[data-state=done]").wait_for()
    assert page.locator(".compare-preview").get_attribute("src") == after[1]
    assert "dB" in page.locator(".likeness").inner_text()
    page.locator(".compare-handle").fill("20")
    assert page.locator(".compare").evaluate("node => node.style.getPropertyValue('--split')") == "20%"

    with page.expect_download() as download:
        page.get_by_role("button", name="Download PNG").click()
    download.value.save_as(tmp_path / "picture.png")
    assert download.value.suggested_filename == f"tiny-seed-{seed}-40-steps.png"
    parameters = png.read((tmp_path / "picture.png").read_bytes())
    assert parameters.prompt == "snowy mountains with a zeppelin"
    assert (parameters.settings["Seed"], parameters.settings["Steps"]) == (seed, "40")
    assert page.errors == []
    assert page.foreign == [], "the page loads nothing from elsewhere"


def test_mistakes_are_told_on_the_page(page) -> None:
    page.press("#prompt input", "Enter")
    page.get_by_text("The prompt is empty.").wait_for()
    assert page.locator(".tile.ghost").count() == 4


def test_an_example_and_a_surprise_fill_the_prompt_and_start(page) -> None:
    page.locator(".ideas button").first.click()
    wait_for_grid(page)
    example = page.locator("#prompt input").input_value()
    page.locator(".surprise").click()
    page.wait_for_function("old => document.querySelector('#prompt input').value !== old", arg=example)
    assert page.errors == []


def test_prompts_are_shown_as_text(page) -> None:
    prompt = "lake <img src=x> ${1+1} `` {{y}}"
    preview(page, prompt)
    assert prompt in page.locator(".tile img").first.get_attribute("alt")
    assert page.errors == []


def test_a_closed_page_leaves_no_work_behind(
    browser, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, handles = served.worker, []
    submit, denoise = worker.submit_all, worker._denoise

    def note(jobs):
        handles.extend(submit(jobs))
        return handles

    def slow(*args):
        time.sleep(3)
        return denoise(*args)

    monkeypatch.setattr(worker, "submit_all", note)
    monkeypatch.setattr(worker, "_denoise", slow)
    page = browser.new_page()
    page.goto(served.url)
    page.fill("#prompt input", "snowy mountains")
    page.press("#prompt input", "Enter")
    page.locator(".tile.is-waiting").first.wait_for()
    page.close()
    assert [list(handle.events())[-1] for handle in handles] == [Cancelled()] * 4


def test_the_preview_that_the_pointer_rests_on_is_refined_ahead(page, served: Served) -> None:
    worker = served.worker
    before = worker.made["speculative"]
    preview(page, "snowy mountains")
    page.locator(".tile").nth(2).hover()
    deadline = time.monotonic() + 60
    all_but_the_pointed_at = 3 * round(SPECULATED_SHARE * 40)
    while worker.made["speculative"] - before < all_but_the_pointed_at + 40:
        assert time.monotonic() < deadline, "the one pointed at was not taken to the end"
        time.sleep(0.05)
    page.locator(".tile .tile-picture").nth(2).click()
    page.locator(".stage[data-state=done]").wait_for()
    assert page.errors == []
