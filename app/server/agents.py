"""Calls of agents: Gradio makes their requests itself, so these are told apart and end with the agent's."""

import secrets
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from app.page.gradio_internals import path_of

TOOLS = "/gradio_api/mcp"
# Gradio passes the headers of an agent's request on to the one that it makes for it.
HEADER = b"x-agent-call"


@dataclass
class AgentCall:
    """A request of an agent.

    Attributes:
        client: host and port of the agent.
        has_ended: whether it was answered, or the agent has hung up.
    """

    client: tuple[str, int] | None
    has_ended: bool = False


class Agents:
    """Give the requests that Gradio makes for an agent's call the agent's address, and the call as `agent`.

    Without this they would all come from one client on this machine, and go on when the agent hangs up. The
    call is named by a header with a secret, so nobody else can pass for an agent.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._calls: dict[bytes, AgentCall] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        named = dict(scope["headers"]).get(HEADER, b"")
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != HEADER]
        if path_of(scope).startswith(TOOLS):
            secret = secrets.token_hex(16).encode()
            scope["headers"].append((HEADER, secret))
            self._calls[secret] = AgentCall(scope.get("client"))
            try:
                await self._app(scope, receive, send)
            finally:
                self._calls.pop(secret).has_ended = True
        else:
            if call := self._calls.get(named):
                scope["client"], scope["agent"] = call.client, call
            await self._app(scope, receive, send)
