"""A whole study as the program runs it, with either kind of log: ended in the middle of a trial, begun again,
finished, reported and withdrawn."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from app.study.__main__ import main
from app.study.log.reading import read_log
from app.study.report.trial_table import trial_table
from tests.app.server.test_service import running
from tests.app.study.conftest import TEXT
from tests.app.study.log.postgres import postgres
from tests.browser.conftest import NewPage, listen
from tests.browser.test_study import agree, rate, satisfy
from tests.conftest import PATIENCE_S, free_port

# So that work goes on when the signal comes.
STUDY = TEXT.replace("full_steps = 6", "full_steps = 60")


def wait_for_event(log: str, kind: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while kind not in {event.kind for event in read_log(log).events}:
        assert time.monotonic() < until, f"no event of the kind {kind} came"
        time.sleep(0.05)


@pytest.fixture(params=["sqlite", "postgres"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "sqlite":
        yield str(tmp_path / "log.sqlite")
        return
    with postgres() as url:
        yield url


def test_an_end_in_the_middle_of_a_trial_loses_nothing_and_the_study_goes_on_to_its_report(
    new_page: NewPage, tiny_folder: Path, tmp_path: Path, log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study, port = tmp_path / "study.toml", free_port()
    study.write_text(STUDY, encoding="utf-8")
    arguments = ("--study", str(study), "--study-log", log)
    page = new_page()
    with running(tiny_folder, tmp_path, *arguments, port=port) as app:
        page.goto(app.url)
        agree(page)
        listen(page, ".toasts")
        page.locator(".study-ask").click()
        wait_for_event(log, "compute_start")
        assert app.stop() == 0
    before = read_log(log).events
    kinds = Counter(event.kind for event in before)
    for kind in ("session", "trial_start", "submit", "queued", "compute_start", "compute_end"):
        assert kinds[kind] == 1, kind
    assert kinds["satisfied"] == kinds["interrupted"] == kinds["error"] == 0
    page.locator(".lost:not([hidden])").wait_for()
    with running(tiny_folder, tmp_path, *arguments, port=port) as app:
        page.locator(".lost").wait_for(state="hidden")
        page.wait_for_function("said.some((text) => text.includes('begins again'))")
        for _ in range(3):
            satisfy(page)
            rate(page)
        page.locator(".study-closing .study-go").click()
        code = page.locator(".study-code").inner_text()
        assert app.stop() == 0
    after = read_log(log)
    assert after.events[: len(before)] == before and not any(vars(after.faults).values())
    table = trial_table(after.events)
    assert table["outcome"].to_list() == ["interrupted", "satisfied", "satisfied", "satisfied"]
    assert len({event.id for event in after.events}) == len(after.events)
    main(["report", log, "--study", str(study), "--out", str(tmp_path / "report"), "--json"])
    assert json.loads(capsys.readouterr().out)["participants"] == 1
    main(["withdraw", log, code])
    assert read_log(log).events == ()
