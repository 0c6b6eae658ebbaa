"""Guard the web server.

Only the paths that the page needs, only requests that are meant for this address, bodies of a
bounded size, and headers that keep the page to itself.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

_PATHS = re.compile(
    r"/(login/?|logout|config/?|theme\.css|favicon\.ico|manifest\.json|robots\.txt)?"
    r"|/(assets|static|svelte)/.*"
    r"|/gradio_api/(login_check/?|user/?|token/?|app_id/?|theme\.css|startup-events"
    r"|info/?|queue/(join|data)|upload|upload_progress|cancel|reset/?|heartbeat/[\w-]+"
    r"|(run|call)/.*|file=.*)"
)
_HEADERS = {
    b"content-security-policy": (
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; "
        b"base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    ),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}
BODY = 4 * 2**20  # bytes of a request that is no upload


class TooLarge(Exception):
    """A request body went over its limit."""


class Gate:
    """ASGI middleware.

    ``hosts``: values of the Host header that are meant for this server (against DNS rebinding),
    None for any. ``upload``: bytes of an upload. ``root``: the path under which a proxy serves the
    page, and ``public`` the host; both may reach the server as they are or already taken off.
    """

    def __init__(
        self, app: Any, hosts: tuple[str, ...] | None, upload: int, root: str = "", public: str = ""
    ) -> None:
        self.app, self.hosts, self.upload = app, hosts, upload
        self.root, self.public = root, public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        path = scope["path"]
        if self.root and f"{path}/".startswith(f"{self.root}/"):
            path = path.removeprefix(self.root) or "/"
            scope = {**scope, "path": path}
        headers = {key.lower(): value.decode("latin-1") for key, value in scope["headers"]}
        limit = self.upload + BODY if path.endswith("/upload") else BODY
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if not self._is_ours(host):
            await _answer(send, 421, b"this server does not answer to that host name")
        elif origin is not None and urlsplit(origin).netloc not in {host, self.public or host}:
            await _answer(send, 403, b"this request comes from another page")
        elif not _PATHS.fullmatch(path) or ".." in path.split("/") or _is_remote(path):
            await _answer(send, 404, b"not found")
        elif _length(headers) > limit:
            await _answer(send, 413, b"too large")
        else:
            await self._pass(scope, receive, send, limit)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        left, started = limit, False

        async def bounded() -> Any:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise TooLarge
            return message

        async def with_headers(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message["headers"], *_HEADERS.items()]}
            await send(message)

        try:
            await self.app(scope, bounded, with_headers)
        except TooLarge:
            if not started:
                await _answer(send, 413, b"too large")

    def _is_ours(self, host: str) -> bool:
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        return self.hosts is None or name in self.hosts or (bool(host) and host == self.public)


def _is_remote(path: str) -> bool:
    """Return whether a file is asked for by an address instead of a path."""
    return bool(re.match(r"/gradio_api/file=(?!/(?!/))", path))


def _length(headers: dict[bytes, str]) -> int:
    text = headers.get(b"content-length", "0")
    return int(text) if text.isdecimal() else 0


async def _answer(send: Send, status: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close"), *_HEADERS.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
