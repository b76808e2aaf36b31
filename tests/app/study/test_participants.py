"""Programs take part through the real app, and nothing they did is taken for a person's."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from gradio_client import Client

from app.study.__main__ import main
from app.study.outcomes import trial_table
from app.study.participants import CONDITIONS, Goal, Participant, make_study, read_goals, summary
from app.study.reading import read_log
from app.study.report import write_report
from app.study.store import open_store
from tests.app.conftest import Served

SMALL = tuple(replace(each, steps=1, full_steps=2, count=min(each.count, 2)) for each in CONDITIONS)


def test_all_conditions_through_the_app(served: Served, tmp_path: Path) -> None:
    judged: list[Path] = []

    def judge(path: Path, named: Mapping[str, str]) -> float:
        judged.append(path)
        assert path.read_bytes().startswith(b"\x89PNG") and named == {"terrain": "lake"}
        return float(len(judged) % 4 != 1)  # the first of four is refused, so that grids are looked through

    goals = {f"g{n}": Goal("a quiet lake", {"terrain": "lake"}) for n in range(len(SMALL))}
    study, log = make_study(goals, SMALL), str(tmp_path / "log.sqlite")
    store = open_store(log)
    someone = Participant(Client(served.url, verbose=False), store, study, judge, lambda *_: 1.0, look_s=0.0)
    for _ in range(2):
        assert len(list(someone.take_part(goals))) == len(SMALL)
    store.close()
    table = trial_table(read_log(log).events)
    assert set(table["condition"]) == {each.id for each in CONDITIONS}
    assert table["simulated"].all() and (table["outcome"] == "satisfied").all()
    previews = table["condition"].isin(["classical", "consistency", "speculative"])
    assert (table.loc[previews, "refinements"] >= 1).all() and (
        table.loc[~previews, "refinements"] == 0
    ).all()
    assert (table["compute_s"] > 0).all() and (table["compute_s"] <= table["seconds"]).all()
    told = summary(someone, log, 1.0)
    assert told["simulated"] and told["paper_speed_up_with_people"] == 1.85
    assert all(0 < rate <= 1 for rate in told["acceptance"].values())
    found = write_report(study, read_log(log), tmp_path)
    assert found.simulated and "no person took part" in (tmp_path / "report.html").read_text()


def test_goals_name_what_is_asked_for() -> None:
    goals = read_goals(10)
    assert len(goals) == 10
    assert all(2 <= len(goal.attributes) <= 4 and goal.prompt for goal in goals.values())


def test_without_an_app_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no app answers"):
        main(["participants", "--url", "http://127.0.0.1:9", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="multiple of 5"):
        main(["participants", "--prompts", "7", "--out", str(tmp_path)])
