"""The page for everybody: screen readers, phones, dark mode, reduced motion, and slow lines."""

import re
import time
from typing import Any

import pytest

from app.backends.base import Backend
from app.page import live
from app.page.session import Session
from tests.browser.conftest import OpenPage, listen, preview, wait_for_grid
from tools.latency import MAX_KB, visit_bytes

axe = pytest.importorskip("axe_playwright_python.sync_playwright")

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


def violations(page: Any) -> list[str]:
    """What axe-core finds that is serious or critical: the rule, and where."""
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:160]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def finish_one(page: Any) -> None:
    preview(page, "quiet hills with a zeppelin")
    for place, button in ((1, ".keep"), (2, ".refine")):
        tile = page.locator(f".tile:nth-child({place})")
        if not tile.locator(button).is_visible():  # on a phone, until it is selected
            tile.locator(".tile-picture").tap()
        tile.locator(button).click()
    page.locator(".stage[data-state=done]").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_violation_of_accessibility(open_page: OpenPage, scheme: str) -> None:
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    assert violations(page) == []
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Full steps").first.wait_for()
    finish_one(page)
    page.press("#prompt input", "Control+a")
    page.press("#prompt input", "Delete")
    page.press("#prompt input", "Enter")
    page.get_by_role("alert").wait_for()
    assert violations(page) == []
    for name in ("Keys", "About"):
        page.get_by_role("button", name=name, exact=True).click()
        page.locator("dialog[open]").wait_for()
        assert violations(page) == []
        page.keyboard.press("Escape")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in dark[4:-1].split(",")[:3]) < 200) == (scheme == "dark")
    assert page.errors == []


SPOKEN = "[aria-live=polite].unseen"


