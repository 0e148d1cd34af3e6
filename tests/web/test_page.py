"""The page from end to end, in headless Chromium with a fake camera."""

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from strm_lightning.classifier import FewShotClassifier
from strm_lightning.web import session as session_module
from tests.classifier.conftest import moving, write_video
from tests.web.conftest import SECONDS, browser_missing

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(browser_missing()), reason=browser_missing() or "-"),
    pytest.mark.filterwarnings("ignore"),  # gradio's and its server's own
]


def card(tab: Any, label: str) -> Any:
    return tab.locator(f'.card[data-label="{label}"]')


def count(tab: Any, label: str) -> int:
    return card(tab, label).locator(".example").count()


def says(tab: Any, text: str) -> None:
    tab.locator(".message").get_by_text(text).wait_for(timeout=SECONDS)


def start_fresh(tab: Any) -> None:
    tab.get_by_role("button", name="Start with your own actions").click()
    card(tab, "action 1").wait_for(timeout=SECONDS)


def give(tab: Any, label: str, *files: Path) -> None:
    with tab.expect_file_chooser() as chooser:
        card(tab, label).get_by_role("button", name=f"Upload examples of {label}").click()
    chooser.value.set_files([str(file) for file in files])


def fill(tab: Any, folder: Path) -> None:
    """Two clips of each of two actions."""
    start_fresh(tab)
    for number, motion in enumerate(("left", "up"), start=1):
        rename(tab, f"action {number}", motion)
        give(tab, motion, *(write_video(folder / f"{motion}_{i}.mp4", moving(motion, i)) for i in range(2)))
        says(tab, f"Added 2 examples to {motion}.")


def rename(tab: Any, label: str, name: str) -> None:
    tab.get_by_label(f"Name of {label}").fill(name)
    tab.get_by_label(f"Name of {label}").press("Enter")
    card(tab, name).wait_for(timeout=SECONDS)


def recognise(tab: Any, file: Path) -> None:
    with tab.expect_file_chooser() as chooser:
        tab.get_by_role("button", name="Recognise a video file").click()
    chooser.value.set_files(str(file))


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_the_built_in_examples_greet_with_pictures(tab: Any) -> None:
    assert [count(tab, label) for label in ("move left", "move right", "circle")] == [3, 3, 3]
    tab.wait_for_function("[...document.querySelectorAll('.player')].every(p => p.style.backgroundImage)")
    assert tab.locator(".bars li").count() == 3


