"""Logs of every form read the same; what is wrong with them is counted and skipped."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from app.study.log import events
from app.study.log.events import Hover, LogEvent
from app.study.log.hub import HubStore
from app.study.log.reading import read_lines, read_log, write_jsonl, write_parquet
from app.study.log.store import StoreError, append_all, open_store
from tests.app.study.log.hub import REPO, Hub, serve_hub


def some(count: int = 4) -> list[LogEvent]:
    return [LogEvent("p", "s", Hover(n), trial="t", browser_ms=0.5) for n in range(count)]


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
        assert read_lines([line[:length]], torn=True).faults.torn == 1


def test_clock_jumps_are_counted_and_times_do_not_follow_them() -> None:
    now, base = time.time(), 100.0
    made = [
        LogEvent("p", "s", Hover(n), utc=now + n + (3600 if n == 2 else 0), monotonic=base + n)
        for n in range(5)
    ]
    assert read_lines(event.write() for event in made).faults.jumps == 2  # there and back
    assert read_lines(event.write() for event in made[:2]).faults.jumps == 0


def test_version_1_is_converted() -> None:
    raw: dict[str, Any] = json.loads(replace(some(1)[0], body=events.GiveUp(True), utc=12.5).write())
    del raw["process"], raw["utc"]
    raw |= {"version": 1, "time": 12500.0, "kind": "time_out", "body": {}}
    log = read_lines([json.dumps(raw)])
    assert log.faults.migrated == 1
    assert log.events[0].body == events.GiveUp(True) and log.events[0].utc == 12.5


@pytest.mark.parametrize(
    "change",
    [{"body": {"seed": "1"}}, {"body": {}}, {"kind": "nap"}, {"utc": None}, {"extra": 1}, {"version": "2"},
     {"body": {"seed": 1, "more": 2}}, {"utc": float("nan")}, {"body": {"seed": True}}],
)  # fmt: skip
def test_lines_that_are_not_events_are_counted_as_unreadable(change: dict[str, Any]) -> None:
    raw = json.loads(some(1)[0].write()) | change
    assert read_lines([json.dumps(raw)]).faults.unreadable == 1


def test_a_log_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no log"):
        read_log(str(tmp_path / "none.jsonl"))
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(StoreError, match="not a parquet file"):
        read_log(str(tmp_path / "x.parquet"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with serve_hub() as hub:
        yield hub


def open_mirrored(path: Path, hub: Hub, every_min: float = 60) -> HubStore:
    return HubStore(open_store(str(path)), REPO, HfApi(hub.url, token="hf_stand_in"), every_min)


def events_of(hub: Hub, folder: Path) -> list[LogEvent]:
    """The events in the dataset's files."""
    folder.mkdir()
    for number, data in enumerate(hub.files.values()):
        (folder / f"{number}.parquet").write_bytes(data)
    return list(read_log(str(folder)).events)


def test_a_dataset_on_the_hub_is_made_lazily_flushed_at_the_end_and_comes_back(
    hub: Hub, tmp_path: Path
) -> None:
    first = open_mirrored(tmp_path / "a.sqlite", hub)
    assert not hub.made
    made = some()
    append_all(first, made[:2])
    first.push()
    assert (hub.asked["visibility"], hub.asked["type"]) == ("private", "dataset")
    append_all(first, made[2:])
    first.close()
    assert len(set(hub.uploads)) == len(hub.uploads) >= 2
    again = open_mirrored(tmp_path / "b.sqlite", hub)
    assert {events.read_event(line)[0].id for line in again.lines("p")} == {event.id for event in made}
    assert list(again.lines("nobody")) == [] and again.push() is None
    other = LogEvent("other", "s", Hover(9))
    again.append(other)
    again.push()
    assert again.withdraw("p") == 4 and hub.squashed == 1
    again.close()
    assert events_of(hub, tmp_path / "left") == [other]


def test_the_mirror_is_updated_by_itself(hub: Hub, tmp_path: Path) -> None:
    store = open_mirrored(tmp_path / "a.sqlite", hub, every_min=0.002)
    append_all(store, some())
    began = time.monotonic()
    while len(hub.uploads) < 1 and time.monotonic() - began < 30:
        time.sleep(0.02)
    assert hub.uploads
    store.close()
    assert len(events_of(hub, tmp_path / "there")) == 4


def test_without_the_hub_at_the_end_the_local_log_is_complete(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_mirrored(tmp_path / "a.sqlite", hub)
    append_all(store, some())

    def away(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(store.api, "upload_file", away)
    store.close()
    assert "they are in the local log" in caplog.text
    assert len(read_log(str(tmp_path / "a.sqlite")).events) == 4


def test_a_public_dataset_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.private = False
    store = open_mirrored(tmp_path / "a.sqlite", hub)
    store.append(some(1)[0])
    with pytest.raises(PermissionError, match="public"):
        store.push()
    assert not hub.uploads
    with pytest.raises(PermissionError, match="public"):
        open_mirrored(tmp_path / "b.sqlite", hub)
    store.close()


def test_version_2_is_read_as_it_is() -> None:
    raw = json.loads(LogEvent("p", "s", events.TrialStart("full", "one", 0), trial="t").write())
    del raw["body"]["again"]
    log = read_lines([json.dumps(raw | {"version": 2})])
    assert log.faults.migrated == 1 and log.events[0].body == events.TrialStart("full", "one", 0)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("session", '{"place":3,"order":["full","quick"],"digest":"d","free_text":true,"simulated":false}'),
        ("trial_start", '{"condition":"full","task":"one","position":-1,"practice":true,"own_words":false,'
         '"time_cap_s":180.0,"again":false}'),
        ("submit", '{"request":"r","purpose":"preview","seeds":[1,2],"steps":6,"solver":"ddim","model":"a",'
         '"guidance":3.0}'),
        ("satisfied", '{"seed":1,"prompt":"ein See – für dich"}'),
    ],
)  # fmt: skip
def test_lines_of_this_version_are_written_back_as_they_are(kind: str, body: str) -> None:
    line = (
        f'{{"version":3,"kind":"{kind}","participant":"p","session":"s","trial":"t","browser_ms":1.5,'
        f'"study":"d","utc":12.25,"monotonic":0.5,"process":"x","id":"{"0" * 32}","body":{body}}}'
    )
    event, version = events.read_event(line)
    assert version == 3 and event.write() == line
