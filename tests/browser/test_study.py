"""A study in a real browser: from consent to thanks, and what participants must not see, lose or mix up."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.server.service import launch_page
from app.study.__main__ import main
from app.study.log.events import (
    LogEvent,
    Painted,
    RatingGiven,
    Satisfied,
    SessionBegan,
    SessionEnded,
    TrialStart,
)
from app.study.log.pictures import folder_of
from app.study.log.reading import read_log
from app.study.log.store import open_store
from app.study.log.writer import Writer
from app.study.page.layout import build_study_page
from app.study.plan.definition import Study
from app.study.plan.study_file import read_study
from app.study.report.trial_table import trial_table
from tests.app.study.conftest import TEXT
from tests.browser.conftest import NewPage
from tests.conftest import GRACE_S, Served, free_port


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "study.toml"
    path.write_text(TEXT, encoding="utf-8")
    return read_study(path)


@dataclass(frozen=True)
class Running:
    """A study that runs: its address, its log, and its page."""

    url: str
    log: str
    page: Any

    @property
    def events(self) -> list[LogEvent]:
        return list(read_log(self.log).events)

    def bodies(self, kind: type) -> list[Any]:
        return [event.body for event in self.events if isinstance(event.body, kind)]


@contextmanager
def running(served: Served, study: Study, folder: Path, **options: Any) -> Iterator[Running]:
    log = str(folder / "log.sqlite")
    writer = Writer(open_store(log))
    page = build_study_page(served.worker, folder, study, writer, log, GRACE_S)
    yield Running(launch_page(page, "127.0.0.1", free_port(), **options), log, page)
    page.close()
    writer.close()


@pytest.fixture
def lab(served: Served, study: Study, tmp_path: Path) -> Iterator[Running]:
    with running(served, study, tmp_path) as lab:
        yield lab


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Has so many seconds pass at once for whoever takes part."""
    ahead = 0.0

    def pass_time(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead)
    monkeypatch.setattr("app.study.page.participation.time", clock)
    return pass_time


Join = Callable[..., Any]


@pytest.fixture
def join(new_page: NewPage) -> Join:
    """Opens a study's page as somebody new, and writes down all that it is told."""

    def join(lab: Running, **options: Any) -> Any:
        page = new_page(**options)
        page.add_init_script(
            """window.stream = ""; const decode = TextDecoderStream.prototype;
            const readable = Object.getOwnPropertyDescriptor(decode, "readable").get;
            Object.defineProperty(decode, "readable", { get() {
              const [one, other] = readable.call(this).tee();
              (async () => { for await (const text of one) window.stream += text; })().catch(() => {});
              return other;
            } });"""
        )
        page.goto(lab.url)
        page.locator(".study-consent .study-go").wait_for()
        return page

    return join


def agree(page: Any, words: bool = False) -> None:
    page.locator("input[name=agree]").check()
    if words:
        page.locator("input[name=words]").check()
    page.locator(".study-go").click()
    page.locator(".study-trial").wait_for()


def make(page: Any, prompt: str = "snowy mountains") -> None:
    """Asks for pictures, with own words where they are wanted."""
    if page.locator(".study-prompt input").count():
        page.fill(".study-prompt input", prompt)
    page.locator(".study-ask").click()
    page.locator(".grid[aria-busy=false] .tile img:not([hidden])").nth(1).wait_for()


def satisfy(page: Any) -> None:
    make(page)
    page.locator(".tile .refine").first.click()
    page.locator(".stage[data-state=done]").wait_for()
    page.locator(".study-satisfied").click()
    page.locator(".study-rating").wait_for()


def rate(page: Any, value: int = 4) -> None:
    for scale in page.locator(".study-scale").all():
        scale.locator(f"label:has(input[value='{value}'])").click()
    page.locator(".study-go").click()
    page.locator(".study-rating").wait_for(state="detached")


