"""Readers fed with damage: an error that names the file, or the right frames; no crash, no hang, no wrong frame."""

import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from strm_lightning.data.checks.doctor import doctor
from strm_lightning.data.decode.image import decode_image
from strm_lightning.data.decode.video import (
    VideoError,
    count_frames,
    estimate_num_frames,
    iter_frames,
    read_chosen,
    read_frames,
    visit_frames,
)
from strm_lightning.data.prepare import prepare
from strm_lightning.data.sampling import select_frames
from strm_lightning.data.splits.lists import read_lists
from strm_lightning.data.video_sets import open_store
from tests.data.clips import number_of, numbered_frame, write_audio, write_frames, write_video, zip_folder

KINDS = {
    "a.mp4": {"gop": 12, "b_frames": 2},
    "a.avi": {"codec": "mpeg4", "b_frames": 2},
    "a.webm": {"codec": "libvpx"},
    "a.mkv": {"gop": 5},
}


def outcome(read: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a reader gives, or the line that it refuses with; anything else that it raises is a fault."""
    try:
        return read(), None
    except ValueError as error:
        return None, str(error)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, blank or repeat a stretch, anywhere or in the headers."""
    spoilt = bytearray(data)
    reach = rng.choice([len(data), 200, 2000])
    for _ in range(rng.choice([1, 3, 30])):
        place = rng.randrange(min(reach, len(data)))
        spoilt[place] ^= 1 << rng.randrange(8)
    start, length = rng.randrange(len(data)), rng.randrange(400)
    kind = rng.randrange(4)
    if kind == 0:
        del spoilt[start:]
    elif kind == 1:
        spoilt[start : start + length] = bytes(len(spoilt[start : start + length]))
    elif kind == 2:
        spoilt[start:start] = spoilt[start : start + length]
    return bytes(spoilt)


def middles(available: int) -> list[int]:
    return select_frames("segments", available, 8, None)


def numbers(frames: Any) -> list[int]:
    return [number_of(frame) for frame in frames.numpy()]


@pytest.mark.parametrize("name", KINDS)
def test_damaged_videos_are_refused_or_read_alike_by_all(name: str, tmp_path: Path) -> None:
    """What count_frames promises, read_frames and iter_frames keep."""
    good = write_video(tmp_path / name, 30, **KINDS[name]).read_bytes()
    path = tmp_path / f"bad-{name}"
    outcomes = {"refused": 0, "read": 0}
    for seed in range(60):
        path.write_bytes(damaged(good, random.Random(f"{name}/{seed}")))
        count, refusal = outcome(lambda: count_frames(path))
        assert (count, refusal) == outcome(lambda: visit_frames(path, (), lambda *_: None))  # with all filters
        outcomes["refused" if refusal else "read"] += 1
        chosen, chosen_refusal = outcome(lambda: read_chosen(path, middles))
        if refusal:
            assert str(path) in refusal
            # Decoding may end before the damage, at a frame that is known to be the right one.
            assert str(path) in chosen_refusal if chosen_refusal else numbers(chosen) == middles(30)
        else:
            frames = read_frames(path, range(count))
            assert len(frames) == count == sum(1 for _ in iter_frames(path))
            again = read_frames(path, [count - 1])
            assert np.array_equal(frames[-1], again[0])
            assert np.array_equal(chosen, read_frames(path, middles(count)))
            if count == 30 and name != "a.webm":  # VP8 has no checksum, so the decoder cannot notice it
                assert numbers(frames) == list(range(30))
    assert outcomes["refused"] > 5


@pytest.mark.parametrize("name", KINDS)
def test_a_video_cut_anywhere_never_passes_for_whole(name: str, tmp_path: Path) -> None:
    good = write_video(tmp_path / name, 30, **KINDS[name]).read_bytes()
    path = tmp_path / f"cut-{name}"
    for length in range(0, len(good) - 64, len(good) // 23):
        path.write_bytes(good[:length])
        count, refusal = outcome(lambda: count_frames(path))
        if refusal is None:
            assert count == 30, f"{name} cut to {length} of {len(good)} bytes"
            assert numbers(read_frames(path, range(30))) == list(range(30))
        chosen, chosen_refusal = outcome(lambda: read_chosen(path, middles))
        assert (chosen_refusal is None) == (refusal is None)
        assert chosen_refusal or numbers(chosen) == middles(30)


def test_what_is_no_video_is_refused_by_every_reader(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    write_audio(tmp_path / "sound.mp4")
    (tmp_path / "noise.mp4").write_bytes(random.Random(0).randbytes(5000))
    (tmp_path / "list.avi").write_text("a/b\n" * 200)
    for path in sorted(tmp_path.iterdir()):
        for read in (
            count_frames,
            estimate_num_frames,
            lambda p: read_chosen(p, lambda _: [0, 1]),
            lambda p: read_frames(p, [0, 1]),
            lambda p: list(iter_frames(p)),
        ):
            with pytest.raises(VideoError, match=path.name):
                read(path)


def test_videos_under_a_wrong_name_are_read_for_what_they_are(tmp_path: Path) -> None:
    shutil.move(write_video(tmp_path / "a.webm", 10, codec="libvpx"), tmp_path / "a.mp4")
    assert count_frames(tmp_path / "a.mp4") == 10


def test_damaged_images_are_refused_or_decoded(tmp_path: Path) -> None:
    for suffix in ("jpeg", "png"):
        buffer = io.BytesIO()
        Image.fromarray(numbered_frame(5)).save(buffer, suffix)
        refused = 0
        for seed in range(150):
            data = damaged(buffer.getvalue(), random.Random(seed))
            image, refusal = outcome(lambda data=data: decode_image(data, "place"))
            assert refusal.startswith("place: cannot be decoded") if refusal else image.ndim == 3
            refused += refusal is not None
        assert refused > 20


def test_damaged_zips_and_caches_never_give_wrong_frames(tmp_path: Path) -> None:
    for video in ("v", "w"):
        write_frames(tmp_path / "frames" / "a" / video, 6)
    archive = zip_folder(tmp_path / "frames", tmp_path / "good.zip")
    prepare(str(tmp_path / "frames"), str(tmp_path / "cache"), format="keep")
    expected = open_store(archive).read(0, range(6))
    clip = tmp_path / "cache" / "a" / "v.clip"
    for target, root in ((tmp_path / "bad.zip", tmp_path / "bad.zip"), (clip, tmp_path / "cache")):
        data = (archive if root == target else clip).read_bytes()
        refused = 0
        for seed in range(60):
            target.write_bytes(damaged(data, random.Random(f"zip/{seed}")))
            frames, refusal = outcome(lambda root=root: frames_of_v(root))
            assert str(root) in refusal if refusal else np.array_equal(frames, expected)
            refused += refusal is not None
        assert refused > 20


def frames_of_v(root: Path) -> np.ndarray:
    store = open_store(root, unreadable="refuse")
    if "a/v" not in store.videos:
        raise ValueError(f"{root} has no video of that name any more")
    row = store.videos.index("a/v")
    return store.read(row, range(int(store.frame_counts[row]))).numpy()


def test_damaged_lists_are_refused_or_read(tmp_path: Path) -> None:
    good = "".join(f"class {i % 7}/video_{i}\r\n" for i in range(60)).encode()
    for seed in range(150):
        (tmp_path / "trainlist01.txt").write_bytes(damaged(good, random.Random(seed)))
        lists, refusal = outcome(lambda: read_lists(tmp_path))
        assert "trainlist01.txt" in refusal if refusal else all(c and v and "/" not in v for c, v in lists["train"])


def test_the_doctor_and_the_cache_name_every_case(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for clip in range(3):
        write_video(root / "a" / f"good{clip}.mp4", 5)
    data = (root / "a" / "good0.mp4").read_bytes()
    (root / "a" / "empty.mp4").touch()
    (root / "a" / "folder.mp4").mkdir()
    (root / "a" / "cut.mp4").write_bytes(data[: len(data) // 2])
    (root / "a" / "noise.avi").write_bytes(random.Random(0).randbytes(3000))
    (root / "a" / "link.mkv").symlink_to(root / "nowhere")
    write_audio(root / "a" / "sound.mp4")
    (tmp_path / "trainlist01.txt").write_bytes(
        "\ufeffa/good0\r\n\r\na/good0\r\na/good1\r\n../../etc/passwd\r\nb/none\r\na/empty\r\n".encode()
    )
    cases = {f"a/{name}" for name in ("empty", "folder", "cut", "noise", "link", "sound")}
    shape = {"way": 1, "shot": 1, "query_per_class": 1}
    assert set(doctor(str(root), {"train": ["a"]}, **shape).unreadable) == cases
    assert set(prepare(str(root), str(tmp_path / "cache"), short_side=32).failed) == cases
    listed = doctor(str(root), str(tmp_path), **shape)
    assert listed.missing["train"] == ["../passwd", "b/none"]
    assert set(listed.unreadable) == {"a/empty"}
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"a", "strm-cache.json", ".lock"}
