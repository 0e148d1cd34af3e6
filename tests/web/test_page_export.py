"""The export of a page's examples: a process, a ZIP file, and a button."""

import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from strm_lightning.classifier import FewShotClassifier
from strm_lightning.classifier.export import graphs
from strm_lightning.errors import InputError
from strm_lightning.web import session as session_module
from strm_lightning.web.session_store import SessionStore
from tests.classifier.conftest import moving, write_video
from tests.web.conftest import SECONDS, browser_missing
from tests.web.test_page import rename, says, start_fresh

pytest.importorskip("gradio", reason="the page needs the extra `web`")
pytest.importorskip("onnxruntime", reason="the export needs the extra `export`")
from strm_lightning.classifier.export.predict import Classifier
from strm_lightning.web.studio import Server

pytestmark = pytest.mark.filterwarnings("ignore")  # gradio's and its server's own


def in_browser(test: Any) -> Any:
    return pytest.mark.browser(pytest.mark.skipif(bool(browser_missing()), reason=browser_missing() or "-")(test))


def test_the_export_of_a_session_predicts_the_same(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = store.open("one")
    session.add_example("left", write_video(tmp_path / "a.mp4", moving("left", 1)), "a.mp4")
    session.add_example("right", moving("right", 1), "recording")
    session.rename_class("left", "to the left")
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", moving("up", 1))  # another video of that name is not the example
    file = tmp_path / "download" / "strm-export.zip"
    assert session.export(file).startswith("the same labels as PyTorch on 4 left-out examples, 4 drawn clips")
    assert session.export_step == ""
    assert list(file.parent.iterdir()) == [file]
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path)
    query = write_video(tmp_path / "query.mp4", moving("right", 4))
    label, probabilities = Classifier(tmp_path / "strm-export").predict(query)
    assert label == "right"
    assert probabilities == pytest.approx(dict(session.explain(query, "query").prediction.probabilities), abs=1e-3)
    store.drop("one")
    assert not file.parent.exists()


def test_an_export_ends_with_its_page(store: SessionStore, tmp_path: Path) -> None:
    session, file = store.open("one"), tmp_path / "download" / "strm-export.zip"
    with ThreadPoolExecutor(1) as pool:
        export = pool.submit(session.export, file)
        while session.export_step in ("", "starting"):
            assert not export.done()
            time.sleep(0.05)
        assert session.export_step == "converting the encoding"
        assert session.predict(moving("right", 4)).label == "right"  # other work does not wait
        store.close()
        with pytest.raises(InputError, match="the export was stopped"):
            export.result(30)
    assert not file.parent.exists()


def test_exports_that_are_refused_write_nothing(store: SessionStore, tmp_path: Path) -> None:
    session = store.open("one")
    session.remove_class("left")
    server = Server(store, tmp_path)
    export = next(function for function in server.functions() if function.__name__ == "export")
    assert export({"session": "one"}) == {"error": "Give examples of at least two actions first."}
    assert export({"session": "none"}) == {"error": "This page is no longer known to the server: reload it."}
    with server._one_export:
        assert export({"session": "one"}) == {"error": "Another export is running: try again when it is done."}
    assert list(tmp_path.iterdir()) == []


class _Quick:
    """An export that writes a text, or with an action named `wait` runs until it is stopped."""

    def __init__(self, classifier: FewShotClassifier, path: Path) -> None:
        self.step, self.path, self.stopped = "converting the encoding", path, Event()
        self.waits = "wait" in classifier.classes_

    def wait(self) -> str:
        if self.waits and self.stopped.wait(SECONDS / 1000):
            raise InputError("the export was stopped")
        self.path.write_text("ZIP")
        return "the same labels as PyTorch on 2 left-out examples"

    def stop(self) -> None:
        self.stopped.set()


@in_browser
def test_the_button_exports_and_stops(
    tab: Any, served: tuple[str, Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "ExportProcess", _Quick)
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Export", exact=True).click()
    assert download.value.suggested_filename == "strm-export.zip"
    download.value.save_as(tmp_path / "found.zip")
    assert (tmp_path / "found.zip").read_text() == "ZIP"
    says(tab, "the same labels as PyTorch on 2 left-out examples")
    rename(tab, "circle", "wait")
    tab.get_by_role("button", name="Export", exact=True).click()
    line = tab.locator(".export-line")
    line.get_by_text("Export: converting the encoding").wait_for(timeout=SECONDS)
    tab.get_by_role("button", name="Add an action").click()  # the page can be used meanwhile
    tab.get_by_label("Name of action 1").wait_for(timeout=SECONDS)
    tab.get_by_role("button", name="Stop the export").click()
    says(tab, "The export was stopped.")
    assert line.is_hidden()
    start_fresh(tab)
    tab.get_by_role("button", name="Export", exact=True).click()
    says(tab, "Give examples of at least two actions first.")
    assert not list(served[2].rglob("*.zip"))


@in_browser
def test_a_page_without_the_packages_says_how_to_install_them(
    browser: Any, served: tuple[str, Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from strm_lightning.web.page import build_page
    from strm_lightning.web.serve import serve

    _, store, folder = served
    monkeypatch.setattr(graphs, "_MODULES", ("onnx", "not_installed"))
    page = build_page(store, folder, max_mb=2)
    tab = browser.new_page()
    tab.goto(serve(page, store, host="127.0.0.1", port=None, max_mb=2, block=False))
    tab.locator(".card").first.wait_for(timeout=SECONDS)
    assert tab.get_by_role("button", name="Export", exact=True).is_disabled()
    assert tab.locator(".export-line").inner_text() == (
        'Export needs not_installed: in a checkout, run pip install ".[export]".'
    )
    tab.close()
    page.close()