def test_from_consent_to_thanks_and_withdrawal(
    lab: Running, join: Join, capsys: pytest.CaptureFixture[str]
) -> None:
    page = join(lab)
    page.locator(".study-go").click()
    assert page.locator(".study-consent").count(), "nobody takes part without having agreed"
    assert lab.events == []
    agree(page, words=True)
    pages = []
    for _ in range(3):
        satisfy(page)
        pages.append(page.content())
        rate(page)
    page.get_by_label("old").check()
    page.locator("textarea").fill("Nice.")
    page.locator(".study-go").click()
    code = page.locator(".study-code").inner_text()
    table = trial_table(lab.events)
    assert sorted(table["position"]) == [-1, 0, 1]
    assert set(table.loc[~table["practice"], "condition"]) == {"full", "quick"}
    assert (table["outcome"] == "satisfied").all() and table["finished"].all()
    assert (table["compute_s"] > 0).all() and (table["rating_match"] == 4).all()
    assert table.set_index("condition")["refinements"].to_dict() == {"full": 0, "quick": 1}
    assert lab.bodies(SessionEnded) == [SessionEnded({"age": "old", "remarks": "Nice."})]
    assert {body.prompt for body in lab.bodies(Satisfied)} == {"", "snowy mountains"}
    painted = [event for event in lab.events if isinstance(event.body, Painted)]
    assert all(event.browser_ms and event.browser_ms > 0 for event in painted)
    modes = {event.trial: event.body.condition for event in lab.events if isinstance(event.body, TrialStart)}
    previews = [e.trial for e in painted if isinstance(e.body, Painted) and e.body.what == "preview"]
    assert {modes[trial] for trial in previews} == {"quick"}
    told = page.evaluate("window.stream") + "".join(pages) + page.content()
    for secret in ("quick", "ddim", "dpm++", "solver", "condition", "tiny"):
        assert secret not in told, secret
    assert not re.search(r"\b\d+ steps|seed \d", told)
    assert not list((Path(lab.log).parent / "study-now").rglob("*.png")), "no picture is kept"
    assert page.errors == []
    main(["withdraw", lab.log, code])
    assert lab.events == []


def test_a_refresh_leads_back_to_the_same_place(lab: Running, join: Join) -> None:
    page = join(lab)
    agree(page)
    make(page)
    before = page.eval_on_selector_all(".tile img", "images => images.map(image => image.src)")
    page.reload()
    page.locator(".tile .refine:enabled").nth(1).wait_for()
    assert page.eval_on_selector_all(".tile img", "images => images.map(image => image.src)") == before
    page.locator(".tile .refine").first.click()
    page.locator(".stage[data-state=done]").wait_for()
    page.locator(".study-satisfied").click()
    page.locator(".study-rating").wait_for()
    page.reload()
    page.locator(".study-rating").wait_for()
    rate(page)
    page.locator(".study-trial").wait_for()
    assert len(lab.bodies(SessionBegan)) == 1 and len(lab.bodies(TrialStart)) == 2


def test_by_keyboard_alone_with_own_words_not_kept(lab: Running, join: Join) -> None:
    page = join(lab)
    page.locator("input[name=agree]").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    for number in range(3):
        page.locator(".study-trial").wait_for()
        if page.locator(".study-prompt input").count():
            page.wait_for_function("document.activeElement.matches('.study-prompt input')")
            page.keyboard.type("a quiet lake 12rs")
        else:
            page.wait_for_function("document.activeElement.matches('.study-ask')")
        page.keyboard.press("Enter")
        page.locator(".grid[aria-busy=false] .tile img:not([hidden])").nth(1).wait_for()
        page.keyboard.press("2")
        page.keyboard.press("k")
        page.locator(".tile.is-kept").wait_for()
        page.keyboard.press("Enter")
        page.locator(".stage[data-state=done]").wait_for()
        page.keyboard.press("s")
        page.locator(".study-rating").wait_for()
        for scale in range(2):
            page.locator(".study-scale").nth(scale).locator("input").first.focus()
            page.keyboard.press("Space")
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.locator(".study-rating").wait_for(state="detached")
        assert len(lab.bodies(RatingGiven)) == 2 * (number + 1)
    assert {body.value for body in lab.bodies(RatingGiven)} == {2}
    assert {body.prompt for body in lab.bodies(Satisfied)} == {""}
    assert page.locator("textarea").count() == 0, "nobody is asked for words that may not be kept"
    page.locator(".study-go").focus()
    page.keyboard.press("Enter")
    page.locator(".study-code").wait_for()
    assert "quiet" not in "".join(event.write() for event in lab.events)