def test_a_recording_is_added_and_not_mirrored(tab: Any, served: tuple[str, Any, Path]) -> None:
    start_fresh(tab)
    tab.get_by_label("Seconds of a clip").select_option("1")
    card(tab, "action 1").get_by_role("button", name="Record an example of action 1").click()
    says(tab, "Added recording to action 1.")
    card(tab, "action 1").get_by_role("button", name="Record an example of action 1").click()
    says(tab, "Added recording (2) to action 1.")
    assert count(tab, "action 1") == 2
    tab.wait_for_function("document.querySelector('.player').style.backgroundImage")
    style = tab.locator(".player").first.evaluate("node => node.style.backgroundImage")
    strip = pixels(style.removeprefix('url("').removesuffix('")')).astype(float)
    side = strip.shape[0]
    assert strip[:, : side // 2 - 4].mean() > strip[:, side // 2 + 4 : side].mean() + 60  # the bright half is left
    assert "matrix(-1" in tab.locator("video").evaluate("node => getComputedStyle(node).transform")


def test_live_answers_come_from_the_camera(tab: Any) -> None:
    tab.get_by_label("Seconds of a clip").select_option("1")
    tab.get_by_role("button", name="Turn on the camera").click()
    tab.wait_for_function("document.querySelector('.source').textContent.startsWith('live')", timeout=SECONDS)
    widths = tab.locator(".bars .fill").evaluate_all("nodes => nodes.map(node => parseFloat(node.style.width))")
    assert sum(widths) == pytest.approx(100, abs=0.3)
    assert tab.locator(".answer").inner_text() in ("move left", "move right", "circle")
    tab.locator(".threshold").fill("0.99")
    tab.wait_for_function("document.querySelector('.answer').textContent == 'unknown'", timeout=SECONDS)
    tab.get_by_role("button", name="Explain the last seconds").click()
    tab.locator(".why-sentences li").first.wait_for(timeout=SECONDS)
    tab.get_by_role("button", name="Turn off the camera").click()
    assert tab.locator("video").evaluate("node => node.srcObject") is None


def test_upload_recognise_and_explain(tab: Any, tmp_path: Path, served: tuple[str, Any, Path]) -> None:
    fill(tab, tmp_path)
    recognise(tab, write_video(tmp_path / "query.mp4", moving("up", 9)))
    tab.locator(".answer").get_by_text("up", exact=True).wait_for(timeout=SECONDS)
    picture = tab.locator(".why-picture")
    picture.wait_for(timeout=SECONDS)
    sentences = tab.locator(".why-sentences").inner_text()
    assert "up, probability" in sentences
    assert "What changes at each place" in sentences  # the matching `patches`
    assert picture.get_attribute("alt")
    width = pixels(picture.get_attribute("src")).shape[1]
    assert width == pytest.approx(2 * picture.evaluate("node => node.clientWidth"), rel=0.02)  # sharp, not scaled down
    assert not list(served[2].rglob("*.mp4"))  # deleted after encoding


def test_classes_and_examples_are_renamed_and_removed_without_a_limit(tab: Any, tmp_path: Path) -> None:
    fill(tab, tmp_path)
    rename(tab, "up", "upwards")
    assert count(tab, "upwards") == 2
    tab.get_by_label("Name of upwards").fill("left")
    tab.get_by_label("Name of upwards").press("Enter")
    says(tab, "Two actions are named 'left'")
    tab.get_by_label("Name of upwards").fill("unknown")
    tab.get_by_label("Name of upwards").press("Enter")
    says(tab, "rename the class")
    tab.get_by_role("button", name="Remove up_0.mp4 from upwards").click()
    tab.wait_for_function("document.querySelectorAll('.card[data-label=upwards] .example').length == 1")
    for number in range(3, 12):
        tab.get_by_role("button", name="Add an action").click()
        tab.locator(".card").nth(number - 1).wait_for(timeout=SECONDS)
    tab.get_by_role("button", name="Delete upwards and its examples").click()
    tab.wait_for_function("document.querySelectorAll('.card').length == 10")
    assert tab.locator(".need").is_visible()


def test_examples_are_encoded_once_and_kept(tab: Any, tmp_path: Path, count_encoded: Any) -> None:
    fill(tab, tmp_path)
    for seed in (8, 9):
        recognise(tab, write_video(tmp_path / f"query_{seed}.mp4", moving("up", seed)))
        tab.locator(".source").get_by_text(f"query_{seed}.mp4").wait_for(timeout=SECONDS)
    assert count_encoded() == 4 + 2


def test_an_example_plays_by_keyboard(tab: Any) -> None:
    player = tab.get_by_role("button", name="Play slide_left 1 of move left")
    player.focus()
    player.press("Enter")
    playing = tab.get_by_role("button", name="Stop slide_left 1 of move left")
    assert playing.get_attribute("aria-pressed") == "true"
    assert playing.evaluate("node => getComputedStyle(node).animationName") == "studio-play"


def test_saved_examples_are_loaded_by_the_page_and_by_the_classifier(
    tab: Any, tmp_path: Path, plain: FewShotClassifier
) -> None:
    fill(tab, tmp_path)
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Save examples").click()
    file = tmp_path / "actions.safetensors"
    download.value.save_as(file)
    with safe_open(file, "pt") as stored:
        assert "left_0.mp4" in stored.metadata()["clips"]
    loaded = session_module.empty_copy(plain).load(file)
    assert list(loaded.classes_) == ["left", "up"]
    tab.get_by_role("button", name="Start afresh").click()
    card(tab, "action 1").wait_for(timeout=SECONDS)
    with tab.expect_file_chooser() as chooser:
        tab.get_by_role("button", name="Load examples", exact=True).click()
    chooser.value.set_files(str(file))
    says(tab, "Loaded actions.safetensors.")
    assert [count(tab, label) for label in ("left", "up")] == [2, 2]


def test_files_that_are_no_videos_or_too_large_are_refused(tab: Any, tmp_path: Path) -> None:
    start_fresh(tab)
    (tmp_path / "large.mp4").write_bytes(b"0" * 2_500_000)
    (tmp_path / "playlist.mp4").write_bytes(b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n")
    (tmp_path / "notes.txt").write_bytes(b"text")
    broken = write_video(tmp_path / "broken.mp4", moving("up"))
    broken.write_bytes(broken.read_bytes()[:300])
    good = write_video(tmp_path / "good.mp4", moving("up"))
    give(tab, "action 1", *(tmp_path / name for name in ("large.mp4", "playlist.mp4", "notes.txt", "broken.mp4")), good)
    says(tab, "Added 1 example to action 1.")
    message = tab.locator(".message").inner_text()
    for reason in (
        "large.mp4 is larger than 2 MB",
        "Playlist.mp4: is no video",
        "notes.txt is not accepted",
        "Broken.mp4",
    ):
        assert reason in message
    assert "/" not in message


def test_two_pages_have_sessions_of_their_own(browser: Any, address: str, tab: Any, served: tuple) -> None:
    other = browser.new_page()
    other.goto(address)
    other.locator(".card").first.wait_for(timeout=SECONDS)
    sessions = len(served[1].names())
    start_fresh(tab)
    assert [other.locator(".card").count(), tab.locator(".card").count()] == [3, 2]
    other.close()
    for _ in range(200):
        if len(served[1].names()) < sessions:
            break
        tab.wait_for_timeout(100)
    assert len(served[1].names()) == sessions - 1  # its examples are deleted with it


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_it_fits_the_window(browser: Any, address: str, width: int, theme: str) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 850})
    tab.goto(f"{address}?__theme={theme}")
    tab.locator(".card").first.wait_for(timeout=SECONDS)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    unnamed = tab.evaluate(
        """() => [...document.querySelectorAll('.studio button, .studio input, .studio select, .studio video')]
            .filter(n => !(n.getAttribute('aria-label') || n.textContent.trim() || n.labels?.length)).length"""
    )
    assert unnamed == 0
    tab.close()


