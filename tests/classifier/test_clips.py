"""Videos of every kind and length to clips."""

import tracemalloc
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from strm_lightning.classifier import clips
from strm_lightning.classifier.clips import ClipConfig, read_clip, windows
from strm_lightning.data.decode.video import VideoError, iter_frames
from tests.classifier.conftest import moving, write_video

HOW = ClipConfig(num_frames=4, image_size=8, short_side=8)


def numbered(frames: int, height: int = 8, width: int = 10) -> np.ndarray:
    """Frame i has level i everywhere."""
    return np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, height, width, 3)).copy()


def levels(clip: torch.Tensor) -> list[int]:
    return clip[:, 0, 0, 0].tolist()


def test_a_clip_spans_the_video() -> None:
    assert levels(read_clip(numbered(40), HOW)) == [5, 15, 25, 35]
    assert levels(read_clip(numbered(1), HOW)) == [0, 0, 0, 0]
    release = ClipConfig(4, 8, 8, frame_policy="release")
    assert levels(read_clip(numbered(40), release)) == [1, 13, 25, 38]


def test_windows_take_the_middles_of_equal_parts() -> None:
    found = list(windows(numbered(100), HOW, seconds=4.0, stride=2.0, fps=10.0))
    assert [(start, end) for start, end, _ in found] == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert levels(found[0][2]) == [5, 15, 25, 35]
    assert levels(found[1][2]) == [25, 35, 45, 55]


def test_the_end_of_a_video_is_not_lost_if_most_of_a_window_is_there() -> None:
    found = list(windows(numbered(70), HOW, seconds=4.0, stride=3.0, fps=10.0))
    assert [round(start) for start, _, _ in found] == [0, 3]
    assert levels(found[1][2]) == [35, 45, 55, 65]
    found = list(windows(numbered(62), HOW, seconds=4.0, stride=3.0, fps=10.0))
    assert found[1][:2] == (3, 6.1)
    assert levels(found[1][2]) == [35, 45, 55, 61]


def test_a_video_shorter_than_a_window_is_one_clip(tmp_path: Path) -> None:
    ((start, end, clip),) = windows(numbered(8), HOW, seconds=4.0, stride=2.0, fps=10.0)
    assert (start, end) == (0, 0.7)
    assert levels(clip) == [1, 3, 5, 7]
    path = write_video(tmp_path / "short.mp4", moving("up", frames=6))
    ((start, end, clip),) = windows(path, HOW, seconds=4.0, stride=2.0)
    assert (start, round(end, 2)) == (0, 0.5)
    torch.testing.assert_close(clip, read_clip(path, HOW))


def test_frames_fewer_than_needed_are_repeated() -> None:
    found = list(windows(numbered(10), HOW, seconds=4.0, stride=4.0, fps=0.5))
    assert levels(found[0][2]) == [1, 1, 2, 2]  # one frame every two seconds


def stamped(monkeypatch: pytest.MonkeyPatch, times: list[float]) -> None:
    """Let any file have frames with these time stamps."""
    frames = numbered(len(times))
    monkeypatch.setattr(clips, "iter_frames", lambda _: iter(list(zip(frames, times, strict=True))))


def test_windows_count_from_the_first_time_stamp(tmp_path: Path) -> None:
    """2.4 s that start after an hour, as in a recording that was cut out of a longer one."""
    video, path = moving("up", frames=60), tmp_path / "late.ts"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for number, image in enumerate(video):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = 3600 * 25 + number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert next(iter_frames(path))[1] > 3599
    expected = [(start, end) for start, end, _ in windows(video, HOW, seconds=1.0, stride=0.5, fps=25.0)]
    assert len(expected) == 4
    found = [(start, end) for start, end, _ in windows(path, HOW, seconds=1.0, stride=0.5)]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-3, rtol=0)


def test_a_gap_between_time_stamps_has_no_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    stamped(monkeypatch, [i / 10 for i in range(45)] + [3600 + i / 10 for i in range(45)])
    found = list(windows("gap.mp4", HOW, seconds=2.0, stride=2.0))
    assert [round(start) for start, _, _ in found] == [0, 2, 4, 3600, 3602]
    assert levels(found[2][2]) == [43, 44, 44, 44]  # the frames before the gap, not the first one after it
    assert levels(found[3][2])[0] == 48


def test_time_stamps_that_jump_back_lose_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    stamped(monkeypatch, [i / 10 for i in range(40)] * 2)
    found = list(windows("joined.mpg", HOW, seconds=2.0, stride=2.0))
    assert [round(start) for start, _, _ in found] == [0, 2, 4, 6]


def test_a_file_knows_its_own_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", moving("up", frames=60), fps=20)
    assert [(start, end) for start, end, _ in windows(path, HOW, seconds=1.0, stride=1.0)] == [(0, 1), (1, 2), (2, 3)]


def test_three_hours_in_constant_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((32, 32, 3), np.uint8)

    def stream(hours: float) -> Iterator[tuple[np.ndarray, float]]:
        return ((image, i / 5) for i in range(round(hours * 3600 * 5)))

    def peak(hours: float, seconds: float) -> tuple[int, int]:
        monkeypatch.setattr(clips, "iter_frames", lambda _: stream(hours))
        tracemalloc.start()
        count = sum(1 for _ in windows("long.mp4", HOW, seconds=seconds, stride=seconds / 2))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return count, top

    # The same number of windows, since old versions of the type checker keep something of each.
    short, long = peak(0.25, 60.0), peak(3, 720.0)
    assert (short[0], long[0]) == (29, 29)
    assert long[1] < 2 * short[1]  # of a stream twelve times as long


@pytest.mark.parametrize("lengths", [(0.0, 1.0), (1.0, 0.0), (-2.0, 1.0)])
def test_impossible_windows_are_refused(lengths: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="give positive numbers"):
        list(windows(numbered(10), HOW, seconds=lengths[0], stride=lengths[1]))


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    for name in ("empty.mp4", "none.mp4", "."):
        with pytest.raises(VideoError, match=str(tmp_path)):
            read_clip(tmp_path / name, HOW)
        with pytest.raises(VideoError, match=str(tmp_path)):
            list(windows(tmp_path / name, HOW, seconds=1.0, stride=1.0))
