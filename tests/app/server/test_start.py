"""The program app.py itself, as a newcomer runs it."""

import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.worker import Worker
from tests.conftest import free_port

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "app.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_a_wrong_model_ends_with_a_message(tmp_path: Path) -> None:
    answer = run("--port", str(free_port()), "--model", "no/such/folder", "--data", str(tmp_path))
    assert answer.returncode == 2
    assert "There is no no/such/folder. Check the path" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
def test_wrong_places_end_with_a_message_before_any_loading(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, words in (
        (["--data", str(tmp_path / "file")], "nothing can be written"),
        (["--port", "99999", "--data", str(tmp_path)], "--port: must be from 1 to 65,535, not '99999'"),
        (["--auth", str(tmp_path / "none"), "--data", str(tmp_path)], "can't be read"),
        (["--host", "192.0.2.1", "--data", str(tmp_path)], "can't listen on 192.0.2.1"),
    ):
        answer = run(*arguments)
        assert answer.returncode == 2
        assert words in answer.stderr
        assert "Loading" not in answer.stdout


@pytest.mark.slow
def test_from_start_to_answer_to_stop(tiny_folder: Path, tmp_path: Path) -> None:
    port, data = free_port(), tmp_path / "data"
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port), "--model", str(tiny_folder), "--data", str(data)],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert f"Settings: port={port}" in process.stdout.readline()
        assert "Loading" in process.stdout.readline()
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
        assert {stat.S_IMODE(each.stat().st_mode) for each in (data, *data.rglob("*"))} == {0o700, 0o600}
        taken = run("--port", str(port), "--model", str(tiny_folder), "--data", str(data))
        assert taken.returncode == 2
        assert f"can't listen on 127.0.0.1:{port}" in taken.stderr
        shared = run("--port", str(free_port()), "--model", str(tiny_folder), "--data", str(data))
        assert shared.returncode == 2
        assert f"the folder {data} is in use by process {process.pid} on " in shared.stderr
    finally:
        process.terminate()
        began = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 40
    assert process.returncode == 0
    assert "Traceback" not in errors


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second address of this machine")
@pytest.mark.slow
def test_a_port_that_is_taken_at_the_last_moment_ends_with_a_message(
    tiny_folder: Path, tmp_path: Path
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))  # which Gradio wants to be free, too
        port = other.getsockname()[1]
        place = ["--host", "127.0.0.2", "--port", str(port)]
        answer = run(*place, "--model", str(tiny_folder), "--data", str(tmp_path))
    assert answer.returncode == 2
    assert f"nothing listens on 127.0.0.2:{port}" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_page_starts_where_the_machine_is_too_busy_to_show_it_at_once(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.server.service import build_app, launch_page

    def late(*args: Any, **options: Any) -> httpx.Response:
        raise httpx.ReadTimeout("timed out")

    monkeypatch.setattr(httpx, "head", late)
    page = build_app(worker, tmp_path)
    url = launch_page(page, "127.0.0.1", free_port())
    assert httpx.get(url, timeout=60).status_code == 200
    page.close()
