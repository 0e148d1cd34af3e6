"""Uploads of the web page: temporary folder, encoded clips of each session, limits and host check."""

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from jaxtyping import UInt8
from torch import Tensor

from strm_lightning.classifier.support import EncodedClip
from strm_lightning.data.decode.video import VideoError

try:
    import fcntl
except ImportError:  # Windows: folders of killed servers are not deleted
    fcntl = None  # type: ignore[assignment]

_PREFIX = "strm-demo-"
_LOCK = ".lock"
_OTHER_BODIES = 2**20  # largest request that is not an upload, in bytes
_IDLE_S = 3600.0  # idle sessions are dropped after this time

Encode = Callable[[str], tuple[EncodedClip, UInt8[Tensor, "L 3 S S"]]]


@contextmanager
def upload_folder() -> Iterator[Path]:
    """Yield a temporary folder that is deleted at the end; also delete the folders of killed servers.

    A server locks a file in its folder. The operating system releases the lock when the process ends.
    """
    _sweep(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder, (Path(folder) / _LOCK).open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(folder)


def _sweep(parent: Path) -> None:
    if fcntl is None:
        return
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # deleted by another process, or of another user
            stat = folder.lstat()
            if stat.st_uid != os.getuid() or folder.is_symlink():
                continue
            if not (folder / _LOCK).exists():  # just created, or of a version without locks
                if time.time() - stat.st_mtime > 86400:
                    shutil.rmtree(folder)
                continue
            with (folder / _LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while the server runs
                shutil.rmtree(folder)


@dataclass(frozen=True, eq=False)
class Upload:
    """An uploaded file: the encoded clip and its pixels, or the error."""

    clip: EncodedClip | None = None
    pixels: UInt8[Tensor, "L 3 S S"] | None = None
    error: VideoError | None = None

    @property
    def nbytes(self) -> int:
        """Memory of the tensors in bytes."""
        if self.clip is None or self.pixels is None:
            return 0
        return sum(
            t.numel() * t.element_size() for t in (*self.clip.features.values(), self.clip.thumbnail, self.pixels)
        )


@dataclass
class _Session:
    used: float
    uploads: dict[str, Upload] = field(default_factory=dict)


class Uploads:
    """Encoded uploads of each browser session, by path. A file is encoded once and then deleted.

    Args:
        max_bytes: limit of the total size of files, running requests and encoded clips of all sessions.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.running_bytes = 0
        self._sessions: dict[str, _Session] = {}
        self._all: WeakValueDictionary[str, Upload] = WeakValueDictionary()  # two sessions may upload the same file

    def keep(self, session: str, paths: Collection[str], encode: Encode, *, delete: Callable[[str], bool]) -> None:
        """Encode the files that a page lists, then delete them; drop the clips that it no longer lists.

        Args:
            session: name of the session.
            paths: files that the page lists.
            encode: encodes a file.
            delete: whether a file is deleted.
        """
        uploads = self._of(session)
        for path in [path for path in uploads if path not in paths]:
            del uploads[path]
        for path in paths:
            self.get(session, path, encode)
            if delete(path):
                with suppress(FileNotFoundError):
                    Path(path).unlink()

    def get(self, session: str, path: str, encode: Encode) -> Upload:
        """Return an encoded file; encode it at the first call."""
        uploads = self._of(session)
        if path not in uploads:
            found = self._all.get(path)
            if found is None and not Path(path).is_file():
                return Upload(
                    error=VideoError(f"{path}: is no longer kept; remove it from the page and upload it again")
                )
            if found is None:
                try:
                    found = Upload(*encode(path))
                except VideoError as error:
                    found = Upload(error=error)
            uploads[path] = self._all[path] = found
        return uploads[path]

    def drop(self, session: str) -> None:
        """Drop a session, for example when its page is closed."""
        self._sessions.pop(session, None)

    def room(self) -> int:
        """Number of bytes that can still be uploaded."""
        now = time.monotonic()
        for name, session in list(self._sessions.items()):  # a copy, since other threads add to it
            if now - session.used > _IDLE_S:
                self.drop(name)
        encoded = sum(upload.nbytes for upload in list(self._all.values()))
        folder = os.environ.get("GRADIO_TEMP_DIR")
        return self.max_bytes - self.running_bytes - encoded - (_size(Path(folder)) if folder else 0)

    def _of(self, session: str) -> dict[str, Upload]:
        found = self._sessions.setdefault(session, _Session(0.0))
        found.used = time.monotonic()
        return found.uploads


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # deleted in the meantime
            total += file.lstat().st_size
    return total


class Guard:
    """ASGI middleware that refuses requests for other hosts, and uploads above the limit.

    DNS rebinding lets a page of another site reach a local server: the name of the site then resolves to 127.0.0.1.
    The browser still sends that name as ``Host``, so only addresses and names of this server are accepted.

    Args:
        app: the application.
        host: address or name that the server listens on.
        uploads: the uploads, which count the used bytes.
    """

    def __init__(self, app: Any, *, host: str, uploads: Uploads) -> None:
        self.app, self.uploads = app, uploads
        self.names = {"localhost", host.lower()}
        if not _is_loopback(host):
            own = socket.gethostname().lower()
            self.names |= {own, f"{own.partition('.')[0]}.local"}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Respond with status 400, 411 or 413, or call the application."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        if not self.is_trusted([value for name, value in headers if name == b"host"]):
            await _answer(400, "This server does not accept that host.", scope, receive, send)
            return
        length = 0
        if scope["type"] == "http":
            sizes = [value for name, value in headers if name == b"content-length"]
            if any(name == b"transfer-encoding" for name, _ in headers):
                await _answer(411, "The request has no Content-Length.", scope, receive, send)
                return
            length = int(sizes[0]) if sizes and sizes[0].isdigit() else 0
            upload = scope["path"].rstrip("/").endswith("/upload")
            if length > (self.uploads.room() if upload else _OTHER_BODIES):
                text = "The uploads exceed the limit: remove clips from the page." if upload else "Request too large."
                await _answer(413, text, scope, receive, send)
                return
        self.uploads.running_bytes += length
        try:
            await self.app(scope, receive, send)
        finally:
            self.uploads.running_bytes -= length

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
