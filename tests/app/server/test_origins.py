"""What a page of another site may do with a visitor's login: nothing."""

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app.server.origins import Origins
from tests.conftest import Served

OWN = "https://app.example"
COOKIE = "token=1; HttpOnly; Secure; SameSite=none"


def client(*framed_by: str) -> TestClient:
    def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("done", headers={"Set-Cookie": COOKIE})

    routes = [Route(path, answer, methods=["GET", "POST"]) for path in ("/", "/logout", "/export")]
    app = Starlette(routes=routes, middleware=[Middleware(Origins, framed_by=framed_by)])
    return TestClient(app, base_url=OWN)


SIBLING = {"Origin": "https://other.app.example", "Sec-Fetch-Site": "same-site"}


@pytest.mark.parametrize(
    "headers",
    [
        SIBLING,
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://evil.example"},  # a browser without Sec-Fetch-Site
        {"Origin": "null"},
        {"Origin": "https://app.example.evil.example"},
        {"Referer": "https://evil.example/page"},
    ],
)
def test_another_site_changes_nothing_and_logs_nobody_out(headers: dict[str, str]) -> None:
    assert client().post("/export", headers=headers).status_code == 403
    assert client().get("/logout", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "same-origin", "Origin": OWN},
        {"Sec-Fetch-Site": "none"},  # typed into the address bar
        {"Origin": OWN},
        {"Referer": f"{OWN}/"},
        {"Origin": "https://public.example", "X-Forwarded-Host": "public.example"},  # behind a proxy
    ],
)
def test_the_page_itself_may(headers: dict[str, str]) -> None:
    assert client().post("/export", headers=headers).text == "done"
    assert client().get("/logout", headers=headers).text == "done"


def test_programs_may_but_a_logout_needs_a_sender() -> None:
    assert client().post("/export").text == "done"
    assert client().get("/logout").status_code == 403


def test_no_other_origin_may_read_an_answer(served: Served) -> None:
    for path in ("", "config", "gradio_api/info", "live"):
        for method in ("GET", "OPTIONS"):
            headers = {**SIBLING, "Host": "app.example", "Access-Control-Request-Method": "POST"}
            answer = httpx.request(method, f"{served.url}{path}", headers=headers)
            assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_frames_and_cookies_are_for_the_own_site_unless_the_setting_says_otherwise() -> None:
    answer = client().get("/")
    assert answer.headers["content-security-policy"] == "frame-ancestors 'self'"
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["set-cookie"] == "token=1; HttpOnly; Secure; SameSite=Lax"
    answer = client("https://huggingface.co").get("/")
    assert answer.headers["content-security-policy"] == "frame-ancestors 'self' https://huggingface.co"
    assert "x-frame-options" not in answer.headers
    assert answer.headers["set-cookie"] == COOKIE
