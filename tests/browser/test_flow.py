"""The whole way in a real browser: prompt, previews, reroll, pick, refined picture, download."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.jobs import metadata
from app.jobs.job import Cancelled
from app.worker.scheduling import SPECULATED_SHARE
from tests.browser.conftest import Hold, OpenPage, preview, seeds, sources, wait_for_grid
from tests.conftest import PATIENCE_S, Served


def test_from_prompt_to_downloaded_picture(page: Any, url: str, tmp_path: Path) -> None:
    preview(page, "snowy mountains with a zeppelin")
    before = sources(page)
    assert len(set(before)) == 4
    assert all(source.startswith(f"{url}pictures/") for source in before), "files, not data in the page"
    assert page.locator(".tile img").first.evaluate("image => image.naturalWidth") == 64
    assert page.locator(".tile img").first.bounding_box()["width"] >= 220
    assert "zeppelin" in page.locator(".grid-ignored").inner_text()

    page.locator(".keep").nth(1).click()
    page.get_by_role("button", name="Reroll the others").click()
    page.wait_for_function("before => document.querySelector('.tile img').src !== before", arg=before[0])
    wait_for_grid(page)
    after = sources(page)
    assert after[1] == before[1]
    assert not set(after) & (set(before) - {before[1]})

    seed = seeds(page)[1]
    page.locator(".tile .refine").nth(1).click()
    page.locator(".stage[data-state=done]").wait_for()
    assert page.locator(".compare-preview").evaluate("image => image.src") == after[1]
    final = page.locator(".compare-final").evaluate("image => image.src")
    assert sources(page)[1] == final, "the pick has become the final where it stands"
    assert "dB" in page.locator(".likeness").inner_text()
    page.locator(".compare-handle").focus()
    page.keyboard.press("End")
    assert page.locator(".compare").evaluate("node => node.style.getPropertyValue('--split')") == "100%"

    with page.expect_download() as download:
        page.get_by_role("link", name="Download PNG").click()
    download.value.save_as(tmp_path / "picture.png")
    assert download.value.suggested_filename == f"tiny-seed-{seed}-40-steps.png"
    parameters = metadata.read((tmp_path / "picture.png").read_bytes())
    assert parameters.prompt == "snowy mountains with a zeppelin"
    assert (parameters.settings["Seed"], parameters.settings["Steps"]) == (seed, "40")
    assert page.errors == []
    assert page.foreign == [], "the page loads nothing from elsewhere"


def test_the_whole_loop_by_keyboard_alone(page: Any) -> None:
    page.keyboard.type("snowy mountains 12rkv?")  # the prompt has the focus, and no key does more than type
    assert page.locator("#prompt input").input_value() == "snowy mountains 12rkv?"
    assert page.locator("dialog[open]").count() == 0
    page.keyboard.press("Enter")
    page.locator(".tile img[alt*=seed]").nth(3).wait_for()
    wait_for_grid(page)
    before = seeds(page)
    page.keyboard.press("2")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Refine preview 2")
    page.keyboard.press("k")
    page.locator(".tile.is-kept").wait_for()
    page.keyboard.press("r")
    page.wait_for_function("old => document.querySelector('.seed').textContent !== old", arg=f"#{before[0]}")
    wait_for_grid(page)
    assert [new == old for new, old in zip(seeds(page), before, strict=True)] == [False, True, False, False]
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    page.locator(".stage[data-state=done]").wait_for()
    assert before[1] in page.locator(".stage-title").inner_text()
    page.keyboard.press("?")
    page.locator("dialog.keys[open]").wait_for()
    page.keyboard.press("Escape")
    page.locator("dialog.keys[open]").wait_for(state="detached")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.matches('#prompt input')")
    assert page.errors == []


def test_escape_cancels_at_once(page: Any, slow: Callable[[float], None]) -> None:
    preview(page)
    slow(0.3)
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.locator(".stage[data-state=running]").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("Cancelled. The preview is still there.").first.wait_for()
    assert page.locator(".tile.is-refining").count() == 0


def test_escape_cancels_what_is_still_on_its_way_to_the_server(page: Any) -> None:
    held: list[Any] = []
    page.route("**/queue/join*", lambda route: held.append(route))
    page.fill("#prompt input", "quiet hills")
    page.press("#prompt input", "Enter")
    page.locator(".tile.is-expecting").first.wait_for()
    with page.expect_response("**/run/predict"):
        page.keyboard.press("Escape")
    for route in held:
        route.continue_()
    page.unroute("**/queue/join*")
    page.locator(".toast", has_text="Cancelled.").wait_for()
    assert page.locator(".tile.is-expecting").count() == 0
    assert page.locator(".tile img").count() == 0
    preview(page, "quiet hills")
    assert page.errors == []


def test_escape_cancels_what_gradio_has_not_passed_on_yet(page: Any) -> None:
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/queue/join" in request.url else None)
    page.evaluate(
        """() => {
            for (const key of ["Enter", "Escape"]) dispatchEvent(new KeyboardEvent("keydown", { key }));
            dispatchEvent(new CustomEvent("studio", { detail: "preview" }));
        }"""
    )
    page.locator(".toast", has_text="Cancelled.").wait_for()
    assert asked == []
    preview(page, "quiet hills")
    assert asked


def test_previews_sharpen_in_place(
    page: Any, served: Served, monkeypatch: pytest.MonkeyPatch, slow: Callable[[float], None], hold: Hold
) -> None:
    monkeypatch.setattr(served.worker._decoder, "seconds", 0.0)  # so cheap that there are pictures on the way
    slow(0.1)
    go_on = hold("preview")
    page.fill("#prompt input", "quiet hills")
    page.press("#prompt input", "Enter")
    page.locator(".tile.is-waiting img[src*='/sketches/']").first.wait_for()
    tile = page.locator(".tile").first.element_handle()
    go_on()
    wait_for_grid(page)
    assert tile.evaluate("node => node.isConnected && node.querySelector('img').src").count("/pictures/") == 1


def test_mistakes_are_told_on_the_page(page: Any) -> None:
    page.press("#prompt input", "Enter")
    page.get_by_role("alert").get_by_text("The prompt is empty.").wait_for()
    left = page.evaluate(
        """[...document.querySelectorAll(".toast")].filter((toast) => {
            toast.querySelector(".toast-close").click();
            return toast.isConnected;
        }).length"""
    )
    assert left == 0, "a message can be closed"
    assert page.locator(".tile.ghost").count() == 4
    assert page.locator(".grid").get_attribute("aria-busy") == "false"


def test_a_message_about_a_later_try_replaces_the_earlier_one(page: Any) -> None:
    for prompt in ("", "lake " * 500, ""):
        page.fill("#prompt input", prompt)
        page.press("#prompt input", "Enter")
        words = "at most 2,000" if prompt else "The prompt is empty"
        page.locator(".toast", has_text=words).wait_for()
        assert page.locator(".toast").count() == 1
    preview(page)
    assert page.locator(".toast").count() == 0
    assert page.errors == []


def test_a_number_beyond_a_slider_is_not_replaced_without_a_word(page: Any) -> None:
    preview(page)  # by then the form is fitted to the model
    page.locator(".settings .label-wrap").click()
    for label, typed, words in (
        ("Guidance", "0", "Guidance can be 1 to 12. 0 became 1."),
        ("Full steps", "500", "Full steps can be 10 to 100. 500 became 100."),
    ):
        number = page.locator(".settings").get_by_label(f"number input for {label}")
        number.fill(typed)
        page.keyboard.press("Tab")
        page.locator(".toast", has_text=words).wait_for()
        assert number.input_value() == words.removesuffix(".").rpartition(" ")[2]
    assert page.locator(".toast").count() == 1
    assert page.errors == []


def test_two_previews_are_refined_one_beside_the_other(page: Any, hold: Hold) -> None:
    preview(page)
    go_on = hold("refine")
    for place in (0, 1):
        page.locator(".tile .refine").nth(place).click()
        page.locator(f".tile:nth-child({place + 1}).is-picked").wait_for()
    assert page.locator(".tile.is-refining").count() == 2
    go_on()
    page.locator(".stage[data-state=done]").wait_for()
    page.locator(".toast", has_text="is finished, too").wait_for()
    assert page.locator(".tile-state", has_text="Final").count() == 2
    finals = sources(page)[:2]
    assert page.locator(".compare-final").evaluate("image => image.src") == finals[1]
    page.locator(".tile .tile-picture").first.click()
    page.wait_for_function("src => document.querySelector('.compare-final').src === src", arg=finals[0])
    page.locator(".stage[data-state=done]").wait_for()
    page.get_by_role("button", name="Reroll").click()
    page.wait_for_function("old => document.querySelector('.tile img').src !== old", arg=finals[0])
    wait_for_grid(page)
    page.get_by_role("button", name="Use prompt and seed", exact=True).click()
    page.locator(".settings-note", has_text="first seed").wait_for()
    page.locator(".entry-picture.is-final").nth(1).wait_for()
    assert page.errors == []


def test_an_example_and_a_surprise_fill_the_prompt_and_start(page: Any) -> None:
    page.locator(".ideas button").first.click()
    wait_for_grid(page)
    example = page.locator("#prompt input").input_value()
    page.locator(".surprise").click()
    page.wait_for_function("old => document.querySelector('#prompt input').value !== old", arg=example)
    surprise = page.locator("#prompt input").input_value()
    page.locator(f".tile img[alt*='“{surprise}”']").first.wait_for()
    assert page.errors == []


def test_prompts_are_shown_as_text(page: Any) -> None:
    prompt = "lake <img src=x> ${1+1} `` {{y}}"
    page.fill("#prompt input", prompt)
    page.press("#prompt input", "Enter")
    wait_for_grid(page)
    assert prompt in page.locator(".tile img").first.get_attribute("alt")
    page.locator(".entry-prompt", has_text="<img src=x>").wait_for()
    assert page.errors == []


def test_the_preview_that_the_pointer_rests_on_is_refined_ahead(page: Any, served: Served) -> None:
    worker = served.worker
    before = worker.made["speculative"]
    preview(page)
    page.locator(".tile").nth(2).hover()
    deadline = time.monotonic() + PATIENCE_S
    all_but_the_pointed_at = 3 * round(SPECULATED_SHARE * 40)
    while worker.made["speculative"] - before < all_but_the_pointed_at + 40:
        assert time.monotonic() < deadline, "the one pointed at was not taken to the end"
        time.sleep(0.05)
    page.locator(".tile .tile-picture").nth(2).click()
    page.locator(".stage[data-state=done]").wait_for()
    assert page.errors == []


def test_a_closed_page_leaves_no_work_behind(
    open_page: OpenPage, served: Served, monkeypatch: pytest.MonkeyPatch, slow: Callable[[float], None]
) -> None:
    worker, handles = served.worker, []
    submit = worker.submit_all

    def note(jobs: Any) -> Any:
        handles.extend(submit(jobs))
        return handles

    page = open_page()
    monkeypatch.setattr(worker, "submit_all", note)
    monkeypatch.setattr(served.page.sessions, "_grace_s", 0.5)
    slow(3)
    page.fill("#prompt input", "snowy mountains")
    page.press("#prompt input", "Enter")
    page.locator(".tile.is-waiting").first.wait_for()
    page.close()
    assert [list(handle.events())[-1] for handle in handles] == [Cancelled()] * 4