def test_giving_up_is_offered_in_time_and_ends_the_trial(
    served: Served, study: Study, tmp_path: Path, join: Join, pass_time: Callable[[float], None]
) -> None:
    with running(served, replace(study, give_up_after_s=500.0), tmp_path) as lab:
        page = join(lab)
        agree(page)
        assert page.locator(".study-give-up").is_hidden()
        pass_time(500)
        page.locator(".study-give-up").click()
        page.locator(".study-rating").wait_for()
        assert page.locator(".study-scale").count() == 0
        page.locator(".study-go").click()
        page.locator(".study-trial").wait_for()
        assert trial_table(lab.events)["outcome"].to_list() == ["gave_up", "left"]


def test_time_runs_out_and_chosen_pictures_are_kept_where_the_study_says_so(
    served: Served, study: Study, tmp_path: Path, join: Join, pass_time: Callable[[float], None]
) -> None:
    capped = replace(study, keep_pictures=True, practice="")
    with running(served, capped, tmp_path) as lab:
        page = join(lab)
        agree(page)
        satisfy(page)
        kept = list(folder_of(lab.log).rglob("*.png"))
        assert len(kept) == 1 and b"parameters" not in kept[0].read_bytes()
        rate(page)
        page.locator(".study-trial").wait_for()
        pass_time(capped.time_cap_s - 25)
        page.locator(".study-left", has_text="s left").wait_for()
        pass_time(25)
        page.locator(".study-rating").wait_for()
        assert "time" in page.locator(".study-rate h3").inner_text()
        assert trial_table(lab.events)["outcome"].to_list() == ["satisfied", "timed_out"]


def test_two_at_once_get_different_orders(lab: Running, join: Join) -> None:
    pages = [join(lab), join(lab)]
    for page in pages:
        agree(page)
    began = lab.bodies(SessionBegan)
    assert [body.order for body in began] == [["full", "quick"], ["quick", "full"]]
    assert len({event.participant for event in lab.events}) == 2


def test_what_a_page_reports_is_checked_and_refused_in_words(lab: Running, join: Join) -> None:
    page = join(lab)
    agree(page)
    trial = lab.events[-1].trial
    send = """async (told) => {
      const tab = sessionStorage["diffusion-preview.tab"];
      const body = JSON.stringify({ browser: tab, tab, ...told });
      const answer = await fetch("report", { method: "POST", body });
      return [answer.status, answer.status === 204 ? "" : (await answer.json()).error];
    }"""
    good = {"trial": trial, "kind": "painted", "at": 5.5, "body": {"what": "final", "seed": 3}}
    assert page.evaluate(send, good)[0] == 204
    changes: tuple[dict[str, Any], ...] = (
        {"kind": "satisfied"}, {"kind": None}, {"trial": "x"}, {"trial": None}, {"at": -1}, {"at": "now"},
        {"body": {"what": "final", "seed": -1}}, {"body": {"what": "all", "seed": 3}}, {"body": []},
        {"body": {"what": "final", "seed": "3"}}, {"body": {"seed": 3, "what": "final", "more": 1}},
        {"tab": "x"}, {"kind": ["painted"]}, {"trial": ["x"]},
    )  # fmt: skip
    for change in changes:
        status, words = page.evaluate(send, good | change)
        assert status == 422 and words.endswith("."), change
    assert len(lab.bodies(Painted)) == 1


def test_no_log_is_reachable_and_no_path_leads_out(lab: Running, join: Join) -> None:
    page = join(lab)
    agree(page)
    make(page)
    answers = page.evaluate(
        """async () => {
          const me = JSON.stringify({ browser: sessionStorage["diffusion-preview.tab"],
                                      tab: sessionStorage["diffusion-preview.tab"] });
          const ask = (path) => fetch(path, { method: "POST", body: me }).then((answer) => answer.status);
          return Promise.all(["export", "restore", "gradio_api/call/preview"].map(ask));
        }"""
    )
    assert all(status >= 400 for status in answers)
    api = page.request.get(lab.url + "gradio_api/info").json()
    assert api["named_endpoints"] == {}
    picture = page.locator(".tile img").first.evaluate("image => image.src")
    assert b"parameters" not in page.request.get(picture).body(), "a picture does not say how it was made"
