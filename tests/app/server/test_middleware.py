"""What every request passes, and the routes of a service."""

import io
import json

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app.server import middleware
from app.server.metered import MeteredBackend
from app.server.service import service_routes
from app.worker import Worker
from app.worker.loop import UNHEALTHY_FAILURES

TOKEN = "a token of some length"


def served(metered: MeteredBackend, token: str | None = None) -> TestClient:
    async def echo(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    echoes = [Route(path, echo, methods=["POST"]) for path in ("/echo/{secret}", "/restore")]
    routes = [*service_routes(metered, token), *echoes]
    app = Starlette(routes=routes, middleware=middleware.middleware(routes))
    app.root_path = ""  # type: ignore[attr-defined]
    return TestClient(app)


def test_health_and_readiness(metered: MeteredBackend, worker: Worker) -> None:
    client = served(metered)
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    worker._failures = UNHEALTHY_FAILURES
    assert client.get("/healthz").status_code == 503
    assert client.get("/readyz").json() == {"state": "broken"}
    worker._failures = 0
    metered.drain(0)
    assert client.get("/healthz").status_code == 200
    assert (client.get("/readyz").status_code, client.get("/readyz").json()) == (503, {"state": "stopping"})


def test_metrics_are_for_whoever_has_the_token(metered: MeteredBackend) -> None:
    assert served(metered).get("/metrics").status_code == 404
    client = served(metered, TOKEN)
    for wrong in ({}, {"Authorization": "Bearer "}, {"Authorization": TOKEN}, {"Authorization": "Bearer é"}):
        headers = [(key.encode(), value.encode()) for key, value in wrong.items()]
        assert client.get("/metrics", headers=headers).status_code == 401
    answer = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    assert list(text_string_to_metric_families(answer.text))


def test_each_request_has_an_id_and_its_path_is_not_logged(metered: MeteredBackend, log: io.StringIO) -> None:
    client = served(metered)
    first = client.post("/echo/hidden", content=b"abc")
    assert first.text == "3"
    assert first.headers["x-content-type-options"] == "nosniff"
    given = client.post("/echo/hidden", headers={"X-Request-ID": "from-proxy.1"})
    assert given.headers["x-request-id"] == "from-proxy.1"
    for forged in ("a b", "x" * 65, "a/b", 'x"'):
        assert client.get("/healthz", headers={"X-Request-ID": forged}).headers["x-request-id"] != forged
    entries = [json.loads(line) for line in log.getvalue().splitlines()]
    assert entries[0]["request"] == first.headers["x-request-id"]
    assert (entries[0]["route"], entries[0]["status"]) == ("/echo/{secret}", 200)
    assert "hidden" not in log.getvalue()


@pytest.mark.parametrize(
    ("path", "largest", "words"),
    [("/echo/a", middleware.MAX_BODY_BYTES, "64 kB"), ("/restore", middleware.MAX_FILE_BODY_BYTES, "28 MB")],
)
def test_bodies_have_a_largest_size(metered: MeteredBackend, path: str, largest: int, words: str) -> None:
    client = served(metered)
    assert client.post(path, content=bytes(largest)).text == str(largest)
    declared = client.post(path, content=bytes(largest + 1))
    in_parts = client.post(path, content=(bytes(largest // 2) for _ in range(3)))
    assert declared.status_code == in_parts.status_code == 413
    assert f"the limit is {words}" in in_parts.json()["detail"]


def test_only_open_addresses_answer(metered: MeteredBackend) -> None:
    client = served(metered)
    for path in (
        *(
            "/pwa_icon/40000",
            "/pwa_icon/0",
            "/gradio_api/token",
            "/gradio_api/process_recording",
            "/?page=other",
        ),
        *("/gradio_api/custom_component/a/client/b/c", "/gradio_api/vibe-edit", "/gradio_api/stream/a"),
        *(
            "/gradio_api/deep_link",
            "/proxy=http://example.org",
            "/gradio_api/proxy=a%0Ab",
            "/monitoring",
            "/etc",
        ),
    ):
        answer = client.get(path)
        assert (answer.status_code, answer.json()) == (
            404,
            {"detail": "There is nothing at this address."},
        ), path
    assert client.get("/config").text == "Not Found"  # open, and Starlette's own answer
    assert client.get("/echo/a").status_code == 405
