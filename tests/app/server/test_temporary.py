"""What Gradio's temporary folder may hold, and what one person may send to it."""

import asyncio
import errno
import os
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.history.shelf import History
from app.server import temporary
from app.server.temporary import IN_USE_S, KEEP_PICTURES_S, KEEP_UPLOADS_S, UPLOAD, UploadLimit, clean


def put(path: Path, age_s: float, size: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    when = time.time() - age_s
    os.utime(path, (when, when))
    os.utime(path.parent, (when, when))
    return path


def test_uploads_go_after_an_hour_and_pictures_after_a_day(tmp_path: Path) -> None:
    old = [put(tmp_path / "aa" / "a.png", KEEP_UPLOADS_S + 5), put(tmp_path / "tmp1", KEEP_UPLOADS_S + 5)]
    old += [put(tmp_path / "pictures" / "cc" / "c.png", KEEP_PICTURES_S + 5)]
    new = [put(tmp_path / "bb" / "b.png", KEEP_UPLOADS_S - 60), put(tmp_path / "tmp2", 0)]
    new += [put(tmp_path / "pictures" / "dd" / "d.png", KEEP_UPLOADS_S + 5)]
    clean(tmp_path)
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in new)


def test_empty_folders_go_but_not_those_that_are_just_being_filled(tmp_path: Path) -> None:
    for name in ("old", "pictures/old"):
        put(tmp_path / name / "file", IN_USE_S + 5).unlink()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / "new").mkdir()
    clean(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "pictures"}
    assert not list((tmp_path / "pictures").iterdir())


def test_the_oldest_make_room_but_nothing_in_use(tmp_path: Path) -> None:
    files = [put(tmp_path / f"{number}" / "file", 600 - 100 * number, 100) for number in range(5)]
    now = put(tmp_path / "now" / "file", 0, 1000)
    clean(tmp_path, max_bytes=1300)
    assert [path.exists() for path in files] == [False, False, True, True, True]
    clean(tmp_path, max_bytes=1)
    assert not any(path.exists() for path in files) and now.exists()


def test_nothing_beside_the_folder_is_touched(tmp_path: Path) -> None:
    shelf = put(tmp_path / "history" / "aa" / "a.png", 10 * KEEP_PICTURES_S)
    link = tmp_path / "gradio" / "link"
    link.parent.mkdir()
    link.symlink_to(shelf.parent)
    os.utime(link, (0, 0), follow_symlinks=False)
    clean(tmp_path / "gradio", max_bytes=0)
    assert shelf.exists()
    clean(tmp_path / "nowhere")
    assert History(tmp_path / "history")


def test_a_file_that_can_t_be_deleted_is_logged_and_the_others_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stays, goes = (put(tmp_path / name / "file", KEEP_UPLOADS_S + 5) for name in ("a", "b"))
    unlink = os.unlink

    def refuse_one(path: str) -> None:
        if path == str(stays):
            raise PermissionError(errno.EPERM, "not yours")
        unlink(path)

    monkeypatch.setattr("os.unlink", refuse_one)
    clean(tmp_path)
    assert stays.exists() and not goes.exists()
    assert f"{stays} can't be deleted" in caplog.text


def test_cleaning_costs_little_for_each_file(tmp_path: Path) -> None:
    folders = [tmp_path / f"{number:03}" for number in range(200)]
    for folder in folders:
        folder.mkdir()
        for name in range(50):
            (folder / str(name)).touch()
    began = time.process_time()
    clean(tmp_path, max_bytes=10)
    assert time.process_time() - began < 10_000 * 100e-6, "100 µs of processor time for each at most"


# ---- uploads

LENGTH = 2 * 2**20


def app_of(answer: Any) -> Starlette:
    routes = [Route(UPLOAD, answer, methods=["POST"])]
    return Starlette(routes=routes, middleware=[Middleware(UploadLimit, share=5 * 2**20)])


async def take(request: Request) -> Response:
    await request.body()
    return JSONResponse(["/tmp/file"])


async def send(app: Starlette, host: str = "1.2.3.4") -> httpx.Response:
    transport = httpx.ASGITransport(app, client=(host, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        return await client.post(UPLOAD, content=bytes(LENGTH))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


async def statuses(app: Starlette, *hosts: str) -> list[int]:
    return [(await send(app, host)).status_code for host in hosts]


def test_each_person_has_a_share() -> None:
    app = app_of(take)
    one, other, home = "1.2.3.4", "1.2.3.5", "2001:db8::1"
    assert asyncio.run(statuses(app, one, one, one, one, other)) == [200, 200, 200, 429, 200]
    assert asyncio.run(statuses(app, home, home, home, "2001:db8::2")) == [200, 200, 200, 429]
    refused = asyncio.run(send(app, one))
    assert "share" in refused.json()["detail"]


def test_a_full_disk_is_told_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "free_bytes", lambda folder: LENGTH)
    answer = asyncio.run(send(app_of(take)))
    assert answer.status_code == 507 and "the disk is full" in answer.json()["detail"]


def test_a_disk_that_fills_up_meanwhile_is_told() -> None:
    async def fill(request: Request) -> Response:
        raise OSError(errno.ENOSPC, "No space left on device")

    answer = asyncio.run(send(app_of(fill)))
    assert answer.status_code == 507 and "has to make room" in answer.json()["detail"]


def test_gradio_passes_a_full_disk_on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def upload() -> httpx.Response:
        return httpx.post(f"{url}gradio_api/upload", files={"files": ("a.png", b"x")})

    def fill(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert upload().status_code == 200
    monkeypatch.setattr("gradio.route_utils.NamedTemporaryFile", fill)
    answer = upload()
    assert answer.status_code == 507 and "has to make room" in answer.json()["detail"]
