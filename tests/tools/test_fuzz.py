"""The fuzzer finds what is wrong, on a server where everything is wrong."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import hypothesis
import pytest
import requests

from tools import fuzz
from tools.fuzz import Report, ask


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        status, text, kind = {
            "/fails": (500, "Internal Server Error", "text/plain"),
            "/tells": (400, 'Traceback (most recent call last)\n  File "/a.py"', "text/plain"),
            "/broken": (200, '{"a": ', "application/json"),
            "/busy": (503, "later", "text/plain"),
            "/gradio_api/call/x": (200, '{"event_id": "7"}', "application/json"),
            "/gradio_api/call/x/7": (500, "the event failed", "text/plain"),
        }.get(self.path, (422, '{"detail": "no"}', "application/json"))
        if self.path == "/hangs":
            time.sleep(0.6)
        if self.path == "/breaks":
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"5\r\nalive\r\n")
                time.sleep(0.01)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    """Prints no traceback when a client hangs up.

    Printing one parses source code, and CPython 3.11 fails where two threads do that at once.
    """

    def handle_error(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = QuietServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/fails", "status 500"),
        ("/tells", "shows a traceback"),
        ("/broken", "broken JSON"),
        ("/hangs", "no answer within"),
        ("/breaks", "the connection broke"),
        ("/gradio_api/call/x", "status 500: the event failed"),
    ],
)
def test_what_is_wrong_is_found(url: str, path: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == "/hangs":
        monkeypatch.setattr(fuzz, "PATIENCE_S", 0.2)
    report = Report()
    ask(requests.Session(), {"method": "GET", "url": url + path}, report)
    (finding,) = report.findings
    assert problem in finding.problem
    assert path in finding.request


@pytest.mark.parametrize("path", ["/", "/busy", "/endless"])
def test_proper_answers_are_no_findings(url: str, path: str) -> None:
    report = Report()
    began = time.perf_counter()
    ask(requests.Session(), {"method": "POST", "url": url + path, "json": {"a": [1]}}, report)
    assert report.findings == []
    assert report.slowest_s <= time.perf_counter() - began
    assert sum(report.statuses.values()) == report.requests == 1


def test_a_request_that_no_client_can_send_is_no_finding(url: str) -> None:
    report = Report()
    ask(requests.Session(), {"method": "GET", "url": url, "headers": {"a": "b\n c\r\n\r\n"}}, report)
    assert report.findings == [] and not report.statuses


def test_the_same_seed_gives_the_same_requests() -> None:
    schema = {"type": "object", "properties": {"count": {"type": "integer"}, "prompt": {"type": "string"}}}
    body = {"content": {"application/json": {"schema": schema}}}
    paths = {path: {"post": {"requestBody": body, "responses": {}}} for path in ("/live", f"{fuzz.CALL}v2/x")}
    document = {"openapi": "3.1.0", "info": {"title": "a", "version": "1"}, "paths": paths}

    def sent(seed: int) -> list[str]:
        found: list[str] = []

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=60,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(fuzz.nonsense(document, "http://localhost"))
        def note(request: dict[str, Any]) -> None:
            found.append(json.dumps([request.get(key) for key in ("method", "json", "data")], default=repr))

        note()
        return found

    first = sent(1)
    assert first == sent(1) != sent(2)
    assert len(set(first)) > 20


def test_a_traceback_in_the_log_is_found() -> None:
    trace = 'Traceback (most recent call last):\n  File "/a.py", line 1, in b\n    c()\nValueError: no\n'
    assert fuzz.logged("INFO started\n") == []
    first, second = fuzz.logged(f"INFO started\n{trace}INFO on\n{trace}")
    assert first.problem == second.problem
    assert "ValueError: no" in first.problem
