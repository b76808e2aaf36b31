"""What is kept of a browser's pictures, and for how long."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.history.export import export_zip
from app.history.shelf import LEFT_OVER_S, UNDO_S, Bounds, Entry, History, Shelf, Shot
from app.jobs.job import RequestError
from app.jobs.png import Parameters, write
from app.page.session import Sessions, show_entry
from app.page.views import history_view

BROWSER = "0123456789abcdef" * 4


def picture(level: int = 0) -> bytes:
    return write(Image.effect_noise((64, 64), 50 + level).convert("RGB"), Parameters("lake"))


def job(seed: int) -> dict[str, Any]:
    return {"seed": seed, "prompt": "lake", "steps": 4, "solver": "ddim"}


def history_file(folder: Path) -> Path:
    return folder / hashlib.sha256(BROWSER.encode()).hexdigest()[:32] / "history.json"


def entry(shelf: Shelf, when: float, finals: int = 0, previews: int = 4) -> Entry:
    """An entry with pictures; its finals are of its first previews."""
    shots = [Shot(job(seed), shelf.put(picture())) for seed in range(previews)]
    done = [Shot(job(seed), shelf.put(picture())) for seed in range(finals)]
    made = Entry(f"entry {when}", when, shots, done)
    shelf.record(made)
    return made


def test_everything_is_there_again_after_a_restart(tmp_path: Path) -> None:
    shelf = History(tmp_path).shelf(BROWSER)
    made = [entry(shelf, 1, finals=1), entry(shelf, 2)]
    again = History(tmp_path).shelf(BROWSER)
    assert again.entries == made[::-1]
    for name in made[0].pictures:
        assert again.path(name).read_bytes() == shelf.path(name).read_bytes()
        assert again.path(name, small=True).stat().st_size < 30_000


def test_names_are_random_and_nothing_of_the_browser_s_secret_is_in_them(tmp_path: Path) -> None:
    shelf = History(tmp_path).shelf(BROWSER)
    names = {shelf.put(picture()) for _ in range(20)}
    assert len(names) == 20
    assert all(len(name) == 32 and set(name) <= set("0123456789abcdef") for name in names)
    assert BROWSER[:32] not in {path.name for path in tmp_path.rglob("*")}


@pytest.mark.parametrize(
    "name", ["", "..", "../history", "history", "a" * 31, "A" * 32, "g" * 32, "a/b", "a" * 32]
)
def test_no_other_name_finds_a_file(tmp_path: Path, name: str) -> None:
    history = History(tmp_path)
    shelf = history.shelf(BROWSER)
    made = shelf.put(picture())
    with pytest.raises(RequestError, match="gone"):
        shelf.path(name)
    with pytest.raises(RequestError, match="gone"):
        history.path(name, made)
    assert history.path(shelf.name, made).is_file()


def test_the_oldest_go_first_and_those_with_finals_last(tmp_path: Path) -> None:
    shelf = History(tmp_path, Bounds(entries=3)).shelf(BROWSER)
    for when, finals in ((1, 1), (2, 0), (3, 0), (4, 0), (5, 0)):
        entry(shelf, when, finals)
    assert [each.time for each in shelf.entries] == [5, 4, 1]
    kept = {name for each in shelf.entries for name in each.pictures}
    assert {path.stem for path in shelf.folder.glob("*.png")} == kept, "and their files go with them"


def test_bytes_are_bounded_and_finals_outlive_the_previews_beside_them(tmp_path: Path) -> None:
    one = len(picture())
    shelf = History(tmp_path, Bounds(shelf_bytes=14 * one)).shelf(BROWSER)
    entry(shelf, 1, finals=1)
    for when in range(2, 8):
        entry(shelf, when)
        assert shelf.size <= 14 * one
    oldest = shelf.entries[-1]
    assert oldest.time == 1 and len(oldest.finals) == 1
    entry(shelf, 8, finals=4, previews=8)
    assert shelf.entries[0].time == 8, "what was just made is never dropped"


def test_a_kept_preview_outlives_the_entry_that_it_came_from(tmp_path: Path) -> None:
    shelf = History(tmp_path, Bounds(entries=1)).shelf(BROWSER)
    first = entry(shelf, 1)
    shared = first.previews[0]
    shelf.record(Entry("next", 2, [shared, Shot(job(9), shelf.put(picture()))]))
    assert shelf.path(shared.picture).is_file()
    with pytest.raises(RequestError):
        shelf.path(first.previews[1].picture)


def test_deleted_entries_can_be_brought_back_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = History(tmp_path).shelf(BROWSER)
    first, second = entry(shelf, 1), entry(shelf, 2)
    shelf.delete(first.id)
    assert [each.id for each in shelf.entries] == [second.id]
    shelf.delete(first.id, undo=True)
    assert [each.id for each in shelf.entries] == [second.id, first.id]
    shelf.delete(first.id)
    now = time.time()
    monkeypatch.setattr("app.history.shelf.time.time", lambda: now + UNDO_S + 1)
    entry(shelf, 3)
    with pytest.raises(RequestError, match="no longer"):
        shelf.delete(first.id, undo=True)
    with pytest.raises(RequestError, match="gone"):
        shelf.path(first.previews[0].picture)


def test_deleted_entries_go_when_a_history_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = History(tmp_path).shelf(BROWSER)
    first, second = entry(shelf, 1), entry(shelf, 2)
    shelf.delete(first.id)
    History(tmp_path).shelf(BROWSER).delete(first.id, undo=True)
    shelf.delete(first.id)
    now = time.time()
    monkeypatch.setattr("app.history.shelf.time.time", lambda: now + UNDO_S + 1)
    assert History(tmp_path).shelf(BROWSER).entries == [second]
    assert {path.stem for path in shelf.folder.glob("*.png")} == set(second.pictures)
    assert first.id not in (shelf.folder / "history.json").read_text()


def test_all_browsers_together_are_bounded(tmp_path: Path) -> None:
    history = History(tmp_path)
    for number in range(4):
        shelf = history.shelf(f"{number:064x}")
        entry(shelf, number)
        os.utime(shelf.folder, (number, number))
    each = sum(path.stat().st_size for path in shelf.folder.glob("*"))
    left = History(tmp_path, Bounds(all_bytes=2 * each + each // 2))
    assert [bool(left.shelf(f"{number:064x}").entries) for number in range(4)] == [False, False, True, True]


def held(folder: Path) -> int:
    """Bytes of all that is below, while files and folders come and go."""
    total = 0
    for place, _, names in os.walk(folder):  # which passes over a folder that has gone
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def is_trimming() -> bool:
    return any(thread.name == "trim" for thread in threading.enumerate())


def test_all_browsers_together_stay_bounded_while_the_app_runs(tmp_path: Path) -> None:
    most = 30 * len(picture())
    history = History(tmp_path, Bounds(all_bytes=most))
    shelves = [history.shelf(f"{number:064x}") for number in range(8)]
    for shelf in shelves:
        entry(shelf, time.time())
    deadline = time.monotonic() + 30
    # What was written since all was measured last comes on top.
    while (held(tmp_path) > 1.05 * most or is_trimming()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held(tmp_path) <= 1.05 * most
    assert shelves[-1].entries and not shelves[0].entries, "whoever came last has what was made"
    for shelf in shelves:
        assert all(shelf.path(name).is_file() for each in shelf.entries for name in each.pictures)


def test_no_picture_goes_before_the_history_has_let_go_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = History(tmp_path, Bounds(entries=2)).shelf(BROWSER)
    first = entry(shelf, 1)
    entry(shelf, 2)
    with monkeypatch.context() as patch:
        patch.setattr("app.history.shelf.os.replace", lambda *_: (_ for _ in ()).throw(OSError("no power")))
        with pytest.raises(RequestError):
            entry(shelf, 3)
    after = History(tmp_path).shelf(BROWSER)
    assert [each.time for each in after.entries] == [2, 1]
    assert all(after.path(name) for each in after.entries for name in each.pictures)
    entry(shelf, 4)
    assert [each.time for each in shelf.entries] == [4, 3]
    with pytest.raises(RequestError, match="gone"):
        shelf.path(first.pictures[0])


def test_what_a_crash_left_over_is_deleted_later(tmp_path: Path) -> None:
    shelf = History(tmp_path).shelf(BROWSER)
    made = entry(shelf, 1)
    old, new = shelf.put(picture()), shelf.put(picture())
    long_ago = time.time() - LEFT_OVER_S - 1
    for name in (old, made.pictures[0]):
        os.utime(shelf.path(name), (long_ago, long_ago))
    again = History(tmp_path).shelf(BROWSER)
    with pytest.raises(RequestError, match="gone"):
        again.path(old)
    assert all(again.path(name) for name in [new, *made.pictures])
    (shelf.folder / "history.json").write_text("{")
    assert History(tmp_path).shelf(BROWSER).path(made.pictures[0]), "a damaged history may be mended"


def test_a_damaged_history_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    file = history_file(tmp_path)
    file.parent.mkdir()
    damages = ["", "{", "[1]", '[{"id": 1}]', json.dumps({"a": 1})]
    for damage in damages:
        file.write_text(damage)
        shelf = History(tmp_path).shelf(BROWSER)
        assert shelf.entries == [] and "damaged" in shelf.notice
        assert not History(tmp_path).shelf(BROWSER).notice, "it is said once"
    assert sorted(path.read_text() for path in file.parent.glob("*.damaged*")) == sorted(damages)


# ---- files of other versions, and damaged ones

NAMES = ("id", "time", "previews", "finals", "deleted", "start", "job", "picture", "seed", "variation")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner, max_size=6)
    ),
    max_leaves=12,
)
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A history with two entries, one with a start and a variation."""
    folder = tmp_path_factory.mktemp("whole")
    shelf = History(folder).shelf(BROWSER)
    first, _ = entry(shelf, 1, finals=1, previews=2), entry(shelf, 2, previews=1)
    first.start = {"picture": shelf.put(picture()), "strength": 0.5}
    first.previews[1].job["variation"] = {"seed": 7, "amount": 0.25}
    shelf.record(first)
    return folder


