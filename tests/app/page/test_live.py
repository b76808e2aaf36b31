"""What is served beside Gradio's page: the stream, pictures, and nothing to those who were not given it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.page.session import Session
from tests.conftest import Served

BROWSER, TAB = "ab" * 32, "cd" * 32


def first_views(url: str, browser: Any = BROWSER) -> dict[str, Any]:
    body = json.dumps({"browser": browser, "tab": TAB})
    with httpx.stream("POST", f"{url}live", content=body, timeout=30) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines: Iterator[str] = answer.iter_lines()
        return json.loads(next(lines).removeprefix("data: "))


def test_the_stream_begins_with_everything(url: str) -> None:
    views = first_views(url)
    assert set(views) == {"status", "start", "grid", "stage", "notices", "history"}
    assert views["status"]["ready"]
    assert (views["grid"], views["stage"], views["history"]) == (None, None, [])


@pytest.mark.parametrize("path", ["live", "export"])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"7", b'{"browser": 1, "tab": 2}', b'{"browser": "../..", "tab": "x"}', b"x" * 3000],
)
def test_other_requests_are_refused_with_a_message(url: str, path: str, body: bytes) -> None:
    answer = httpx.post(f"{url}{path}", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"].endswith(".")
    assert "Traceback" not in answer.text


def test_pictures_are_private_and_no_other_file_is_served(served: Served) -> None:
    from tests.app.history.test_history import picture

    session: Session = served.page.sessions.of("ef" * 32, TAB)
    name = session.shelf.put(picture())
    good = f"{served.url}pictures/{session.shelf.name}/{name}.png"
    answer = httpx.get(good)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert "private" in answer.headers["cache-control"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert httpx.get(good.replace(".png", ".jpg")).headers["content-type"] == "image/jpeg"
    for wrong in (
        good.replace(name, "0" * 32),
        good.replace(session.shelf.name, "0" * 32),
        good.replace(".png", ".json"),
        good.replace(name, "history"),
        f"{served.url}pictures/{session.shelf.name}/..%2f{session.shelf.name}%2f{name}.png",
        f"{served.url}pictures/..%2f..%2fhistory/x.png",
        f"{served.url}sketches/{name}",
        f"{served.url}about/README.md",
        f"{served.url}about/..%2f..%2fREADME.md",
    ):
        assert httpx.get(wrong).status_code == 404, wrong
    file = Path(session.shelf.folder) / "history.json"
    assert httpx.get(f"{served.url}gradio_api/file={file}").status_code in (403, 404)


def test_about_is_there(url: str) -> None:
    answer = httpx.get(f"{url}about")
    assert answer.status_code == 200
    assert "<h1>Diffusion Preview</h1>" in answer.text
    assert "<script" not in answer.text
