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

    routes = [*service_routes(metered, token), Route("/echo/{secret}", echo, methods=["POST"])]
    return TestClient(Starlette(routes=routes, middleware=middleware.middleware()))


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


def test_bodies_have_a_largest_size(metered: MeteredBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "MAX_BODY_BYTES", 1000)
    client = served(metered)
    assert client.post("/echo/a", content=bytes(1000)).text == "1000"
    assert client.post("/echo/a", content=bytes(1001)).status_code == 413
    in_parts = client.post("/echo/a", content=(bytes(400) for _ in range(3)))
    assert in_parts.status_code == 413
    assert "the limit is" in in_parts.json()["detail"]
