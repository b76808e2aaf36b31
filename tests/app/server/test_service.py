"""The program as a service: health, figures, logs, an orderly end, a login, and a proxy before it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from app.server import auth
from tests.app.server.proxy import serve_below
from tests.conftest import PATIENCE_S, free_port
from tools.fuzz import fuzz

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
PROMPT = "snowy mountains"


@dataclass(frozen=True)
class Running:
    """The program, at work."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def entries(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def running(model: Path, folder: Path, *arguments: str, port: int | None = None) -> Iterator[Running]:
    port, log = port or free_port(), folder / "log"
    command = [
        sys.executable,
        "app.py",
        "--port",
        str(port),
        "--model",
        str(model),
        "--data",
        str(folder / "d"),
        "--grace",
        str(PATIENCE_S),
    ]
    logging = ["--log-format", "json", "--log-level", "info"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *logging, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=file, text=True
        )
    try:
        url = f"http://127.0.0.1:{port}/"
        began = time.monotonic()
        while not ready(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() - began < PATIENCE_S
            time.sleep(0.1)
        yield Running(process, url, log)
    finally:
        process.kill()
        process.wait()


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}readyz").status_code == 200
    except httpx.HTTPError:
        return False


TOKEN = "a token of some length"


def value(url: str, name: str, *labels: str) -> float:
    text = httpx.get(f"{url}metrics", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=PATIENCE_S).text
    lines = [line for line in text.splitlines() if line.startswith(f"diffusion_preview_{name}")]
    return sum(float(line.split()[-1]) for line in lines if all(f'"{label}"' in line for label in labels))


def refine_and_stop(app: Running, client: Client, number: int) -> tuple[int, object]:
    """The exit code after a signal in the middle of a refinement, and what came of that."""
    answers: list[object] = []

    def refine() -> None:
        try:
            answers.append(client.predict(prompt=PROMPT, steps=100, api_name="/refine"))
        except AppError as error:
            answers.append(error)

    thread = threading.Thread(target=refine)
    thread.start()
    while value(app.url, "pictures_open", "refine") < 1:
        time.sleep(0.02)
    code = app.stop(number)
    thread.join(PATIENCE_S)
    (answer,) = answers
    return code, answer


def test_below_a_path_with_figures_and_logs_and_an_end_that_finishes_what_was_asked_for(
    tiny_folder: Path, tmp_path: Path
) -> None:
    with (
        running(tiny_folder, tmp_path, "--metrics-token", TOKEN, "--root-path", "/below/it") as app,
        serve_below("/below/it", app.url) as outside,
    ):
        assert httpx.get(f"{outside}healthz").status_code == 200
        assert httpx.get(f"{outside}config").json()["root"] == outside.rstrip("/")
        client = Client(outside, verbose=False, download_files=str(tmp_path))
        files, _ = client.predict(prompt=PROMPT, count=2, api_name="/preview")
        assert all(Path(file).read_bytes().startswith(b"\x89PNG") for file in files)
        assert value(app.url, "pictures_total", "preview", "done") == 2
        assert value(app.url, "tick_seconds_count") > 0
        code, answer = refine_and_stop(app, client, signal.SIGTERM)
        assert code == 0
        assert not isinstance(answer, AppError)
        entries = app.entries()
    jobs = [entry for entry in entries if entry["logger"] == "app.jobs"]
    assert [entry["message"] for entry in jobs] == ["preview done", "preview done", "refine done"]
    asked = {entry["request"] for entry in entries if entry.get("route", "").endswith("/queue/join")}
    assert {entry["request"] for entry in jobs} <= asked
    assert entries[-1]["message"] == "stopped"
    assert entries[-1]["finished"] is True
    assert PROMPT not in app.log.read_text()
    assert TOKEN not in app.log.read_text()


def test_a_login_a_share_for_each_and_what_takes_too_long_is_handed_back(
    tiny_folder: Path, tmp_path: Path
) -> None:
    logins = tmp_path / "logins"
    auth.add(logins, "ada", "four corners")
    auth.add(logins, "bob", "four corners")
    options = ["--auth", str(logins), "--rate", "100", "--metrics-token", TOKEN, "--grace", "0"]
    with running(tiny_folder, tmp_path, *options) as app:
        assert httpx.get(f"{app.url}healthz").status_code == 200
        body = {"data": [PROMPT], "session_hash": "s"}
        assert httpx.get(f"{app.url}config").status_code == 401
        assert httpx.get(f"{app.url}gradio_api/info").status_code == 401
        assert httpx.post(f"{app.url}gradio_api/call/preview", json=body).status_code == 401
        form = {"username": "bob", "password": "wrong"}
        assert httpx.post(f"{app.url}login", data=form, timeout=60).status_code == 400

        def log_in(name: str, **options: Any) -> Client:
            return Client(app.url, auth=(name, "four corners"), verbose=False, **options)

        log_in("bob").predict(prompt=PROMPT, count=4, steps=100, api_name="/preview")
        # Another tab, even from elsewhere, is the same person.
        with pytest.raises(AppError, match=r"try again in \d+ (s|minutes)"):
            log_in("bob", headers={"X-Forwarded-For": "192.0.2.9"}).predict(
                prompt=PROMPT, api_name="/preview"
            )
        code, answer = refine_and_stop(app, log_in("ada"), signal.SIGINT)
        assert code == 0
        assert isinstance(answer, AppError)
        assert "being restarted" in str(answer)
        assert app.entries()[-1]["finished"] is False


def test_a_model_that_is_missing_and_a_file_of_logins_end_with_a_message(tmp_path: Path) -> None:
    (tmp_path / "logins").write_text("ada:secret\n")
    answer = subprocess.run(
        [sys.executable, "app.py", "--auth", str(tmp_path / "logins"), "--data", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"DIFFUSION_PREVIEW_PORT": str(free_port())},
    )
    assert answer.returncode == 2
    assert "Line 1" in answer.stderr
    assert "secret" not in answer.stderr


def test_nonsense_is_answered_with_words(tiny_folder: Path, tmp_path: Path) -> None:
    with running(tiny_folder, tmp_path) as app:
        report = fuzz(app.url.rstrip("/"), 150, seed=1)
        assert report.requests >= 150
        assert report.findings == []
