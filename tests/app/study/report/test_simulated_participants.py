"""Programs take part through the real app, and are labelled as simulated."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from app.study.__main__ import main
from app.study.log.reading import read_log
from app.study.log.store import SqlStore, open_store
from app.study.report.document import write_report
from app.study.report.goals import Goal, read_goals
from app.study.report.simulated_participants import (
    CONDITIONS,
    SimulatedParticipants,
    make_study,
    summarise,
    turns_of,
)
from app.study.report.trial_table import trial_table
from app.worker.denoiser import BatchDenoiser
from checkpoints.recipe.scenes import ATTRIBUTES
from tests.conftest import Served

pytestmark = pytest.mark.slow

SMALL = tuple(replace(each, steps=1, full_steps=2, count=min(each.count, 2)) for each in CONDITIONS)


GOALS = {f"g{n}": Goal("a quiet lake", {"terrain": "lake"}) for n in range(2)}
STUDY = make_study(GOALS, SMALL, look_s=0.0)


@dataclass
class Judge:
    """Refuses the first of every three pictures, so that grids are looked through."""

    seen: int = 0

    def __call__(self, path: Path, named: Mapping[str, str]) -> float:
        assert path.read_bytes().startswith(b"\x89PNG") and named == {"terrain": "lake"}
        self.seen += 1
        return float(self.seen % 3 != 1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    with closing(open_store(str(tmp_path / "log.sqlite"))) as store:
        assert isinstance(store, SqlStore)
        yield store


def someone(served: Served, store: SqlStore) -> SimulatedParticipants:
    return SimulatedParticipants(
        Client(served.url, verbose=False), store, STUDY, Judge(), lambda *_: 1.0, look_s=0.0
    )


def test_all_conditions_through_the_app(served: Served, store: SqlStore, tmp_path: Path) -> None:
    program, log = someone(served, store), str(tmp_path / "log.sqlite")
    for number in range(2):
        assert len(list(program.take_part(number, GOALS))) == len(GOALS) * len(SMALL)
    table = trial_table(read_log(log).events)
    assert table.groupby(["participant", "task"])["condition"].agg(set).map(len).eq(len(SMALL)).all()
    assert table["simulated"].all() and (table["outcome"] == "satisfied").all()
    previews = table["condition"].isin(["classical", "consistency", "speculative"])
    assert (table.loc[previews, "refinements"] >= 1).all() and (
        table.loc[~previews, "refinements"] == 0
    ).all()
    assert (table["compute_s"] > 0).all() and (table["compute_s"] <= table["seconds"]).all()
    assert table["picked"].between(1, table["looked"]).all()
    told = summarise(STUDY, log, 0.0)
    assert told["simulated"] and told["paper_speed_up_with_people"] == 1.85
    assert set(told["accepted"]) == {each.id for each in CONDITIONS}
    assert all(0 < rate <= 1 for rate in [*told["accepted"].values(), *told["finals_accepted"].values()])
    found = write_report(STUDY, read_log(log), tmp_path)
    assert found.simulated and "no person took part" in (tmp_path / "report.html").read_text()


def test_an_interrupted_run_continues_and_repeats_nothing(
    served: Served, store: SqlStore, tmp_path: Path
) -> None:
    assert len(list(islice(someone(served, store).take_part(0, GOALS), 4))) == 4
    program = someone(served, store)
    assert len(program.left(0)) == len(GOALS) * len(SMALL) - 4
    list(program.take_part(0, GOALS))
    assert program.left(0) == [] and list(program.take_part(0, GOALS)) == []
    events = read_log(str(tmp_path / "log.sqlite")).events
    table = trial_table(events)
    assert table["position"].to_list() == list(range(len(GOALS) * len(SMALL))) and table["finished"].all()
    assert len({event.session for event in events}) == 1


def test_a_useless_speculative_refinement_is_cancelled(
    served: Served, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, denoise = threading.Event(), BatchDenoiser.denoise

    def watched(self: BatchDenoiser, *batch: Any) -> Any:
        begun.set()
        return denoise(self, *batch)

    monkeypatch.setattr(BatchDenoiser, "denoise", watched)
    slow = replace(SMALL[-1], full_steps=100, count=2)
    program = someone(served, store)
    ahead = program._refine(slow, GOALS["g0"], 5)
    assert begun.wait(60)
    program._drop(ahead)
    with pytest.raises(AppError, match="cancelled"):
        ahead.result()


def test_conditions_are_paired_and_their_orders_balanced() -> None:
    turns = [turn for number in range(10) for turn in turns_of(STUDY, number)]
    seeds = Counter(turn.seed for turn in turns)
    assert set(seeds.values()) == {len(SMALL)} and len(seeds) == 10 * len(GOALS)
    assert turns == [turn for number in range(10) for turn in turns_of(STUDY, number)]
    first = Counter(turn.condition.id for turn in turns if turn.position % len(SMALL) == 0)
    assert set(first.values()) == {10 * len(GOALS) // len(SMALL)}


def test_goals_name_two_to_four_attributes() -> None:
    goals = read_goals(10)
    assert len(goals) == 10
    assert all(2 <= len(goal.attributes) <= 4 and goal.prompt for goal in goals.values())


def test_unsaid_attributes_fit_the_prompt_and_make_another_study() -> None:
    said, more = read_goals(5), read_goals(5, unsaid=2)
    for name, goal in more.items():
        assert goal.prompt == said[name].prompt
        assert said[name].attributes.items() < goal.attributes.items()
        assert len(goal.attributes) == len(said[name].attributes) + 2
        assert all(value in ATTRIBUTES[key] for key, value in goal.attributes.items())
    assert read_goals(5, unsaid=2) == more, "a run that was cut off can go on"
    assert make_study(said).digest != make_study(more).digest


def test_without_an_app_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no app answers"):
        main(["participants", "--url", "http://127.0.0.1:9", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="at least 1"):
        main(["participants", "--prompts", "0", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="--unsaid must be from 0 to 11"):
        main(["participants", "--unsaid", "12", "--out", str(tmp_path)])
