"""The guard against guessed passwords."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message

from app.server import login
from app.server.login import MAX_CHECKS, MAX_WAITING, WRONG_FOR_NAME, WRONG_FROM_ADDRESS, LoginGuard

PASSWORD = "four corners and a lake"


class Form:
    """Gradio's login, which takes as long as `checking` is not set."""

    def __init__(self) -> None:
        self.checking = asyncio.Event()
        self.checking.set()
        self.at_once = self.most_at_once = self.checks = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        form = await Request(scope, receive).form()
        self.checks += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.checking.wait()
        self.at_once -= 1
        right = form["password"] == PASSWORD
        answer = JSONResponse({"success": True} if right else {"detail": "wrong"}, 200 if right else 400)
        await answer(scope, receive, send)


@asynccontextmanager
async def guarded(
    form: Form, now: Callable[[], float] = lambda: 0.0, address: str = "192.0.2.1"
) -> AsyncIterator[httpx.AsyncClient]:
    guard = LoginGuard(form, now)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await guard({**scope, "app": SimpleNamespace(auth=True), "client": (address, 1)}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        yield client


async def enter(client: httpx.AsyncClient, name: str = "ada", password: str = PASSWORD) -> int:
    return (await client.post("/login", data={"username": name, "password": password})).status_code


def test_wrong_passwords_for_a_name_end_after_a_few_and_begin_again_a_minute_later() -> None:
    async def run() -> None:
        clock = 0.0
        async with guarded(form := Form(), lambda: clock) as client:
            statuses = [await enter(client, password="wrong") for _ in range(WRONG_FOR_NAME + 3)]
            assert statuses == [400] * WRONG_FOR_NAME + [429] * 3
            assert form.checks == WRONG_FOR_NAME  # no time is spent on the others
            assert await enter(client) == 429  # not even with the right one
            assert await enter(client, "bob") == 200  # who shares the address
            clock = 61.0
            assert await enter(client) == 200

    asyncio.run(run())


def test_many_names_from_one_address_end_too_and_others_notice_nothing() -> None:
    async def run() -> None:
        form = Form()
        guard = LoginGuard(form, lambda: 0.0)

        def client_at(address: str) -> httpx.AsyncClient:
            async def app(scope: Any, receive: Any, send: Any) -> None:
                await guard(
                    {**scope, "app": SimpleNamespace(auth=True), "client": (address, 1)}, receive, send
                )

            return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")

        async with client_at("192.0.2.1") as attacker, client_at("192.0.2.2") as honest:
            statuses = [await enter(attacker, f"name{i}", "wrong") for i in range(WRONG_FROM_ADDRESS + 2)]
            assert statuses == [400] * WRONG_FROM_ADDRESS + [429] * 2
            assert await enter(honest) == 200

    asyncio.run(run())


def test_few_passwords_are_checked_at_the_same_time_and_the_line_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        form = Form()
        form.checking.clear()
        async with guarded(form) as client:
            entering = [asyncio.create_task(enter(client)) for _ in range(MAX_CHECKS)]
            while form.at_once < MAX_CHECKS:
                await asyncio.sleep(0)
            entering += [asyncio.create_task(enter(client)) for _ in range(MAX_WAITING + 5)]
            refused = [await each for each in await first_done(entering, 5)]
            assert refused == [503] * 5
            form.checking.set()
            assert sorted(await asyncio.gather(*entering)) == [200] * (MAX_CHECKS + MAX_WAITING) + [503] * 5
            assert form.most_at_once == MAX_CHECKS

    asyncio.run(run())


async def first_done(tasks: list[asyncio.Task[int]], count: int) -> list[asyncio.Task[int]]:
    while sum(task.done() for task in tasks) < count:
        await asyncio.wait([task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED)
    return [task for task in tasks if task.done()]


def test_who_hangs_up_in_the_line_is_forgotten() -> None:
    """Sixty attempts that hang up cost an honest visitor no time."""

    async def run() -> None:
        form = Form()
        form.checking.clear()
        guard = LoginGuard(form)
        leaving = asyncio.Event()

        def request(hangs_up: bool, answers: list[Message]) -> asyncio.Task[None]:
            body = b"username=ada&password=" + (b"wrong" if hangs_up else PASSWORD.replace(" ", "+").encode())
            messages = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive() -> Message:
                if messages:
                    return messages.pop()
                await (leaving.wait() if hangs_up else asyncio.Event().wait())
                return {"type": "http.disconnect"}

            async def send(message: Message) -> None:
                answers.append(message)

            scope = {
                **{"type": "http", "method": "POST", "path": "/login", "client": ("192.0.2.1", 1)},
                **{"query_string": b"", "app": SimpleNamespace(auth=True)},
                "headers": [(b"content-type", b"application/x-www-form-urlencoded")],
            }
            return asyncio.ensure_future(guard(scope, receive, send))

        gone = [request(True, []) for _ in range(MAX_CHECKS + MAX_WAITING)]
        while form.at_once < MAX_CHECKS:
            await asyncio.sleep(0)
        leaving.set()
        await asyncio.gather(*gone[MAX_CHECKS:])  # those in the line end though nothing has been checked
        answers: list[Message] = []
        honest = request(False, answers)
        form.checking.set()
        await honest
        assert answers[0]["status"] == 200
        assert form.checks == MAX_CHECKS + 1

    asyncio.run(run())


def test_the_login_page_has_words_for_every_answer() -> None:
    page = bytes(login._login_page({}).body).decode()
    for label in ("wrong", "often", "silent"):
        assert f'data-{label}="{login.LOGIN_LABELS[label]}"' in page
