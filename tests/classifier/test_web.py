"""The page from end to end, in headless Chromium."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from strm_lightning.classifier import FewShotClassifier
from strm_lightning.models import STRM, Backbone
from strm_lightning.web.uploads import Guard, Uploads, upload_folder
from tests.classifier.conftest import HOW, moving, save_weights, write_video

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Only looked for: importing gradio takes as long as importing torch, and collecting the tests does not need it.
pytestmark = [
    pytest.mark.skipif(find_spec("gradio") is None, reason="the page needs the extra `web`"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="driving a browser needs playwright"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)"),
    pytest.mark.filterwarnings("ignore"),  # gradio's and its server's own
]
SECONDS = 60_000  # ms; drawing and encoding share the machine with the browser


@pytest.fixture(scope="module")
def address(bare: STRM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    from strm_lightning.web import page as web

    uploads = Uploads(6_000_000)
    page = web.build(lambda: FewShotClassifier(bare, HOW), folder / "uploads" / "examples", uploads)
    yield web.serve(page, uploads, host="127.0.0.1", port=None, max_mb=1, block=False)
    page.close()
    del os.environ["GRADIO_TEMP_DIR"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(params=[(1280, 900), (400, 900)], ids=["wide", "narrow"])
def tab(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    """The page in a window; whatever is asked of any other machine fails the test."""
    width, height = request.param
    tab = browser.new_page(viewport={"width": width, "height": height})
    foreign: list[str] = []
    tab.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else foreign.append(r.url))
    tab.goto(address)
    tab.get_by_role("button", name="Recognise").wait_for(timeout=SECONDS)
    yield tab
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert not foreign
    tab.close()


def press(tab: Any, says: str) -> None:
    tab.get_by_role("button", name="Recognise").click()
    tab.locator("#message").get_by_text(says).wait_for(timeout=SECONDS)


def give(tab: Any, field: int, *files: Path) -> None:
    """Fields are the actions in their order, hidden ones too, and then the query."""
    tab.locator("input[type=file]").nth(field).set_input_files([str(f) for f in files])
    for file in files:
        tab.get_by_text(file.stem, exact=True).first.wait_for(timeout=SECONDS)


def test_an_empty_form_says_what_is_missing(tab: Any, tmp_path: Path) -> None:
    press(tab, "Give at least two actions")
    tab.get_by_placeholder("Name of action 1").fill("up")
    press(tab, "Action 'up' has no clips yet")
    give(tab, 0, write_video(tmp_path / "up_a.mp4", moving("up")))
    tab.get_by_placeholder("Name of action 1").fill("")
    press(tab, "Action 1 has clips but no name")


def test_upload_and_predict(tab: Any, tmp_path: Path) -> None:
    for slot, motion in enumerate(("left", "up")):
        tab.get_by_placeholder(f"Name of action {slot + 1}").fill(motion)
        give(tab, slot, *(write_video(tmp_path / f"{motion}_{i}.mp4", moving(motion, i)) for i in range(2)))
    press(tab, "There is no video to recognise yet")
    give(tab, -1, write_video(tmp_path / "query.mp4", moving("up", 9)))
    tab.get_by_role("button", name="Recognise").click()
    tab.locator("[data-testid='label-output-value']").get_by_text("up").wait_for(timeout=SECONDS)
    tab.locator("img").first.wait_for(timeout=SECONDS)


def test_a_wrong_file_is_told_by_its_name(tab: Any, tmp_path: Path) -> None:
    for slot, motion in enumerate(("left", "up")):
        tab.get_by_placeholder(f"Name of action {slot + 1}").fill(motion)
        give(tab, slot, write_video(tmp_path / f"{motion}_0.mp4", moving(motion)))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    give(tab, -1, broken)
    press(tab, "broken.mp4: cannot be decoded")
    assert "/" not in tab.locator("#message").inner_text()


def test_files_beyond_the_limit_are_refused(tab: Any, tmp_path: Path) -> None:
    large = tmp_path / "large.mp4"
    large.write_bytes(b"0" * 1_500_000)
    tab.locator("input[type=file]").nth(-1).set_input_files(str(large))
    tab.get_by_text("maximum").first.wait_for(timeout=SECONDS)


def test_built_in_examples(tab: Any) -> None:
    tab.get_by_role("button", name="Use built-in examples").click()
    tab.get_by_text("circle_4", exact=True).first.wait_for(timeout=SECONDS)
    tab.get_by_role("button", name="Recognise").click()
    tab.locator("[data-testid='label-output-value']").wait_for(timeout=SECONDS)


def test_more_actions(tab: Any) -> None:
    assert not tab.get_by_placeholder("Name of action 4").is_visible()
    tab.get_by_role("button", name="Add an action").click()
    tab.get_by_placeholder("Name of action 4").wait_for(timeout=SECONDS)


def test_it_listens_on_this_computer_only(address: str) -> None:
    assert address.startswith("http://127.0.0.1:")


def test_uploads_are_deleted_once_encoded_and_still_recognised(
    browser: Any, address: str, tmp_path: Path, count_encoded
) -> None:
    """Also after the time at which gradio deletes files: nothing of them is left then anyway."""
    tab = browser.new_page()
    tab.goto(address)
    tab.get_by_role("button", name="Recognise").wait_for(timeout=SECONDS)
    for slot, motion in enumerate(("left", "up")):
        tab.get_by_placeholder(f"Name of action {slot + 1}").fill(motion)
        give(tab, slot, *(write_video(tmp_path / f"gone_{motion}_{i}.mp4", moving(motion, 20 + i)) for i in range(2)))
    give(tab, -1, write_video(tmp_path / "gone_query.mp4", moving("up", 29)))
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    for _ in range(300):
        if count_encoded() == 5 and not list(folder.rglob("gone_*.mp4")):
            break
        tab.wait_for_timeout(100)
    assert not list(folder.rglob("gone_*.mp4"))
    assert count_encoded() == 5
    tab.get_by_role("button", name="Recognise").click()
    tab.locator("[data-testid='label-output-value']").get_by_text("up").wait_for(timeout=SECONDS)
    tab.close()
    assert count_encoded() <= 6  # where a bare backbone looked takes one more


def ask(address: str, path: str = "/", host: str | None = None, body: int | None = None) -> int:
    """Status of a request with this ``Host``, or with a body of so many bytes announced."""
    machine = address.removeprefix("http://").rstrip("/")
    connection = HTTPConnection(machine, timeout=30)
    connection.putrequest("GET" if body is None else "POST", path, skip_host=True)
    connection.putheader("Host", host or machine)
    if body is not None:
        connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        connection.putheader("Content-Length", str(body))
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def test_other_hosts_are_not_answered(address: str) -> None:
    """Else a page of another site reads this one by DNS rebinding."""
    port = address.rstrip("/").rpartition(":")[2]
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x"):
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1.evil.example",
            "a@127.0.0.1",
            "[",
        ):
            assert ask(address, path, host) == 400, (path, host)
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", "LOCALHOST"):
        assert ask(address, "/config", host) == 200, host


def test_uploads_have_a_limit_together(address: str) -> None:
    assert ask(address, "/gradio_api/upload", body=7_000_000) == 413
    assert ask(address, "/gradio_api/queue/join", body=2_000_000) == 413
    assert ask(address, "/gradio_api/process_recording", body=2_000_000) == 413


def test_kept_clips_and_uploads_under_way_count(monkeypatch: pytest.MonkeyPatch, bare: STRM, tmp_path) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    uploads = Uploads(10_000_000)
    path = write_video(tmp_path / "a.mp4", moving("up"))
    size = path.stat().st_size
    assert uploads.room() == 10_000_000 - size
    encode = FewShotClassifier(bare, HOW).encode_one
    uploads.keep("one", [str(path)], encode, delete=lambda _: True)
    assert not path.exists()
    kept = uploads.get("one", str(path), encode)
    assert kept.nbytes > 100_000
    assert uploads.room() == 10_000_000 - kept.nbytes
    assert uploads.get("two", str(path), encode) is kept  # the same file in another browser
    uploads.drop("one")
    assert uploads.room() == 10_000_000 - kept.nbytes
    uploads.keep("two", [], encode, delete=lambda _: True)  # removed from the page
    del kept
    assert uploads.room() == 10_000_000
    assert "no longer kept" in str(uploads.get("two", str(path), encode).error)


def test_a_name_of_this_computer_is_trusted_only_if_others_may_come_in() -> None:
    uploads, own = Uploads(1), socket.gethostname().lower()
    assert Guard(None, host="0.0.0.0", uploads=uploads).is_trusted([f"{own}:7860"])
    assert Guard(None, host="page.example", uploads=uploads).is_trusted(["page.example"])
    assert not Guard(None, host="0.0.0.0", uploads=uploads).is_trusted(["evil.example"])
    assert not Guard(None, host="0.0.0.0", uploads=uploads).is_trusted(["127.0.0.1", "evil.example"])
    assert not Guard(None, host="0.0.0.0", uploads=uploads).is_trusted([])


def test_what_a_killed_demo_left_is_swept_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = """
import os, pathlib
from strm_lightning.web.uploads import upload_folder
with upload_folder() as folder:
    (folder / "private.mp4").write_bytes(b"pixels")
    print(folder, flush=True)
    input()