def test_the_examples_are_checked(tab: Any, tmp_path: Path) -> None:
    fill(tab, tmp_path)
    rename(tab, "up", "<b>up</b>")
    wrong = write_video(tmp_path / "wrong.mp4", moving("left", 7))
    give(tab, "<b>up</b>", wrong)
    says(tab, "Added 1 example to <b>up</b>.")
    tab.get_by_role("button", name="Check the examples").click()
    tab.locator("#check table").wait_for(timeout=SECONDS)
    assert "wrong.mp4 of <b>up</b> looks like left" in tab.locator("#check").inner_text()
    rows = tab.locator("#check tbody tr").all_inner_texts()
    assert [row.split("\t") for row in rows] == [["<b>up</b>", "2 of 3", "left 1"], ["left", "2 of 2", ""]]


def test_actions_of_a_long_video_are_on_a_time_line(tab: Any, tmp_path: Path, served: tuple[str, Any, Path]) -> None:
    fill(tab, tmp_path)
    rest = np.repeat(moving("left", 5)[:1], 30, axis=0)
    film = np.concatenate([rest, moving("left", 5), rest, moving("up", 5), rest])
    video = write_video(tmp_path / "long.mp4", film)
    tab.get_by_role("tab", name="Long video").click()
    tab.locator("input[type=file][data-testid=file-upload]").last.set_input_files(str(video))
    tab.locator("a[href*='long.mp4']").wait_for(timeout=SECONDS)  # uploaded
    tab.get_by_role("button", name="Find the actions").click()
    tab.locator("#events tbody").wait_for(timeout=SECONDS)
    rows = [row.split("\t")[1] for row in tab.locator("#events tbody tr").all_inner_texts()]
    assert rows == ["left", "up"]
    places = tab.locator("#events .timeline span").evaluate_all("nodes => nodes.map(n => parseFloat(n.style.left))")
    assert places[0] == pytest.approx(100 * 3 / 11.4, abs=8)
    assert places[1] == pytest.approx(100 * 7.2 / 11.4, abs=8)
    assert not list(served[2].rglob("*.mp4"))
