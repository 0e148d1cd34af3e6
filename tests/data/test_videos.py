"""Frames come out by their number, whatever the container says; damage comes out as one clear line."""

import shutil
import struct
from pathlib import Path
from unittest.mock import Mock, PropertyMock

import av
import numpy as np
import pytest

from strm_lightning.data.decode import limits, upright
from strm_lightning.data.decode import video as videos
from strm_lightning.data.decode.video import (
    VideoError,
    count_frames,
    estimate_num_frames,
    iter_frames,
    read_chosen,
    read_frames,
)
from tests.data.clips import number_of, rotate, write_audio, write_video

KINDS = {
    "h264 short gop": ("a.mp4", {"gop": 4, "b_frames": 0}),
    "h264 long gop": ("a.mp4", {"gop": 250, "b_frames": 3}),
    "mpeg-4 avi": ("a.avi", {"codec": "mpeg4"}),
    "mpeg-4 avi, b-frames": ("a.avi", {"codec": "mpeg4", "b_frames": 2}),
    "vp8 webm": ("a.webm", {"codec": "libvpx"}),
    "vp9 webm": ("a.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
    "variable rate": ("a.mkv", {"times": [i * i // 4 + i for i in range(30)]}),
    "one frame": ("a.mp4", {"count": 1}),
    "five frames": ("a.mov", {"count": 5}),
    "odd size": ("a.mkv", {"codec": "mpeg4", "size": (66, 102)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_known_by_their_number(kind: str, tmp_path: Path) -> None:
    name, options = KINDS[kind]
    count = options.get("count", 30)
    path = write_video(tmp_path / name, **{"count": count, **options})
    assert count_frames(path) == count
    wanted = [*sorted({0, count // 3, count // 2, count - 1}), count - 1]
    frames = read_frames(path, wanted)
    assert frames.shape == (len(wanted), *options.get("size", (64, 96)), 3)
    assert [number_of(frame) for frame in frames.numpy()] == wanted
    assert [number_of(image) for image, _ in iter_frames(path)] == list(range(count))


def test_times_are_the_presentation_times(tmp_path: Path) -> None:
    times = [0, 3, 10, 50, 51, 90]
    path = write_video(tmp_path / "a.mkv", count=6, times=times)
    assert [seconds for _, seconds in iter_frames(path)] == pytest.approx([t / 100 for t in times], abs=0.002)


MATRICES = {
    "none": ((1, 0, 0, 1), lambda frames: frames),
    "clockwise": ((0, 1, -1, 0), lambda frames: np.rot90(frames, -1, axes=(1, 2))),
    "half": ((-1, 0, 0, -1), lambda frames: np.rot90(frames, 2, axes=(1, 2))),
    "counter-clockwise": ((0, -1, 1, 0), lambda frames: np.rot90(frames, 1, axes=(1, 2))),
    "mirrored": ((-1, 0, 0, 1), lambda frames: frames[:, :, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda frames: frames[:, ::-1]),
    "transposed": ((0, 1, 1, 0), lambda frames: frames.swapaxes(1, 2)),
    "transposed the other way": ((0, -1, -1, 0), lambda frames: frames[:, ::-1, ::-1].swapaxes(1, 2)),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_the_display_matrix_is_applied(kind: str, tmp_path: Path) -> None:
    """(x, y) is shown at (a x + c y, b x + d y), y down: (0, 1, -1, 0) sends what is right to below, clockwise."""
    matrix, shown = MATRICES[kind]
    path = write_video(tmp_path / "a.mp4", count=3)
    plain = read_frames(path, [0, 2]).numpy()
    np.testing.assert_array_equal(read_frames(rotate(path, matrix), [0, 2]).numpy(), shown(plain))


@pytest.mark.parametrize("kind", ["none", "clockwise", "half", "counter-clockwise"])
def test_turns_are_known_where_pyav_does_not_know_all_side_data(kind: str, tmp_path: Path) -> None:
    matrix, _ = MATRICES[kind]
    with av.open(str(rotate(write_video(tmp_path / "a.mp4", count=1), matrix))) as container:
        turned = next(container.decode(video=0)).rotation

    frame = Mock(spec=av.VideoFrame, rotation=turned)
    type(frame).side_data = PropertyMock(side_effect=ValueError("999 is not a valid Type"))
    assert upright._display_matrix(frame) == matrix


def test_videos_of_too_many_pixels_are_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", count=3, size=(64, 96))
    monkeypatch.setattr(limits, "MAX_PIXELS", 64 * 128)  # FFmpeg counts rows as aligned
    assert count_frames(path) == 3
    monkeypatch.setattr(limits, "MAX_PIXELS", 64 * 96 - 1)
    monkeypatch.setattr(videos, "_whole", lambda *_: pytest.fail("decoded"))
    for read in (
        count_frames,
        estimate_num_frames,
        lambda path: read_frames(path, [0]),
        lambda path: list(iter_frames(path)),
    ):
        with pytest.raises(VideoError, match=r"a\.mp4: has a frame of 96 x 64 pixels; at most"):
            read(path)


def test_frames_larger_than_the_header_says_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.avi", count=3, codec="mpeg4", size=(64, 96))
    data = path.read_bytes()
    start = data.index(b"strf") + 12  # BITMAPINFOHEADER: width and height
    assert struct.unpack_from("<2i", data, start) == (96, 64)
    path.write_bytes(data[:start] + struct.pack("<2i", 16, 16) + data[start + 8 :])
    assert read_frames(path, [0]).shape == (1, 64, 96, 3)
    monkeypatch.setattr(limits, "MAX_PIXELS", 1000)
    with pytest.raises(VideoError, match=r"a\.avi: "):
        read_frames(path, [0])


def test_reading_checks_what_is_asked_for(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", count=5)
    with pytest.raises(VideoError, match=r"a\.mp4: has 5 frames, frame number 5"):
        read_frames(path, [4, 5])
    for wrong in ([], [2, 1], [-1, 0]):
        with pytest.raises(ValueError, match="must ascend"):
            read_frames(path, wrong)


def cut(path: Path, share: float = 0.5) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def test_damaged_files_are_named_with_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    write_audio(tmp_path / "audio.mp4")
    write_video(tmp_path / "good.mp4", count=40)
    cut(shutil.copy(tmp_path / "good.mp4", tmp_path / "half.mp4"))
    reasons = {
        "empty.mp4": "is empty",
        "folder.mp4": "is a folder",
        "text.mp4": "cannot be decoded",
        "audio.mp4": "contains no video stream",
        "half.mp4": "cannot be decoded",
        "missing.mp4": "does not exist",
    }
    for name, reason in reasons.items():
        for read in (count_frames, lambda path: read_frames(path, [0]), lambda path: list(iter_frames(path))):
            with pytest.raises(VideoError, match=f"{name}: {reason}"):
                read(tmp_path / name)
    assert count_frames(tmp_path / "good.mp4") == 40


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.avi", {"codec": "mpeg4", "b_frames": 2}),
        ("a.webm", {"codec": "libvpx"}),
        ("a.mkv", {}),
        ("a.mp4", {"options": {"movflags": "faststart"}}),
    ],
)
def test_a_file_cut_off_in_the_middle_is_not_taken_for_a_shorter_one(name: str, options: dict, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, count=60, **options)
    assert count_frames(path) == 60
    with pytest.raises(VideoError, match=r"truncated, \d+ bytes are missing|cannot be decoded"):
        count_frames(cut(path, 0.6))


def test_a_wrong_length_in_the_header_alone_is_forgiven(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", count=10, codec="mpeg4")
    data = bytearray(path.read_bytes())
    data[4:8] = (len(data) + 1000).to_bytes(4, "little")
    path.write_bytes(data)
    assert count_frames(path) == 10


def test_a_video_of_too_many_frames_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strm_lightning.data.decode.limits.MAX_FRAMES", 5)
    path = write_video(tmp_path / "long.mp4", 6)
    with pytest.raises(VideoError, match="has more than 5 frames"):
        count_frames(path)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of all frames that are decoded."""
    numbers: list[int] = []
    whole = videos._whole

    def record(frames, path):
        for number, frame in enumerate(whole(frames, path)):
            numbers.append(number)
            yield frame

    monkeypatch.setattr(videos, "_whole", record)
    return numbers


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_frames_are_read_in_one_pass(kind: str, tmp_path: Path, decoded: list[int]) -> None:
    name, options = KINDS[kind]
    count = options.get("count", 30)
    path = write_video(tmp_path / name, **{"count": count, **options})
    asked: list[int] = []

    def choose(available: int) -> list[int]:
        asked.append(available)
        return [0, available // 2, available // 2]

    assert [number_of(frame) for frame in read_chosen(path, choose).numpy()] == [0, count // 2, count // 2]
    assert set(asked) == {count}
    # Matroska and webm do not store the number of frames, so they are decoded to the end.
    assert decoded == list(range(count if path.suffix in {".mkv", ".webm"} else count // 2 + 1))


def test_chosen_frames_are_read_again_if_frames_are_missing(tmp_path: Path, decoded: list[int]) -> None:
    path = write_video(tmp_path / "a.mp4", count=30, codec="mpeg4", gop=1)
    with av.open(str(path)) as container:
        place, size = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][10]
    data = bytearray(path.read_bytes())
    data[place : place + size] = b"\0\0\1\xb6\xd0" + bytes(size - 5)  # the header of a frame without content
    path.write_bytes(data)
    assert (estimate_num_frames(path), count_frames(path)) == (30, 29)
    decoded.clear()
    frames = read_chosen(path, lambda available: [available // 2, available - 1])
    assert decoded == [*range(29), *range(29)]
    assert np.array_equal(frames, read_frames(path, [14, 28]))
    decoded.clear()
    # The frames stay the same, so the second pass is not needed; the first one does not end at the wrong frame 20.
    assert np.array_equal(read_chosen(path, lambda _: [3, 20]), read_frames(path, [3, 20]))
    assert decoded[:29] == [*range(29)]


def test_a_wrong_number_of_packets_has_no_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mkv", count=30)
    for wrong in (1, 29, 31, 1000):
        monkeypatch.setattr(videos, "_packet_times", lambda _, n=wrong: ([*range(n)], False))
        frames = read_chosen(path, lambda available: [available // 2, available - 1])
        assert [number_of(frame) for frame in frames.numpy()] == [15, 29]
