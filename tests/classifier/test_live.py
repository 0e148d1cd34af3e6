"""Cameras and streams: events at the time of the clock, no growing queue, errors in one line."""

import io
import os
import socket
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from strm_lightning.classifier import FewShotClassifier, live
from strm_lightning.classifier.live import LiveSource, NewestFrame, find_input
from strm_lightning.data.decode.video import VideoError
from tests.classifier.conftest import FPS, moving, write_video
from tests.classifier.test_events import long_video


def frames_of(source: str | Path | LiveSource, pause: float = 0.0) -> tuple[list[np.ndarray], list[float], int]:
    """Take frames with a pause after each, as a machine that needs so long for a frame."""
    images, times = [], []
    with NewestFrame(source) as reader:
        while (taken := reader.take()) is not None:
            images.append(taken[0])
            times.append(taken[1])
            time.sleep(pause)
    return images, times, reader.decoded


def test_a_file_is_played_at_its_own_pace(tmp_path: Path) -> None:
    images, times, decoded = frames_of(write_video(tmp_path / "a.mp4", moving("left", frames=20), 10))
    assert decoded == 20
    assert times[-1] - times[0] > 1.7  # 19 intervals of 0.1 s; a busy machine may be later, never earlier
    assert images[0].shape == (64, 64, 3)


def test_a_slow_machine_drops_frames_and_takes_the_newest(tmp_path: Path) -> None:
    images, times, decoded = frames_of(write_video(tmp_path / "a.mp4", moving("left", frames=30), 20), pause=0.3)
    assert decoded == 30
    assert len(images) < 15
    assert np.argmax(images[-1].max((0, 2))) < np.argmax(images[0].max((0, 2)))  # the square moves to the left
    assert times == sorted(times)


def mpegts(frames: np.ndarray) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=Fraction(25))
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 64, 64, "yuv420p", 1
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def serve(server: socket.socket, data: bytes, seconds: float) -> None:
    """Send a stream to the first client in the given time."""
    client, _ = server.accept()
    with client:
        for i in range(0, len(data), 1316):
            client.sendall(data[i : i + 1316])
            time.sleep(seconds * 1316 / len(data))


@pytest.mark.parametrize("seconds", [2.0, 0.0], ids=["at its pace", "faster than the machine"])
def test_a_local_stream(seconds: float) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        data = mpegts(moving("left", frames=50))
        sender = threading.Thread(target=serve, args=(server, data, seconds), daemon=True)
        sender.start()
        start = time.monotonic()
        images, _, decoded = frames_of(f"tcp://127.0.0.1:{server.getsockname()[1]}", pause=0.0 if seconds else 0.3)
        sender.join(timeout=10)
    assert decoded >= 45  # a decoder may wait for the frames at the end
    assert 1 <= len(images) <= decoded
    if seconds:
        assert time.monotonic() - start > seconds * 0.9
    else:  # the newest frame only: the stream is over long before a queue of its frames would be
        assert len(images) < 20


def test_a_source_with_one_reader_is_opened_once(fitted: FewShotClassifier) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # its address accepts one connection
        sender = threading.Thread(target=serve, args=(server, mpegts(moving("left", frames=50)), 0.0), daemon=True)
        sender.start()
        source = LiveSource(f"tcp://127.0.0.1:{server.getsockname()[1]}").check()
        server.close()
        _, _, decoded = frames_of(source)
    assert decoded >= 45


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_check_takes_nothing_from_a_pipe(tmp_path: Path) -> None:
    pipe, data = tmp_path / "pipe", mpegts(moving("left", frames=50))
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,), daemon=True)
    writer.start()
    source = LiveSource(pipe).check()
    _, _, decoded = frames_of(source)
    writer.join(timeout=10)
    assert decoded >= 45


def test_a_file_is_opened_again_after_its_check(tmp_path: Path) -> None:
    source = LiveSource(write_video(tmp_path / "a.mp4", moving("left", frames=5), 20)).check()
    assert not source.has_one_reader
    assert frames_of(source)[2] == 5


class Clock:
    """A reader whose frames arrive at given times, for a machine that takes only some of them."""

    def __init__(self, frames: np.ndarray, steps: list[int]) -> None:
        self.frames, self.steps, self.decoded = frames, iter(steps), 0

    def __enter__(self) -> "Clock":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def take(self) -> tuple[np.ndarray, float] | None:
        step = next(self.steps, None)
        if step is None:
            return None
        self.decoded = step + 1
        return self.frames[step], 100.0 + step / FPS + 0.01


def test_dropped_frames_do_not_move_events(fitted: FewShotClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    video, truth = long_video()
    video = np.concatenate([video, video])
    later = [(a + len(video) / 2 / FPS, b + len(video) / 2 / FPS, c) for a, b, c in truth]
    kept = [step for step in range(len(video)) if step % 4 != 1]
    monkeypatch.setattr(live, "NewestFrame", lambda source: Clock(video, kept))
    found = list(fitted.live("stream"))
    hits = [
        any(
            e.event.prediction.label == c and abs(e.event.start - a) < 0.8 and abs(e.event.end - b) < 0.8 for e in found
        )
        for a, b, c in later
    ]
    assert sum(hits) >= 4
    assert found[-1].dropped > 30
    assert all(e.frames_per_second > 0 and e.latency >= 0 for e in found)


def test_live_ends_its_reader(fitted: FewShotClassifier, tmp_path: Path) -> None:
    before = threading.active_count()
    events = fitted.live(write_video(tmp_path / "a.mp4", moving("left", frames=40), 20))
    assert isinstance(list(events), list)
    assert threading.active_count() == before


def test_missing_sources_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    with pytest.raises(VideoError, match=r"^camera 97: there is no /dev/video97; cameras: "):
        find_input(97)
    with pytest.raises(VideoError, match="cannot be opened"):
        frames_of(str(tmp_path / "none.mp4"))
    with pytest.raises(VideoError, match="cannot be opened"):
        frames_of("tcp://127.0.0.1:9")
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert (find_input(1).name, find_input(1).format) == ("1", "avfoundation")
