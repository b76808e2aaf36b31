"""That the fuzzer sees what is wrong, against a server where everything is."""

import time

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request as Asked
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tools import fuzz
from tools.fuzz import Report, Request, ask


async def serve(request: Asked) -> Response:
    match request.url.path:
        case "/fails":
            return PlainTextResponse("Internal Server Error", 500)
        case "/tells":
            return PlainTextResponse('Traceback (most recent call last)\n  File "/a.py"', 400)
        case "/hangs":
            raise httpx.ReadTimeout("no answer")
        case "/breaks":
            raise httpx.RemoteProtocolError("gone")
        case "/busy":
            return PlainTextResponse("later", 503)
    return JSONResponse({"event_id": "x"}, 422)


class Client(httpx.Client):
    """Asks the server above without a network."""

    def __init__(self) -> None:
        from starlette.testclient import TestClient

        super().__init__()
        app = Starlette(routes=[Route("/{rest:path}", serve, methods=list(fuzz.METHODS))])
        self._inner = TestClient(app, raise_server_exceptions=True)

    def stream(self, *arguments, **options):
        return self._inner.stream(*arguments, **options)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/fails", "status 500"),
        ("/tells", "shows a traceback"),
        ("/hangs", "no answer within"),
        ("/breaks", "the connection broke"),
    ],
)
def test_what_is_wrong_is_found(path: str, problem: str) -> None:
    report = Report()
    ask(Client(), Request("GET", path), report)
    (finding,) = report.findings
    assert problem in finding.problem
    assert path in finding.request


@pytest.mark.parametrize("path", ["/", "/busy"])
def test_words_are_fine(path: str) -> None:
    report = Report()
    began = time.perf_counter()
    ask(Client(), Request("POST", path, {"a": [1]}), report)
    assert report.findings == []
    assert report.slowest_s <= time.perf_counter() - began
    assert sum(report.statuses.values()) == report.requests == 1


def test_the_same_seed_is_the_same_nonsense() -> None:
    import hypothesis

    def sent(seed: int) -> list[str]:
        requests: list[str] = []
        strategy = fuzz.nonsense([("GET", "/a/{name}")], {"/preview": ["prompt", "count"]}, {0: 1})

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=60, database=None, deadline=None, phases=[hypothesis.Phase.generate]
        )
        @hypothesis.given(strategy)
        def note(request: Request) -> None:
            requests.append(str(request))

        note()
        return requests

    assert sent(1) == sent(1) != sent(2)
    assert len(set(sent(1))) > 40


def test_a_traceback_in_the_log_is_found() -> None:
    trace = 'Traceback (most recent call last):\n  File "/a.py", line 1, in b\n    c()\nValueError: no\n'
    assert fuzz.logged("INFO started\n") == []
    first, second = fuzz.logged(f"INFO started\n{trace}INFO on\n{trace}")
    assert first.problem == second.problem
    assert "ValueError: no" in first.problem
