"""All that a participant meets is in the study file's words: its own texts, or what is in its [words]."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.server import auth, service
from app.server.metered import MeteredBackend
from app.server.metrics import Metrics
from app.server.settings import Settings
from app.study.plan.definition import Study
from app.study.plan.labels import LABELS, PLACES
from app.worker.denoiser import BatchDenoiser
from app.worker.loop import UNHEALTHY_FAILURES
from tests.app.study.conftest import TEXT
from tests.browser.conftest import NewPage
from tests.browser.test_study import Join, agree, join, make, rate, running, study
from tests.conftest import Served

__all__ = ["join", "study"]  # fixtures

# What there is to read on a page, or to be heard of it.
SAID = """() => {
  const said = [], seen = document.querySelector("body");
  for (const node of seen.querySelectorAll("*")) {
    if (node.closest("script, style, [hidden], template") || !node.checkVisibility()) continue;
    for (const name of ["aria-label", "alt", "title", "placeholder", "aria-valuetext"])
      if (node.getAttribute(name)) said.push(node.getAttribute(name));
    for (const id of (node.getAttribute("aria-labelledby") || "").split(" "))
      if (id) said.push(document.getElementById(id)?.textContent || "");
    for (const child of node.childNodes) if (child.nodeType === 3) said.push(child.textContent);
  }
  return said;
}"""


def texts_of(values: Any) -> Iterator[str]:
    """All texts in a file."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict | list):
        for each in values.values() if isinstance(values, dict) else values:
            yield from texts_of(each)


@pytest.fixture
def marked(study: Study) -> Study:
    """A study whose every word is marked as its own, such as «start» or «trial {place} {count}»."""
    words = {
        name: f"«{' '.join([name, *(f'{{{each}}}' for each in PLACES.findall(text))])}»"
        for name, text in LABELS["en"].items()
    }
    return replace(study, language="nl", words=words)


def foreign(page: Any) -> list[str]:
    """What is on the page and neither in the study's file, nor marked, nor a number."""
    known = sorted({*texts_of(tomllib.loads(TEXT)), "snowy mountains"}, key=len, reverse=True)
    left = []
    for said in page.evaluate(SAID):
        rest = re.sub("«[^»]*»", "", said)
        for text in known:
            rest = rest.replace(text, "")
        if re.search(r"[^\W\d_]", rest):
            left.append(said)
    return left


def test_every_word_on_every_page_is_the_studys(
    served: Served, marked: Study, tmp_path: Path, join: Join
) -> None:
    with running(served, marked, tmp_path) as lab:
        page = join(lab)
        assert foreign(page) == []
        agree(page, words=True)
        assert page.evaluate("document.documentElement.lang") == "nl"
        for number in range(3):
            assert foreign(page) == []
            make(page)
            assert foreign(page) == []
            page.locator(".tile .keep").first.click()
            page.locator(".tile.is-kept").wait_for()
            page.locator(".tile .refine").first.click()
            page.locator(".stage[data-state=done]").wait_for()
            assert foreign(page) == []
            if number == 2:
                page.locator(".study-give-up").click()
            else:
                page.locator(".study-satisfied").click()
            page.locator(".study-rating").wait_for()
            assert foreign(page) == []
            if number < 2:
                rate(page)
            else:
                page.locator(".study-go").click()
        page.locator(".study-closing").wait_for()
        assert foreign(page) == []
        page.locator(".study-go").click()
        code = page.locator(".study-code").inner_text()
        assert [each for each in foreign(page) if each != code] == []
        assert page.errors == []


def test_what_goes_wrong_is_told_in_the_studys_words(
    served: Served, marked: Study, tmp_path: Path, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(served, marked, tmp_path) as lab:
        page = join(lab)
        agree(page)

        def fail(self: Any, asked: Any) -> Any:
            raise RuntimeError("out of memory")

        with monkeypatch.context() as failing:
            failing.setattr(BatchDenoiser, "denoise", fail)
            page.locator(".study-ask").click()
            page.locator(".tile-problem", has_text="«not_made»").nth(1).wait_for()
            assert foreign(page) == []
        with monkeypatch.context() as failing:
            failing.setattr("app.study.page.layout.perform", fail)
            page.locator(".reroll").click()
            page.locator(".toast", has_text="«problem»").wait_for()
            assert foreign(page) == []
        with monkeypatch.context() as failing:
            failing.setattr(served.worker, "_failures", UNHEALTHY_FAILURES)
            page.locator(".status", has_text="«broken»").wait_for()
            assert foreign(page) == []
        lab.page.close()
        page.locator(".lost", has_text="«lost»").wait_for()
        assert foreign(page) == []


def test_whoever_has_to_log_in_is_asked_in_the_studys_words(
    served: Served, marked: Study, tmp_path: Path, new_page: NewPage
) -> None:
    auth.add(tmp_path / "logins", "lab", "a lake at night")
    metered = MeteredBackend(served.worker, Metrics())
    options = service.launch_options(Settings(), metered, auth.read(tmp_path / "logins"))
    with running(served, marked, tmp_path, **options) as lab:
        page = new_page()
        page.goto(lab.url)
        assert page.title() == "«login_log_in» · Small" and foreign(page) == []
        page.fill("#username", "lab")
        page.fill("#password", "wrong")
        page.keyboard.press("Enter")
        page.get_by_role("alert").get_by_text("«login_wrong»").wait_for()
        page.fill("#password", "a lake at night")
        page.keyboard.press("Enter")
        page.locator(".study-consent .study-go").wait_for()
        assert foreign(page) == []
