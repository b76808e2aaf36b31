"""A log keeps every event, also if a process is killed, and gives each place to one participant."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from app.study.log import events
from app.study.log.enrolment import enrol
from app.study.log.store import SqlStore, StoreError, open_store
from app.study.log.withdrawal import participant_of
from app.study.plan.definition import Study
from app.study.plan.order import count_places
from tests.app.study.log.postgres import postgres

ROOT = Path(__file__).parents[4]
WRITER = """
import sys
from app.study.log.events import LogEvent, Hover
from app.study.log.store import open_store
store = open_store(sys.argv[1])
for number in range(int(sys.argv[2])):
    store.append(LogEvent(sys.argv[3], "s", Hover(number)))
    print(number, flush=True)
"""
JOINER = """
import sys
from pathlib import Path
from app.study.plan.study_file import read_study
from app.study.log.enrolment import enrol
from app.study.log.store import open_store
store = open_store(sys.argv[1])
study = read_study(Path(sys.argv[2]))
for _ in range(int(sys.argv[3])):
    enrol(store, study)
"""


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=ROOT, text=True, stdout=-1)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "log.sqlite")
    url: str = request.getfixturevalue("server")
    store = open_store(url)
    with store._engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM events")
    store.close()
    return url


@pytest.fixture
def store(log: str) -> Iterator[SqlStore]:
    store = open_store(log)
    yield store
    store.close()


def test_an_appended_event_is_read_back_once(store: SqlStore) -> None:
    made = [events.LogEvent("p", "s", events.Hover(n), trial="t", browser_ms=n / 3) for n in range(5)]
    for event in [*made, made[2]]:
        store.append(event)
    assert [events.read_event(line) for line in store.lines()] == [(event, events.VERSION) for event in made]


def test_two_processes_write_and_a_killed_one_loses_at_most_the_event_in_flight(
    log: str, store: SqlStore
) -> None:
    killed, other = start(WRITER, log, "100000", "a"), start(WRITER, log, "40", "b")
    assert killed.stdout and other.stdout
    told = [killed.stdout.readline() for _ in range(30)]
    killed.kill()
    told += killed.stdout.readlines()
    assert killed.wait() == -signal.SIGKILL and other.wait() == 0
    found = [events.read_event(line)[0] for line in store.lines()]
    seeds = [event.body.seed for event in found if event.participant == "a"]  # type: ignore[attr-defined]
    whole = [int(line) for line in told if line.endswith("\n")]
    assert seeds == list(range(len(seeds)))
    assert len(whole) <= len(seeds) <= len(whole) + 1
    assert sum(event.participant == "b" for event in found) == 40
    store.append(events.LogEvent("a", "s", events.Cancel()))


def test_processes_that_join_together_get_different_places(
    log: str, store: SqlStore, study: Study, study_file: Path
) -> None:
    each = 2 * count_places(study)
    joining = [start(JOINER, log, str(study_file), str(each)) for _ in range(2)]
    assert [process.wait() for process in joining] == [0, 0]
    held = Counter(events.read_event(line)[0].body.place for line in store.lines())  # type: ignore[attr-defined]
    assert set(held.values()) == {4} and len(held) == count_places(study)


def test_threads_that_join_together_get_different_places(store: SqlStore, study: Study) -> None:
    with ThreadPoolExecutor(8) as pool:
        joined = list(pool.map(lambda _: enrol(store, study), range(2 * count_places(study))))
    assert set(Counter(each.place for each in joined).values()) == {2}
    assert len({each.participant for each in joined}) == len({each.session for each in joined}) == len(joined)


def test_the_place_of_a_dropout_is_given_to_others(store: SqlStore, study: Study) -> None:
    first = enrol(store, study, now=1_000_000.0)
    assert enrol(store, study, now=1_000_010.0).place != first.place
    later = [enrol(store, study, now=1_900_000.0).place for _ in range(count_places(study))]
    assert first.place in later and len(set(later)) == count_places(study)


def test_the_place_of_a_finished_participant_is_kept(store: SqlStore, study: Study) -> None:
    first = enrol(store, study, now=1_000_000.0)
    store.append(events.LogEvent(first.participant, first.session, events.SessionEnded(), study=study.digest))
    later = [enrol(store, study, now=1_900_000.0).place for _ in range(count_places(study) - 1)]
    assert first.place not in later


def test_withdrawal_by_code_deletes_that_participant_alone(store: SqlStore, study: Study) -> None:
    mine, other = enrol(store, study), enrol(store, study)
    assert mine.code not in "".join(store.lines())
    written = mine.code.upper().replace("-", " ")
    assert store.withdraw(participant_of("wrong")) == 0
    assert store.withdraw(participant_of(written)) == 1
    assert [events.read_event(line)[0].participant for line in store.lines()] == [other.participant]


def test_nothing_of_a_withdrawn_participant_is_left_in_the_file(tmp_path: Path, study: Study) -> None:
    path = tmp_path / "log.sqlite"
    store = open_store(str(path))
    mine = enrol(store, study)
    assert any(mine.participant.encode() in each.read_bytes() for each in tmp_path.iterdir())
    store.withdraw(mine.participant)
    assert not any(mine.participant.encode() in each.read_bytes() for each in tmp_path.iterdir())
    store.close()


def test_pruning_deletes_whole_participants_by_their_last_event(store: SqlStore) -> None:
    old = events.LogEvent("old", "s", events.Cancel(), utc=time.time() - 40 * 86_400)
    back = replace(old, participant="back", id="1" * 32)
    for event in (old, back, events.LogEvent("back", "s", events.Cancel())):
        store.append(event)
    assert store.prune(30) == 1
    assert {events.read_event(line)[0].participant for line in store.lines()} == {"back"}


def test_a_log_that_cannot_be_opened_says_so_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="can't be opened") as refused:
        open_store("postgresql://me:hush@127.0.0.1:1/none")
    assert "hush" not in str(refused.value)
    with pytest.raises(StoreError, match="neither a path nor"):
        open_store("mysql://x")
    (tmp_path / "file").write_text("no database, but long enough to be looked at" * 100)
    with pytest.raises(StoreError, match="not a database"):
        open_store(str(tmp_path / "file"))
    with pytest.raises(StoreError, match="can't be made"):
        open_store(str(tmp_path / "file" / "log.sqlite"))


@pytest.mark.parametrize("table", ["letters (text)", "events (id, day)"])
def test_the_database_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path, table: str) -> None:
    path = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"CREATE TABLE {table}")
        other.commit()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"other\.sqlite belongs to another program"):
        open_store(str(path))
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone() == (1,)
    assert path.read_bytes()[100:] == before[100:], "the header tells of the journal alone"