def opened(whole: Path, text: str) -> list[Entry]:
    """Everything that a tab, the history and the export do with that history if it had this text."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        history_file(Path(folder)).write_text(text)
        session = Sessions(History(Path(folder))).of(BROWSER, "0" * 32)
        json.dumps(history_view(session.shelf), allow_nan=False).encode()
        entries = session.shelf.entries
        if entries:
            export_zip(session.shelf).close()
            session.shelf.record(entries[0])
        return entries


@settings(max_examples=80, deadline=None)
@given(value=JSON)
def test_anything_in_place_of_the_file_is_no_error(whole: Path, value: Any) -> None:
    opened(whole, json.dumps(value))


@settings(max_examples=80, deadline=None)
@given(value=JSON, place=st.integers(0, 2))
def test_anything_in_place_of_an_entry_costs_no_other(whole: Path, value: Any, place: int) -> None:
    values = json.loads(history_file(whole).read_text())
    values.insert(place, value)
    assert [each.id for each in opened(whole, json.dumps(values))] == ["entry 2", "entry 1"]


@settings(max_examples=80, deadline=None)
@given(value=JSON, choose=st.data())
def test_anything_in_place_of_a_part_of_an_entry_costs_no_other(
    whole: Path, value: Any, choose: st.DataObject
) -> None:
    values = json.loads(history_file(whole).read_text())
    part: Any = values[0]
    while True:
        key = choose.draw(st.sampled_from(list(part) if isinstance(part, dict) else range(len(part))))
        if not isinstance(part[key], dict | list) or not part[key] or choose.draw(st.booleans()):
            break
        part = part[key]
    part[key] = value
    assert "entry 2" in [each.id for each in opened(whole, json.dumps(values))]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: text.replace("[{", f"[{DEEP}, {{", 1), id="deep nesting"),
        pytest.param(lambda text: text.replace('"id": "entry 1"', f'"id": {DEEP}'), id="deep in an entry"),
        pytest.param(lambda text: text.replace('"time": 1', '"time": "yesterday"'), id="text as time"),
        pytest.param(lambda text: text.replace('"time": 1', '"time": NaN'), id="no number"),
        pytest.param(lambda text: text.replace('"time": 1', '"when": 1'), id="a renamed field"),
        pytest.param(lambda text: text.replace('"time": 1', f'"time": {"9" * 5000}'), id="a long number"),
        pytest.param(lambda text: text.replace('"entry 1"', '"entry 2"'), id="twice the same id"),
        pytest.param(lambda text: text.replace('"lake"', '"\\ud800"', 1), id="half a letter"),
        pytest.param(lambda text: text[: text.index('"entry 2"')] + "null}, " + text[1:], id="spliced"),
        pytest.param(lambda text: text + "]", id="a bracket too many"),
        pytest.param(lambda text: text[:-1], id="the last bracket is missing"),
    ],
)
def test_what_is_whole_stays_and_the_rest_is_kept_aside(
    whole: Path, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    file = history_file(tmp_path)
    damaged = damage(file.read_text())
    file.write_text(damaged)
    shelf = History(tmp_path).shelf(BROWSER)
    assert "entry 2" in [each.id for each in shelf.entries]
    assert "damaged" in shelf.notice
    assert file.with_name("history.json.damaged").read_text() == damaged
    again = History(tmp_path).shelf(BROWSER)
    assert again.entries == shelf.entries and not again.notice


def test_fields_of_another_version_are_passed_over(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = History(tmp_path).shelf(BROWSER)
    file = before.folder / "history.json"
    values = json.loads(file.read_text())
    for place in (values[0], values[0]["previews"][0], values[0]["previews"][0]["job"], values[0]["start"]):
        place["mood"] = {"of": ["tomorrow"]}
    del values[1]["deleted"], values[1]["previews"][0]["decoder"]
    file.write_text(json.dumps(values))
    shelf = History(tmp_path).shelf(BROWSER)
    assert shelf.entries == before.entries
    assert not list(shelf.folder.glob("*.damaged*")) and not shelf.notice


def test_an_unknown_solver_leaves_the_pictures(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    file = history_file(tmp_path)
    file.write_text(file.read_text().replace('"ddim"', '"of tomorrow"'))
    session = Sessions(History(tmp_path)).of(BROWSER, "0" * 32)
    assert len(history_view(session.shelf)) == 2
    with pytest.raises(RequestError):
        show_entry(session, session.shelf.entries[0])


def test_a_history_that_can_t_be_read_is_not_overwritten(tmp_path: Path) -> None:
    file = history_file(tmp_path)
    (file / "inside").mkdir(parents=True)
    with pytest.raises(RequestError, match="nothing of it is lost"):
        History(tmp_path).shelf(BROWSER)
    assert (file / "inside").is_dir()


# ---- the clock


@pytest.mark.parametrize("finals", [0, 1], ids=["all plain", "all others refined"])
@pytest.mark.parametrize("bounds", [Bounds(entries=3), Bounds(shelf_bytes=30_000)], ids=["entries", "bytes"])
def test_the_newest_stays_though_the_clock_was_set_back(tmp_path: Path, bounds: Bounds, finals: int) -> None:
    shelf = History(tmp_path, bounds).shelf(BROWSER)
    for when in (5000, 5001, 5002):
        entry(shelf, when, finals=finals)
    newest = entry(shelf, 5002 - 3600)
    assert shelf.entries[0] == newest, "and comes first"
    assert History(tmp_path, bounds).shelf(BROWSER).entries == shelf.entries
    assert all(shelf.path(name) for name in newest.pictures)


def test_an_entry_that_changes_stays_in_its_place(tmp_path: Path) -> None:
    shelf = History(tmp_path).shelf(BROWSER)
    first, second = entry(shelf, 1), entry(shelf, 2)
    shelf.record(replace(first, finals=first.previews[:1]))
    assert [each.id for each in shelf.entries] == [second.id, first.id]


# ---- a full disk


def test_drafts_and_exports_that_a_kill_left_go_at_the_start(tmp_path: Path) -> None:
    shelf = History(tmp_path).shelf(BROWSER)
    made = entry(shelf, 1)
    left = [shelf.folder / name for name in ("tmpabc123.zip", "history.json.new")]
    for path in left:
        path.write_bytes(b"half")
    assert History(tmp_path).shelf(BROWSER).entries == [made]
    assert not any(path.exists() for path in left)
    assert all(shelf.path(name) for name in made.pictures)


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["tempfile.TemporaryFile", "zipfile.ZipFile.write"])
def test_an_export_on_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    shelf = History(tmp_path).shelf(BROWSER)
    entry(shelf, 1)
    before = sorted(shelf.folder.iterdir())
    monkeypatch.setattr(call, full)
    with pytest.raises(RequestError, match="the disk is full"):
        export_zip(shelf)
    assert sorted(shelf.folder.iterdir()) == before


def test_an_export_that_can_t_grow_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """As on a full disk, every write fails from there on, also those that clean up."""
    resource = pytest.importorskip("resource")
    shelf = History(tmp_path).shelf(BROWSER)
    entry(shelf, 1)
    before, limits = sorted(shelf.folder.iterdir()), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
    try:
        with pytest.raises(RequestError, match="could not be saved"):
            export_zip(shelf)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(shelf.folder.iterdir()) == before


def test_an_export_has_no_name_on_the_disk(tmp_path: Path) -> None:
    shelf = History(tmp_path).shelf(BROWSER)
    made = entry(shelf, 1)
    before = sorted(shelf.folder.iterdir())
    with export_zip(shelf) as file, zipfile.ZipFile(file) as zipped:
        assert len(zipped.namelist()) == 1 + len(made.pictures)
        assert sorted(shelf.folder.iterdir()) == before


@pytest.mark.parametrize("undo", [False, True])
def test_memory_and_disk_agree_on_what_can_t_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undo: bool
) -> None:
    shelf = History(tmp_path).shelf(BROWSER)
    made = entry(shelf, 1)
    if undo:
        shelf.delete(made.id)
    before = shelf.entries
    monkeypatch.setattr("app.history.shelf.os.replace", full)
    with pytest.raises(RequestError, match="could not be saved"):
        shelf.delete(made.id, undo)
    assert shelf.entries == before == History(tmp_path).shelf(BROWSER).entries


def test_a_history_that_can_t_be_cleared_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = History(tmp_path).shelf(BROWSER)
    made = entry(shelf, 1)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", full)
        with pytest.raises(RequestError, match="could not be saved"):
            shelf.clear()
    assert shelf.entries == [made] == History(tmp_path).shelf(BROWSER).entries


def on_a_full_disk(path: Path) -> None:
    """What is written to this path meets a disk without room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_and_nothing_that_was_kept_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = History(tmp_path).shelf(BROWSER)
    kept = entry(shelf, 1)
    name, made = "a" * 32, picture()
    with monkeypatch.context() as patch:
        patch.setattr("app.history.shelf.secrets", SimpleNamespace(token_hex=lambda count: name))
        for suffix in (".png", ".jpg"):
            on_a_full_disk(shelf.folder / f"{name}{suffix}")
            with pytest.raises(RequestError, match=r"the disk is full .* has to make room"):
                shelf.put(made)
            assert not list(shelf.folder.glob(f"{name}*"))  # nothing half-written is left
    assert f"{len(made)} bytes can't be written to {shelf.folder}, where " in caplog.text
    on_a_full_disk(shelf.folder / "history.json.new")
    with pytest.raises(RequestError, match="the disk is full"):
        shelf.record(Entry("new", 2, [Shot(job(1), shelf.put(picture()))]))
    assert History(tmp_path).shelf(BROWSER).entries == [kept]
    shelf.record(kept)  # there is room again
    assert {each.id for each in History(tmp_path).shelf(BROWSER).entries} == {kept.id, "new"}