@pytest.fixture(params=["every step is told", "only the end is told"])
def told(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are told what happens as it does, or, as on a slow line, not before it is over."""
    views = live.page_views

    def late(backend: Backend, session: Session) -> dict[str, Any]:
        while (session.grid and session.grid.busy) or (session.stage and session.stage.state == "running"):
            time.sleep(0.02)
        return views(backend, session)

    if request.param == "only the end is told":
        monkeypatch.setattr(live, "page_views", late)


def test_a_screen_reader_hears_what_happens_and_finds_its_way(told: None, page: Any) -> None:
    listen(page, SPOKEN)
    finish_one(page)
    page.wait_for_function("said.some((text) => text.startsWith('Done.'))")
    said = page.evaluate("said")
    there = [text for text in said if text.startswith("4 previews · ")]
    assert len(there) == 1 and "Keys 1 to 4 pick one." in there[0], said
    assert len(said) < 15, "it is not talked to at every step"
    page.reload()
    page.locator(".stage[data-state=done]").wait_for()
    assert page.locator(SPOKEN).text_content() == "", "what is there again after a refresh is no news"
    alts = page.eval_on_selector_all("#studio img", "images => images.map(image => image.alt)")
    assert all("quiet hills" in alt and "seed" in alt for alt in alts)
    order = page.evaluate(
        "[...document.querySelectorAll('input, button, a[href]')].map((node) => node.className)"
    )
    places = [
        next(place for place, name in enumerate(order) if kind in name)
        for kind in ("tile-picture", "keep", "compare-handle", "download", "entry-picture")
    ]
    assert places == sorted(places), "the focus goes from previews to the final to what was made earlier"


@pytest.mark.parametrize("size", [(1280, 800), (1440, 900), (1920, 1080), (390, 844)])
def test_all_four_previews_are_seen_at_once(open_page: OpenPage, size: tuple[int, int]) -> None:
    width, height = size
    phone = {"is_mobile": True, "has_touch": True} if width < 500 else {}
    page = open_page(viewport={"width": width, "height": height}, **phone)
    preview(page, "quiet hills")
    for tile in page.locator(".tile-picture").all():
        box = tile.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= height, box
        assert box["width"] >= (220 if width > 500 else 160)
    if not phone:
        for button in page.locator(".tile-foot button").all():
            box = button.bounding_box()
            assert box["y"] + box["height"] <= height
            assert button.evaluate("node => node.scrollWidth <= node.clientWidth"), "its words are whole"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.errors == []


def test_a_phone_has_two_columns_and_the_buttons_of_the_selected_preview(open_page: OpenPage) -> None:
    page = open_page(**PHONE)
    preview(page, "quiet hills")
    boxes = [tile.bounding_box() for tile in page.locator(".tile-picture").all()]
    assert len({box["x"] for box in boxes}) == len({box["y"] for box in boxes}) == 2
    assert boxes[3]["y"] + boxes[3]["height"] - boxes[0]["y"] < 450, "all four can be seen at once"
    assert page.locator(".tile-foot:visible").count() == 0
    page.get_by_text("Tap a preview").wait_for()
    for place in (1, 2):
        page.locator(".tile-picture").nth(place).tap()
        page.locator(f".tile:nth-child({place + 1}).is-selected .tile-foot").wait_for()
        assert page.locator(".tile-foot:visible").count() == 1
        last = page.locator(".tile-picture").last.bounding_box()
        assert page.locator(".tile-foot:visible").bounding_box()["y"] >= last["y"] + last["height"]
        assert page.locator(".is-picked").count() == 0, "the first tap only selects"
    page.locator(".keep:visible").tap()
    page.locator(".tile:nth-child(3).is-kept").wait_for()
    page.locator(".refine:visible").tap()
    page.locator(".tile:nth-child(3).is-picked").wait_for()
    page.locator(".stage[data-state=done]").wait_for()
    page.locator(".tile-picture").nth(0).tap()
    page.locator(".tile-picture").nth(0).tap()
    page.locator(".tile:nth-child(1).is-picked").wait_for()
    assert page.errors == []


def test_a_phone_has_big_targets_and_nothing_sticks_out(open_page: OpenPage) -> None:
    page = open_page(**PHONE)
    finish_one(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing sticks out"
    for button in page.locator("#go, .tile-foot button, .stage-actions > *, .grid-actions button").all():
        if button.is_visible():
            assert button.bounding_box()["height"] >= 44, button.inner_text()
    page.locator(".stage").scroll_into_view_if_needed()
    assert page.locator(".compare").bounding_box()["width"] > 340
    assert page.errors == []


@pytest.mark.parametrize("options", [{}, PHONE])
def test_sliders_of_the_settings_are_whole_and_dark_in_the_dark(
    open_page: OpenPage, options: dict[str, Any]
) -> None:
    page = open_page(color_scheme="dark", **options)
    page.get_by_role("button", name="Settings").click()
    slider = page.locator(".settings input[type=range]").first
    slider.wait_for()
    track = slider.evaluate("node => getComputedStyle(node).getPropertyValue('--neutral-200')").strip()
    assert sum(bytes.fromhex(track.removeprefix("#"))) < 250
    clipping = """(node) => {
        for (let up = node; !up.matches(".settings"); up = up.parentElement)
            if (getComputedStyle(up).overflow !== "visible") return up.className;
    }"""
    assert slider.evaluate(clipping) is None, "its knob is larger than itself"


# To the right and to the left, a right-to-left override, and two ends too many.
TURNED = "quiet hills \u05d2\u05d1\u05e2\u05d5\u05ea \u202exyzzy\u2069\u202c"
CONTROLS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def test_a_prompt_that_runs_the_other_way_turns_nothing_else(page: Any) -> None:
    page.fill("#prompt input", TURNED)
    page.press("#prompt input", "Enter")
    wait_for_grid(page)
    page.locator(".tile .refine").first.click()
    page.locator(".stage[data-state=done]").wait_for()
    page.locator(".entry-picture.is-final").wait_for()
    words = page.evaluate(
        """() => [...document.querySelectorAll("#studio *")].flatMap((node) =>
            ["alt", "title", "aria-label"].map((name) => node.getAttribute(name) || ""))"""
    )
    named = [text for text in words if "quiet hills" in text]
    assert len(named) > 10
    for text in [*named, page.locator(".grid-ignored").inner_text()]:
        controls = "".join(CONTROLS.findall(text))
        assert re.fullmatch("(\u2068\u2069)*", controls), f"what is opened is closed: {text!r}"
    typed = page.locator(".facts dd, .entry-prompt").get_by_text("quiet hills")
    assert typed.all_text_contents() == [TURNED, TURNED], "it is kept as it was typed"
    assert {node.get_attribute("dir") for node in typed.all()} == {"auto"}
    page.get_by_role("button", name="Use prompt and seed", exact=True).click()
    assert page.locator("#prompt input").input_value() == TURNED


def test_with_reduced_motion_nothing_moves(open_page: OpenPage) -> None:
    page = open_page(reduced_motion="reduce")
    page.fill("#prompt input", "quiet hills")
    page.press("#prompt input", "Enter")
    page.locator(".tile.is-waiting, .tile img[alt*=seed]").first.wait_for()
    moving = page.evaluate(
        """[...document.querySelectorAll('#studio *')]
            .flatMap((node) => [getComputedStyle(node), getComputedStyle(node, '::after')])
            .filter((style) => style.animationName !== 'none' || parseFloat(style.transitionDuration) > 0)
            .length"""
    )
    assert moving == 0


def test_a_first_visit_is_light(page: Any) -> None:
    assert 0 < visit_bytes(page) < 1000 * MAX_KB
