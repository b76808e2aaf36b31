"""What is kept of a browser's pictures, and for how long."""

import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from app.history.shelf import LEFT_OVER_S, UNDO_S, Bounds, Entry, History, Shelf, Shot
from app.jobs.job import RequestError
from app.jobs.png import Parameters, write

BROWSER = "0123456789abcdef" * 4


def picture(level: int = 0) -> bytes:
    return write(Image.effect_noise((64, 64), 50 + level).convert("RGB"), Parameters("lake"))


def entry(shelf: Shelf, when: float, finals: int = 0, previews: int = 4) -> Entry:
    """An entry with pictures; its finals are of its first previews."""
    shots = [Shot({"seed": seed, "prompt": "lake"}, shelf.put(picture())) for seed in range(previews)]
    done = [Shot({"seed": seed, "prompt": "lake"}, shelf.put(picture())) for seed in range(finals)]
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
    shelf.record(Entry("next", 2, [shared, Shot({"seed": 9, "prompt": "lake"}, shelf.put(picture()))]))
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


def test_a_damaged_history_is_put_aside(tmp_path: Path) -> None:
    shelf = History(tmp_path).shelf(BROWSER)
    entry(shelf, 1)
    file = shelf.folder / "history.json"
    for damage in ("", "{", "[1]", '[{"id": 1}]', json.dumps({"a": 1})):
        file.write_text(damage)
        assert History(tmp_path).shelf(BROWSER).entries == []
        assert (shelf.folder / "history.json.damaged").read_text() == damage


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
        shelf.record(Entry("new", 2, [Shot({"seed": 1, "prompt": "lake"}, shelf.put(picture()))]))
    assert History(tmp_path).shelf(BROWSER).entries == [kept]
    shelf.record(kept)  # there is room again
    assert {each.id for each in History(tmp_path).shelf(BROWSER).entries} == {kept.id, "new"}
