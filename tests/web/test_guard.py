"""Requests that the server refuses."""

import socket
from http.client import HTTPConnection

import pytest

from strm_lightning.web.guard import Guard
from tests.web.conftest import ROOM

pytest.importorskip("gradio", reason="the page needs the extra `web`")
pytestmark = pytest.mark.filterwarnings("ignore")  # gradio's and its server's own


def ask(address: str, path: str = "/", *, body: int | None = None, **headers: str) -> int:
    """Status of a request with these headers, or with a body of so many bytes announced."""
    machine = address.removeprefix("http://").rstrip("/")
    connection = HTTPConnection(machine, timeout=30)
    connection.putrequest("GET" if body is None else "POST", path, skip_host=True)
    for name, value in {"Host": machine, **headers}.items():
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        connection.putheader("Content-Length", str(body))
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def test_it_listens_on_this_computer_only(address: str) -> None:
    assert address.startswith("http://127.0.0.1:")


def test_other_hosts_and_origins_are_not_answered(address: str) -> None:
    """Else a page of another site reads this one by DNS rebinding, or sends requests to it."""
    port = address.rstrip("/").rpartition(":")[2]
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x"):
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "a@127.0.0.1", "["):
            assert ask(address, path, Host=host) == 400, (path, host)
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", "LOCALHOST"):
        assert ask(address, "/config", Host=host) == 200, host
    for origin in ("https://evil.example", "null", "http://evil.example:80"):
        assert ask(address, "/config", Origin=origin) == 403, origin
    assert ask(address, "/config", Origin=f"http://localhost:{port}") == 200


def test_nothing_is_fetched_from_other_machines(address: str) -> None:
    for path in (
        "/gradio_api/file=http://127.0.0.1:1/x",
        "/gradio_api/file=https%3A//a.example/x",
        "/gradio_api/proxy=x",
    ):
        assert ask(address, path) == 403


def test_requests_have_limits(address: str) -> None:
    assert ask(address, "/gradio_api/upload", body=ROOM + 1) == 413
    assert ask(address, "/gradio_api/queue/join", body=3_000_000) == 413
    assert ask(address, "/gradio_api/component_server", body=3_000_000) == 413


def test_a_name_of_this_computer_is_trusted_only_if_others_may_come_in() -> None:
    own = socket.gethostname().lower()
    assert Guard(None, host="0.0.0.0", room=lambda: 1).is_trusted([f"{own}:7860"])
    assert Guard(None, host="page.example", room=lambda: 1).is_trusted(["page.example"])
    assert not Guard(None, host="0.0.0.0", room=lambda: 1).is_trusted(["evil.example"])
    assert not Guard(None, host="0.0.0.0", room=lambda: 1).is_trusted(["127.0.0.1", "evil.example"])
    assert not Guard(None, host="0.0.0.0", room=lambda: 1).is_trusted([])
