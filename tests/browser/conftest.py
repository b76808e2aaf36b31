"""One browser for all tests of the page, and what they do in it."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.worker.denoiser import BatchDenoiser
from tests.conftest import PATIENCE_S, Served
from tools.latency import BROWSER_OPTIONS, BROWSERS, find_browser

sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
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


NewPage = Callable[..., Any]
OpenPage = Callable[..., Any]
Hold = Callable[[str], Callable[[], None]]


@pytest.fixture
def new_page(browser: Any) -> Iterator[NewPage]:
    """Opens an empty page in a browser of its own, with Playwright's options; `like` shares another page's.

    Errors of its scripts are in `errors`.
    """
    contexts = []

    def new_page(like: Any = None, **options: Any) -> Any:
        if like is None:
            contexts.append(browser.new_context(**options))
            contexts[-1].set_default_timeout(1000 * PATIENCE_S)
        page = (like.context if like else contexts[-1]).new_page()
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        return page

    yield new_page
    for context in contexts:
        context.close()


@pytest.fixture
def open_page(new_page: NewPage, url: str) -> OpenPage:
    """Opens the app's page; also notes the errors in its console, and requests to others in `foreign`."""

    def open_page(address: str = "", like: Any = None, **options: Any) -> Any:
        page = new_page(like, **options)
        page.foreign = []
        page.on("console", lambda said: page.errors.append(said.text) if said.type == "error" else None)
        page.on(
            "request",
            lambda asked: (
                None if asked.url.startswith((url, "data:", "blob:")) else page.foreign.append(asked.url)
            ),
        )
        page.goto(url + address)
        page.locator(".page-foot", has_text=re.compile("pixels")).wait_for()
        return page

    return open_page


@pytest.fixture
def page(open_page: OpenPage) -> Any:
    return open_page()


def preview(page: Any, prompt: str = "snowy mountains") -> None:
    """Types a prompt, presses Enter, and waits for its previews."""
    page.fill("#prompt input", prompt)
    page.press("#prompt input", "Enter")
    page.locator(f".tile img[alt*='“{prompt}”']").nth(3).wait_for()
    wait_for_grid(page)


def wait_for_grid(page: Any) -> None:
    page.locator(".grid[aria-busy=false] .tile img:not([hidden])").first.wait_for()


def listen(page: Any, selector: str) -> None:
    """Writes the texts of messages down in `said`, since they go away by themselves."""
    page.evaluate(
        """(selector) => {
            window.said = [];
            new MutationObserver((changes) => {
                for (const { addedNodes } of changes)
                    for (const node of addedNodes) said.push(node.textContent);
            }).observe(document.querySelector(selector), { childList: true });
        }""",
        selector,
    )


def sources(page: Any) -> list[str]:
    return page.eval_on_selector_all(".tile img", "images => images.map(image => image.src)")


def seeds(page: Any) -> list[str]:
    return [text.removeprefix("#") for text in page.locator(".tile .seed").all_inner_texts()]


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hold]:
    """Has pictures of a kind take three steps and no more, until what this gives is called."""
    go_on = threading.Event()

    def hold(kind: str) -> Callable[[], None]:
        denoise = BatchDenoiser.denoise

        def held(self: BatchDenoiser, batch: Any) -> Any:
            if any(sample.kind == kind and sample.steps_done >= 3 for sample in batch):
                go_on.wait()
            return denoise(self, batch)

        monkeypatch.setattr(BatchDenoiser, "denoise", held)
        return go_on.set

    yield hold
    go_on.set()


@pytest.fixture
def slow(served: Served, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Has every call of the denoiser take so many seconds more."""

    def slow(seconds: float) -> None:
        denoise = BatchDenoiser.denoise

        def slowed(self: BatchDenoiser, *args: Any) -> Any:
            time.sleep(seconds)
            return denoise(self, *args)

        monkeypatch.setattr(BatchDenoiser, "denoise", slowed)

    return slow
