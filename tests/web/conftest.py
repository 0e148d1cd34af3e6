"""The page with a small model, in a headless Chromium whose camera shows a clip."""

import asyncio
import gc
import shutil
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from strm_lightning.classifier import FewShotClassifier
from strm_lightning.web.session_store import SessionStore
from tests.classifier.conftest import HOW, bare_model, moving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 120_000  # ms; encoding shares the machine with the browser
ROOM = 30_000_000


def browser_missing() -> str:
    """Why the page cannot be driven here, or an empty text."""
    if find_spec("gradio") is None:
        return "the page needs the extra `web`"
    if find_spec("playwright") is None:
        return "driving a browser needs playwright"
    return "" if CHROMIUM else "no chromium on this machine (Debian: apt-get install chromium)"


def write_camera_file(path: Path, frames: np.ndarray, fps: int = 10) -> Path:
    """Frames ``[F, H, W, 3]`` as the file of Chromium's fake camera, which repeats it."""
    height, width = frames.shape[1:3]
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F{fps}:1 Ip C420jpeg\n".encode())
        for image in frames:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            file.write(b"FRAME\n" + frame.to_ndarray().tobytes())
    return path


def half_lit() -> np.ndarray:
    """A camera that sees a bright left half, so that a mirrored recording shows."""
    frames = moving("up", 3, frames=30, height=240, width=320)
    frames[:, :, :160] = frames[:, :, :160] // 4 + 180
    frames[:, :, 160:] //= 4
    return frames


@pytest.fixture(scope="module", autouse=True)
def _unclosed_event_loops() -> Iterator[None]:
    """Gradio makes four event loops for a page and closes none; unless collected here, a later test warns of them."""
    yield
    asyncio.set_event_loop(None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def plain() -> FewShotClassifier:
    return FewShotClassifier(bare_model(), HOW)


@pytest.fixture
def store(plain: FewShotClassifier) -> SessionStore:
    greeting = {motion: [plain.encode_one(moving(motion, 0))[0]] for motion in ("left", "right")}
    return SessionStore(plain, greeting, built_in=True, max_bytes=10_000_000)


@pytest.fixture(scope="module")
def served(plain: FewShotClassifier) -> Iterator[tuple[str, Any, Path]]:
    """Address of the page, its sessions, and the folder of uploads."""
    from strm_lightning.web.greeting import built_in_examples
    from strm_lightning.web.page import build_page
    from strm_lightning.web.serve import serve
    from strm_lightning.web.upload_folder import upload_folder

    with upload_folder() as folder:
        store = SessionStore(plain, built_in_examples(plain), built_in=True, max_bytes=ROOM)
        page = build_page(store, folder, max_mb=2)
        yield serve(page, store, host="127.0.0.1", port=None, max_mb=2, block=False), store, folder
        page.close()


@pytest.fixture(scope="module")
def address(served: tuple[str, Any, Path]) -> str:
    return served[0]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    film = write_camera_file(tmp_path_factory.mktemp("camera") / "film.y4m", half_lit())
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as driver:
        options = ["--no-sandbox", *camera, f"--use-file-for-fake-video-capture={film}"]
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Any]:
    """The page in a window; a request to any other machine or an error in the script fails the test."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(SECONDS)
    foreign: list[str] = []
    errors: list[str] = []
    tab.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else foreign.append(r.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(address)
    tab.locator(".card").first.wait_for(timeout=SECONDS)
    yield tab
    assert not foreign
    assert not errors
    tab.close()
