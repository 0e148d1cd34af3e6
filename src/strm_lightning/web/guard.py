"""ASGI middleware of the web page: trusted hosts and origins, and limits on the size of requests."""

import socket
from collections.abc import Callable, Collection
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

_FETCHING = ("/file=http", "/proxy=")  # gradio's paths that fetch from other machines
_OTHER_BODIES = 2**21  # largest request that is not an upload, in bytes; a recording of 32 frames takes about 1 MB


class Guard:
    """Refuse requests for other hosts, from pages of other hosts, and uploads above the limit.

    DNS rebinding lets a page of another site reach a local server: the name of the site then resolves to 127.0.0.1.
    The browser still sends that name as ``Host``, so only addresses and names of this server are accepted. A browser
    also names the site whose page makes a request as ``Origin``; other sites are refused.

    Args:
        app: the application.
        host: address or name that the server listens on.
        room: returns the number of bytes that can still be uploaded.
    """

    def __init__(self, app: Any, *, host: str, room: Callable[[], int]) -> None:
        self.app, self.room = app, room
        self.running_bytes = 0
        self.names = {"localhost", host.lower()}
        if not _is_loopback(host):
            own = socket.gethostname().lower()
            self.names |= {own, f"{own.partition('.')[0]}.local"}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Respond with status 400, 403, 411 or 413, or call the application."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        length = _content_length(headers) if scope["type"] == "http" else 0
        if refusal := self._refusal(scope, headers, length):
            await _answer(*refusal, scope, receive, send)
            return
        self.running_bytes += length
        try:
            await self.app(scope, receive, send)
        finally:
            self.running_bytes -= length

    def _refusal(self, scope: Any, headers: list[tuple[bytes, str]], length: int) -> tuple[int, str] | None:
        if not self.is_trusted([value for name, value in headers if name == b"host"]):
            return 400, "This server does not accept that host."
        for origin in (value for name, value in headers if name == b"origin"):
            if not self.is_trusted([origin.partition("://")[2]]):
                return 403, "This server does not accept requests of other sites."
        if any(word in scope["path"] for word in _FETCHING):
            return 403, "This server fetches nothing from other machines."
        if scope["type"] == "http" and any(name == b"transfer-encoding" for name, _ in headers):
            return 411, "The request has no Content-Length."
        if length and scope["type"] == "http":
            upload = scope["path"].rstrip("/").endswith("/upload")
            if length > (self.room() - self.running_bytes if upload else _OTHER_BODIES):
                return 413, "The uploads exceed the limit: remove examples." if upload else "Request too large."
        return None

    def is_trusted(self, hosts: Collection[str]) -> bool:
        """Whether the ``Host`` header has exactly one value, an IP address or a name of this server."""
        if len(hosts) != 1:
            return False
        (host,) = hosts
        try:
            parts = urlsplit(f"//{host}")
            name = parts.hostname or ""
        except ValueError:
            return False
        return parts.netloc == host and "@" not in host and (_is_address(name) or name in self.names)


def _content_length(headers: list[tuple[bytes, str]]) -> int:
    sizes = [value for name, value in headers if name == b"content-length"]
    return int(sizes[0]) if sizes and sizes[0].isdigit() else 0


async def _answer(status: int, text: str, scope: Any, receive: Any, send: Any) -> None:
    from starlette.responses import PlainTextResponse

    await PlainTextResponse(text, status_code=status)(scope, receive, send)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)
