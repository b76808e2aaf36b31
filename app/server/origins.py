"""Keep pages of other sites from using a visitor's login: from reading, changing, framing, logging out."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.page.gradio_internals import path_of
from app.server.events import refusal

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# Headers of all responses that do not have them.
HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "same-origin"}


class Origins:
    """Refuse changes requested by pages of other sites, and have browsers keep such pages out.

    Args:
        framed_by: origins of the sites that may show the page in a frame; all others may not. If there are
            any, the login's cookie is sent in frames, too.
    """

    def __init__(self, app: ASGIApp, framed_by: Sequence[str] = ()) -> None:
        self._app = app
        self._framed_by = tuple(framed_by)
        self._policy = " ".join(["frame-ancestors 'self'", *framed_by])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": self._headers(message)}
            await send(message)

        logs_out = path_of(scope).strip("/") == "logout"
        if (scope["method"] not in SAFE_METHODS or logs_out) and is_foreign(scope, strict=logs_out):
            answer = refusal("Another site may not do this. Open the page itself.", 403)
            return await answer(scope, receive, send_with_headers)
        await self._app(scope, receive, send_with_headers)

    def _headers(self, start: Message) -> list[tuple[bytes, bytes]]:
        """Return the headers of a response, with this policy."""
        headers = MutableHeaders(raw=list(start.get("headers", ())))
        for name, value in {**HEADERS, "content-security-policy": self._policy}.items():
            headers.setdefault(name, value)
        if not self._framed_by:
            headers["x-frame-options"] = "SAMEORIGIN"
        return [(name, value if self._framed_by else _lax(name, value)) for name, value in headers.raw]


def is_foreign(scope: Scope, *, strict: bool = False) -> bool:
    """Whether a page of another origin sent a request.

    Browsers tell by the header Sec-Fetch-Site or, without HTTPS, by Origin or Referer; programs send none.

    Args:
        strict: take a request without any of these for foreign.
    """
    headers = Headers(scope=scope)
    site = headers.get("sec-fetch-site")
    if site:
        return site not in ("same-origin", "none")
    sender = headers.get("origin") or headers.get("referer")
    if sender is None:
        return strict
    # A proxy may pass on its own host instead, or be named by --root-path.
    own = {headers.get("host"), headers.get("x-forwarded-host"), urlsplit(scope.get("root_path", "")).netloc}
    own.add(urlsplit(getattr(scope.get("app"), "root_path", "")).netloc)
    return urlsplit(sender).netloc not in own - {None, ""}


def _lax(name: bytes, value: bytes) -> bytes:
    """Return a header's value; of a cookie with SameSite=Lax, so that other sites' requests go without it."""
    if name.lower() != b"set-cookie":
        return value
    parts = [part for part in value.split(b"; ") if not part.lower().startswith(b"samesite=")]
    return b"; ".join([*parts, b"SameSite=Lax"])