"""
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        folder = Path(server.stdout.readline().strip())
        with upload_folder():
            assert (folder / "private.mp4").exists()  # its server lives
        server.kill()
    assert (folder / "private.mp4").exists()
    with upload_folder() as own:
        assert list(tmp_path.glob("strm-demo-*")) == [own]
    assert not list(tmp_path.glob("strm-demo-*"))


def test_a_port_in_use_is_told_before_a_model_is_loaded(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    from strm_lightning.cli.main import main

    port = address.rstrip("/").rpartition(":")[2]
    for words, message in (
        ([f"--port={port}"], f"cannot listen on 127.0.0.1, port {port}: Address already in use"),
        (["--port=99999"], "port 99999: bind(): port must be 0-65535"),
        (["--host=203.0.113.1"], "cannot listen on 203.0.113.1"),
        (["--max_mb=0"], "--max_mb 0: give at least 1"),
        (["--max_total_mb=50"], "--max_total_mb 50: give at least --max_mb, 100"),
    ):
        with pytest.raises(SystemExit):
            main(["demo", "--ckpt=none.ckpt", *words])
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_uploads_go_when_the_server_is_ended(tmp_path: Path) -> None:
    """Ended as a service manager does it; a process of its own, since it is ended by a signal."""
    torch.manual_seed(0)
    save_weights(Backbone("test_resnet", pretrained=False).net, tmp_path / "weights.safetensors")
    words = ["demo", "--backbone=test_resnet", f"--weights={tmp_path / 'weights.safetensors'}"]
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "strm_lightning", *words]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert "The page is at http://127.0.0.1:" in server.stdout.readline()
        assert list((tmp_path / "tmp").glob("strm-demo-*"))
        server.terminate()
        server.wait(30)
    assert not list((tmp_path / "tmp").glob("strm-demo-*"))
