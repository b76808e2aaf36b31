"""Logs of every form read the same, and what is wrong with them is counted and does no harm."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.study import events
from app.study.events import Event, Hover
from app.study.hub import HubStore
from app.study.reading import clean, read_log, write_jsonl, write_parquet
from app.study.store import StoreError, append_all, open_store


def some(count: int = 4) -> list[Event]:
    return [Event("p", "s", Hover(n), trial="t", browser_ms=0.5) for n in range(count)]


def test_all_forms_read_back_the_same(tmp_path: Path) -> None:
    made = some()
    write_jsonl(made, tmp_path / "log.jsonl")
    (tmp_path / "folder").mkdir()
    write_parquet(made, tmp_path / "folder" / "a.parquet")
    store = open_store(str(tmp_path / "log.sqlite"))
    append_all(store, made)
    store.close()
    for name in ("log.jsonl", "folder", "folder/a.parquet", "log.sqlite"):
        assert list(read_log(str(tmp_path / name)).events) == made


def test_a_torn_last_line_duplicates_and_other_things_are_counted(tmp_path: Path) -> None:
    made = [event.write() for event in some()]
    newer = json.dumps(json.loads(made[0]) | {"version": events.VERSION + 1})
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join([made[0], made[1], made[1], "noise", newer, made[2], made[3][:40]]))
    log = read_log(str(path))
    assert [event.write() for event in log.events] == made[:3]
    faults = log.faults
    assert (faults.torn, faults.duplicates, faults.unreadable, faults.newer) == (1, 1, 1, 1)


def test_every_shortening_of_a_line_is_torn_and_never_an_event(tmp_path: Path) -> None:
    line = some(1)[0].write()
    for length in range(1, len(line)):
        assert clean([line[:length]], torn=True).faults.torn == 1


def test_clock_jumps_are_counted_and_times_do_not_follow_them() -> None:
    now, base = time.time(), 100.0
    made = [
        Event("p", "s", Hover(n), utc=now + n + (3600 if n == 2 else 0), monotonic=base + n) for n in range(5)
    ]
    assert clean(event.write() for event in made).faults.jumps == 2  # there and back
    assert clean(event.write() for event in made[:2]).faults.jumps == 0


def test_an_older_version_is_read_as_todays() -> None:
    raw: dict[str, Any] = json.loads(replace(some(1)[0], body=events.GiveUp(True), utc=12.5).write())
    del raw["process"], raw["utc"]
    raw |= {"version": 1, "time": 12500.0, "kind": "time_out", "body": {}}
    log = clean([json.dumps(raw)])
    assert log.faults.migrated == 1
    assert log.events[0].body == events.GiveUp(True) and log.events[0].utc == 12.5


@pytest.mark.parametrize(
    "change",
    [{"body": {"seed": "1"}}, {"body": {}}, {"kind": "nap"}, {"utc": None}, {"extra": 1}, {"version": "2"},
     {"body": {"seed": 1, "more": 2}}, {"utc": float("nan")}, {"body": {"seed": True}}],
)  # fmt: skip
def test_what_is_no_event_is_refused(change: dict[str, Any]) -> None:
    raw = json.loads(some(1)[0].write()) | change
    assert clean([json.dumps(raw)]).faults.unreadable == 1


def test_a_log_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no log"):
        read_log(str(tmp_path / "none.jsonl"))
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(StoreError, match="no parquet file"):
        read_log(str(tmp_path / "x.parquet"))


class FakeHub:
    """The Hub, as far as a log needs it, in a folder."""

    def __init__(self, folder: Path, private: bool = True) -> None:
        self.folder, self.private, self.made, self.squashed = folder, private, 0, 0
        self.uploads: list[str] = []

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        assert options.get("private")
        self.made += 1
        return type("Url", (), {"repo_id": repo_id})()

    def repo_exists(self, repo: str, repo_type: str) -> bool:
        return bool(self.made) or any(self.folder.glob("**/*.parquet"))

    def repo_info(self, repo: str, repo_type: str) -> Any:
        return type("Info", (), {"private": self.private})()

    def list_repo_files(self, repo: str, repo_type: str) -> list[str]:
        return [str(path.relative_to(self.folder)) for path in self.folder.glob("**/*.parquet")]

    def hf_hub_download(self, repo: str, name: str, **options: Any) -> str:
        return str(self.folder / name)

    def upload_file(self, path_or_fileobj: bytes, path_in_repo: str, **options: Any) -> None:
        path = self.folder / path_in_repo
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path_or_fileobj)
        self.uploads.append(path_in_repo)

    def super_squash_history(self, repo: str, repo_type: str) -> None:
        self.squashed += 1


def test_a_dataset_on_the_hub_is_made_lazily_flushed_at_the_end_and_comes_back(tmp_path: Path) -> None:
    hub: Any = FakeHub(tmp_path / "hub")
    first = HubStore(open_store(str(tmp_path / "a.sqlite")), "me/log", hub, every_min=60)
    assert not hub.made
    made = some()
    append_all(first, made[:2])
    first.push()
    append_all(first, made[2:])
    first.close()
    assert hub.made == 1 and len(set(hub.uploads)) == len(hub.uploads) >= 2
    again = HubStore(open_store(str(tmp_path / "b.sqlite")), "me/log", hub, every_min=60)
    assert {events.read(line)[0].id for line in again.lines()} == {event.id for event in made}
    assert again.push() is None
    other = Event("other", "s", Hover(9))
    again.append(other)
    again.push()
    assert again.withdraw("p") == 4 and hub.squashed == 1
    again.close()
    left = [
        event for path in hub.list_repo_files("", "") for event in read_log(str(hub.folder / path)).events
    ]
    assert left == [other]


def test_a_public_dataset_is_refused(tmp_path: Path) -> None:
    hub: Any = FakeHub(tmp_path / "hub", private=False)
    store = HubStore(open_store(str(tmp_path / "a.sqlite")), "me/log", hub, every_min=60)
    store.append(some(1)[0])
    with pytest.raises(PermissionError, match="public"):
        store.push()
    store._scheduler.stop()  # type: ignore[union-attr]
