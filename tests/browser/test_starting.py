"""From a picture in hand to a refined one, in a real browser."""

from typing import Any

import pytest

from app.jobs import metadata
from tests.app.page.test_image_to_image import png as noise
from tests.browser.conftest import OpenPage, preview, sources, wait_for_grid
from tests.browser.test_for_everybody import PHONE, violations


def choose(page: Any, data: bytes, button: str = "#begin") -> None:
    with page.expect_file_chooser() as chooser:
        page.locator(button).click()
    chooser.value.set_files({"name": "start.png", "mimeType": "image/png", "buffer": data})


def choose_picture(page: Any) -> None:
    choose(page, noise((90, 64)))
    page.locator(".start-picture").wait_for()


def test_from_a_picture_to_a_refined_one(page: Any) -> None:
    choose_picture(page)
    page.locator(".start-strength input").focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    assert page.locator(".start-strength b").inner_text() == "40 %"
    preview(page)
    page.reload()
    page.locator(".start-picture").wait_for()
    wait_for_grid(page)
    assert page.locator(".start-strength input").input_value() == "40"
    page.locator(".tile .refine").nth(1).click()
    page.locator(".stage[data-state=done]").wait_for()
    assert "a picture, strength 40%" in page.locator(".facts").inner_text()
    final = page.request.get(page.locator(".compare-final").get_attribute("src"))
    assert metadata.read(final.body()).settings["Denoising strength"] == "0.4"

    before = page.locator(".start-picture").get_attribute("src")
    page.get_by_role("button", name="Start from this picture").click()
    page.wait_for_function("old => document.querySelector('.start-picture').src !== old", arg=before)
    page.locator(".start-remove").click()
    page.locator(".start").wait_for(state="hidden")
    assert page.evaluate("document.activeElement.matches('#prompt input')")
    old = sources(page)
    preview(page, "quiet hills")
    assert not set(old) & set(sources(page))
    assert page.locator("#begin").is_visible()
    assert page.errors == []


def test_what_is_no_picture_is_told_and_the_start_stays(page: Any) -> None:
    choose_picture(page)
    shown = page.locator(".start-picture").get_attribute("src")
    choose(page, b"Dear all", ".start-replace")
    page.get_by_role("alert").get_by_text("not a picture").wait_for()
    assert page.locator(".start-picture").get_attribute("src") == shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_start_is_for_everybody(open_page: OpenPage, scheme: str) -> None:
    page = open_page(color_scheme=scheme, reduced_motion="reduce", **PHONE)
    choose_picture(page)
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["viewport"]["width"]  # type: ignore[index]
    for button in page.locator(".start button").all():
        assert button.bounding_box()["height"] >= 44
    assert page.get_by_role("slider", name="Strength").is_visible()
    assert page.errors == []
