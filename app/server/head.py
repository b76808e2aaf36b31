"""Put meta tags into the page's head, for sites that show a link to it.

They run no scripts, and Gradio adds a page's own head by a script. So the tags replace Gradio's own in the
response; addresses in them are absolute, as those sites need them.
"""

import re
from html import escape

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.page.gradio_internals import root_of

GRADIOS_OWN = re.compile(r'<meta\s+(property="og:|name="twitter:)[^>]*>\s*')


class Head:
    """Puts `head` into the page's HTML, with the app's address for each {root} in it."""

    def __init__(self, app: ASGIApp, head: str) -> None:
        self._app, self._head = app, head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path not in ("", "/"):
            return await self._app(scope, receive, send)
        head = self._head.replace("{root}", escape(root_of(scope)))
        start: Message = {}
        html = b""

        async def send_with_head(message: Message) -> None:
            nonlocal start, html
            if message["type"] == "http.response.start" and _is_html(message):
                start = message
            elif not start:
                await send(message)
            elif message["type"] == "http.response.body":
                html += message.get("body", b"")
                if not message.get("more_body"):
                    whole = with_head(html.decode(), head).encode() if html else b""  # empty for HEAD
                    others = [each for each in start["headers"] if each[0] != b"content-length"]
                    length = [(b"content-length", str(len(whole)).encode())] if html else []
                    await send({**start, "headers": [*others, *length]})
                    await send({"type": "http.response.body", "body": whole})

        await self._app(scope, receive, send_with_head)


def with_head(html: str, head: str) -> str:
    """Return the HTML with `head` at the end of its head, and without Gradio's tags for such sites."""
    own, end, rest = html.partition("</head>")
    return f"{GRADIOS_OWN.sub('', own)}{head}{end}{rest}"


def _is_html(start: Message) -> bool:
    return dict(start["headers"]).get(b"content-type", b"").startswith(b"text/html")
