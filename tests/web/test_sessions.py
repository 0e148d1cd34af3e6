"""Sessions and their memory, uploaded files, and frames of the camera."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from strm_lightning.classifier import FewShotClassifier
from strm_lightning.data.decode.image import encode_jpeg
from strm_lightning.errors import InputError
from strm_lightning.web.camera_frames import decode_frames
from strm_lightning.web.session_store import SessionStore
from strm_lightning.web.upload_folder import upload_folder, uploaded
from tests.classifier.conftest import moving, write_video


def test_sessions_are_apart(store: SessionStore) -> None:
    one, two = store.open("one"), store.open("two")
    one.remove_class("left")
    one.rename_class("right", "to the right")
    one.add_example("to the right", moving("right", 3), "recording")
    assert one.labels == ["to the right"]
    assert two.labels == ["left", "right"]
    assert [len(two.clips(label)) for label in two.labels] == [1, 1]
    assert store.open("three").labels == ["left", "right"]
    store.drop("one")
    with pytest.raises(InputError, match="reload"):
        store.of("one")


def test_examples_count_until_their_page_is_closed(store: SessionStore) -> None:
    session = store.open("one")
    before = store.room()
    clip = session.add_example("left", moving("left", 5), "recording")
    size = sum(t.numel() * t.element_size() for t in (*clip.features.values(), clip.thumbnail))
    assert before - store.room() == size > 10_000
    store.max_bytes -= store.room()
    with pytest.raises(InputError, match="limit of --max_total_mb"):
        store.check_room()
    store.drop("one")
    store.check_room()


def test_names_of_examples_are_unique(store: SessionStore) -> None:
    session = store.open("one")
    names = [session.add_example("left", moving("left", seed), "recording").name for seed in range(3)]
    assert names == ["recording", "recording (2)", "recording (3)"]
    session.remove_example("left", "recording (2)")
    assert session.add_example("left", moving("left", 7), "recording").name == "recording (2)"


def test_predictions_are_those_of_the_classifier(store: SessionStore, plain: FewShotClassifier) -> None:
    session = store.open("one")
    direct = FewShotClassifier(plain.model, plain.preprocessing)
    direct.fit({motion: [moving(motion, 0)] for motion in ("left", "right")})
    query = moving("right", 4)
    assert session.predict(query).probabilities == pytest.approx(direct.predict(query).probabilities)
    session.rename_class("left", "z")  # sorted after `right`
    renamed = session.predict(query).probabilities
    assert renamed["right"] == pytest.approx(direct.predict(query).probabilities["right"])


def test_a_threshold_that_cannot_be_fitted_leaves_the_old_one(store: SessionStore) -> None:
    session = store.open("one")
    session.set_threshold(0.25)
    with pytest.raises(InputError, match="2 clips or more"):
        session.set_threshold("fit")
    assert session.classifier.threshold == 0.25


def test_saved_sessions_are_loaded_with_threshold(store: SessionStore, tmp_path: Path) -> None:
    session = store.open("one")
    session.set_threshold(0.4)
    file = tmp_path / "download" / "a.safetensors"
    session.save(file)
    other = store.open("two")
    other.replace_all({"x": ()})
    other.load(file)
    assert other.labels == ["left", "right"]
    assert other.classifier.threshold == 0.4
    assert other.predict(moving("left", 2)).probabilities == pytest.approx(
        session.predict(moving("left", 2)).probabilities
    )
    store.drop("one")
    assert not file.parent.exists()


def test_only_uploaded_videos_are_read_and_then_deleted(tmp_path: Path) -> None:
    outside = write_video(tmp_path / "outside.mp4", moving("up"))
    with upload_folder() as folder:
        with pytest.raises(InputError, match="was not uploaded"), uploaded(outside):
            pass
        with pytest.raises(InputError, match="was not uploaded"), uploaded(folder / "x" / ".." / ".." / "y.mp4"):
            pass
        inside = write_video(folder / "hash" / "a.mp4", moving("up"))
        with uploaded(inside) as path:
            assert path.is_file()
        assert not inside.parent.exists()
        for name, content in (("list.mp4", b"#EXTM3U\n"), ("list.txt", b"text"), ("sdp.avi", b"v=0\nc=IN IP4 1.2.3.4")):
            (folder / name).write_bytes(content)
            with pytest.raises(InputError, match=r"is no video|is not accepted"), uploaded(folder / name):
                pass
            assert not (folder / name).exists()
    assert outside.exists()


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov", ".webm", ".mpg", ".m4v", ".mpeg"])
def test_every_video_format_is_accepted(suffix: str, tmp_path: Path) -> None:
    import av

    with upload_folder() as folder:
        path = folder / f"a{suffix}"
        codec = {".webm": "libvpx", ".mpg": "mpeg2video", ".mpeg": "mpeg1video"}.get(suffix, "mpeg4")
        kind = {".mpg": "mpegts"}.get(suffix)
        with av.open(str(path), "w", format=kind) as container:
            stream = container.add_stream(codec, rate=25)
            stream.height = stream.width = 64
            stream.pix_fmt = "yuv420p"
            for image in moving("up"):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
        with uploaded(path) as found:
            assert found == path.resolve()


def test_frames_of_the_camera_are_decoded_and_checked() -> None:
    def url(image: np.ndarray) -> str:
        return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(image, 90)).decode()

    frames = moving("left", frames=4, height=48)
    found = decode_frames([url(frame) for frame in frames], 4)
    assert found.shape == (4, 48, 64, 3)
    assert np.abs(found.astype(int) - frames).mean() < 12
    good = [url(frame) for frame in frames]
    for wrong in (
        good[:3],
        None,
        [*good[:3], "data:image/png;base64,AAAA"],
        [*good[:3], "data:image/jpeg;base64,!!"],
        [*good[:3], "data:image/jpeg;base64,AAAA"],
        [*good[:3], url(frames[0][:32])],
        [url(np.zeros((1600, 1600, 3), np.uint8))] * 4,
    ):
        with pytest.raises(InputError):
            decode_frames(wrong, 4)


def test_folders_of_killed_servers_are_deleted_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = """
from strm_lightning.web.upload_folder import upload_folder
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
            assert (folder / "private.mp4").exists()  # its server runs
        server.kill()
    assert (folder / "private.mp4").exists()
    with upload_folder() as own:
        assert list(tmp_path.glob("strm-demo-*")) == [own]
    assert not list(tmp_path.glob("strm-demo-*"))
