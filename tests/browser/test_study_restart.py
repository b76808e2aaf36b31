"""A study whose app is killed: the page that is open goes on, and the log has everything once."""

import signal
from collections import Counter
from pathlib import Path

from app.study.log.reading import read_log
from app.study.report.trial_table import trial_table
from tests.app.server.test_service import running
from tests.app.study.conftest import TEXT
from tests.browser.conftest import NewPage
from tests.browser.test_study import agree, rate, satisfy
from tests.conftest import free_port


def test_after_a_kill_between_two_trials_the_open_page_goes_on(
    new_page: NewPage, tiny_folder: Path, tmp_path: Path
) -> None:
    study, log, port = tmp_path / "study.toml", str(tmp_path / "d" / "study.sqlite"), free_port()
    study.write_text(TEXT, encoding="utf-8")
    page = new_page()
    with running(tiny_folder, tmp_path, "--study", str(study), port=port) as app:
        page.goto(app.url)
        agree(page)
        satisfy(page)
        before = read_log(log).events
        app.stop(signal.SIGKILL)
    page.locator(".lost:not([hidden])").wait_for()
    with running(tiny_folder, tmp_path, "--study", str(study), port=port) as app:
        page.locator(".lost").wait_for(state="hidden")
        rate(page)
        page.locator(".study-trial").wait_for()
        satisfy(page)
        assert app.stop() == 0
    after = read_log(log).events
    assert after[: len(before)] == before
    kinds = Counter(event.kind for event in after)
    once = {"session": 1, "trial_start": 2, "satisfied": 2, "rating": 2, "interrupted": 0, "error": 0}
    assert {kind: kinds[kind] for kind in once} == once
    table = trial_table(after)
    assert table["outcome"].to_list() == ["satisfied", "satisfied"] and not table["again"].any()
