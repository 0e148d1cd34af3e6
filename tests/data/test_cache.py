"""The frame cache: the source's pixels bit for bit, what it refuses, and the files after a killed process."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from strm_lightning.data.cache import writer as convert
from strm_lightning.data.cache.clipfile import ClipFile, ClipWriter
from strm_lightning.data.cache.store import MANIFEST
from strm_lightning.data.decode.video import VideoError
from strm_lightning.data.prepare import prepare
from strm_lightning.data.sampling import reachable_frames, select_frames
from strm_lightning.data.transforms import ClipTransform, resize_short_side
from strm_lightning.data.video_sets import DataWarning, load_video_sets, open_store
from tests.data.clips import number_of, write_frames, write_video, zip_folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of two classes: some must be resized to a short side of 48, one stands upright, one is short."""
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "a" / "wide.mp4", 40, size=(64, 96), b_frames=2)
    write_video(root / "a" / "fits.avi", 30, codec="mpeg4", size=(48, 70), b_frames=2)
    write_video(root / "b" / "tall.webm", 25, codec="libvpx", size=(96, 64))
    write_video(root / "b" / "short.mkv", 3, size=(32, 48))
    return root


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frames")
    for name, count, size in (("a/v", 30, (64, 96)), ("a/w", 20, (48, 64)), ("b/x", 5, (80, 60))):
        write_frames(root / name, count, size=size)
    return root


@pytest.mark.parametrize("policy", ["release", "segments"])
def test_raw_caches_equal_their_source_bit_for_bit(source: Path, policy: str, tmp_path: Path) -> None:
    report = prepare(str(source), str(tmp_path / "cache"), short_side=48, policies=[policy], jobs=2)
    assert (report.written, report.present, report.failed) == (4, 0, {})
    assert report.size == sum(path.stat().st_size for path in tmp_path.rglob("*.clip"))
    videos, cache = open_store(source), open_store(tmp_path / "cache")
    assert cache.videos == videos.videos
    np.testing.assert_array_equal(cache.frame_counts, videos.frame_counts)
    transform = ClipTransform(40, short_side=48)
    cache.check_supports(policy, 8, 48)
    for row in range(4):
        for seed in (None, *range(10)):
            available = int(videos.frame_counts[row])
            chosen = select_frames(policy, available, 8, None if seed is None else random.Random(seed))
            clips = [
                transform(store.read(row, chosen), None if seed is None else random.Random(seed))
                for store in (videos, cache)
            ]
            assert torch.equal(*clips)
    kept = sum(len(reachable_frames(policy, int(n), 8)) for n in videos.frame_counts)
    assert sum(ClipFile(path).kept for path in tmp_path.rglob("*.clip")) == kept


@pytest.mark.parametrize("zipped", [False, True])
def test_kept_images_are_the_users_own_bytes(frames: Path, zipped: bool, tmp_path: Path) -> None:
    root = zip_folder(frames, tmp_path / "frames.zip") if zipped else frames
    prepare(str(root), str(tmp_path / "cache"), format="keep", policies=["release"])
    source, cache = open_store(root), open_store(tmp_path / "cache")
    for row, count in enumerate(source.frame_counts.tolist()):
        kept = reachable_frames("release", count, 8)
        assert [data for _, data in cache.encoded(row, kept)] == [data for _, data in source.encoded(row, kept)]
        assert torch.equal(cache.read(row, kept), source.read(row, kept))


def test_jpeg_caches_come_close(source: Path, tmp_path: Path) -> None:
    prepare(str(source), str(tmp_path / "cache"), format="jpeg", short_side=48, quality=95)
    videos, cache = open_store(source), open_store(tmp_path / "cache")
    for row in range(4):
        numbers = range(int(videos.frame_counts[row]))
        exact, jpeg = resize_short_side(videos.read(row, numbers), 48), cache.read(row, numbers)
        assert exact.shape == jpeg.shape
        assert [number_of(f) for f in jpeg.numpy()] == list(numbers)
        assert (exact.float() - jpeg.float()).abs().mean() < 6
    raw = prepare(str(source), str(tmp_path / "raw"), short_side=48)
    assert sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*.clip")) < raw.size / 2


def test_a_cache_serves_a_split_like_its_source(source: Path, tmp_path: Path) -> None:
    prepare(str(source), str(tmp_path / "cache"), short_side=48)
    split = {"train": ["a"], "test": ["b"]}
    for stage, videos in load_video_sets(source, split).items():
        cached = load_video_sets(tmp_path / "cache", split)[stage]
        assert (cached.class_names, cached.store.videos) == (videos.class_names, videos.store.videos)
        np.testing.assert_array_equal(cached.labels, videos.labels)


def test_frames_that_were_not_kept_are_refused_early_and_late(source: Path, tmp_path: Path) -> None:
    prepare(str(source), str(tmp_path / "cache"), short_side=48, policies=["release"], num_frames=4)
    store = open_store(tmp_path / "cache")
    store.check_supports("release", 4, 48)
    for policy, num_frames in (("segments", 4), ("release", 8)):
        with pytest.raises(ValueError, match=f"has the frames of release with 4 frames a clip; {policy}"):
            store.check_supports(policy, num_frames, 48)
    with pytest.raises(ValueError, match=r"has frames of short side 48; 49 is needed: lower data\.image_size"):
        store.check_supports("release", 4, 49)
    with pytest.raises(VideoError, match=r"wide\.clip: does not contain frame 8"):
        store.read(store.videos.index("a/wide"), [0, 8])


def test_a_second_run_does_nothing_and_a_changed_split_adds(source: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "cache")
    assert prepare(str(source), out, short_side=48, split={"train": ["a"]}).written == 2
    second = prepare(str(source), out, short_side=48, split={"test": ["b"]})
    assert (second.written, second.present) == (2, 0)
    assert len(open_store(out).videos) == 4
    third = prepare(str(source), out, short_side=48)
    assert (third.written, third.present) == (0, 4)


def test_damaged_videos_are_reported_and_tried_again(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "videos"
    write_video(root / "a" / "good.mp4", 5)
    (root / "a" / "bad.mp4").write_bytes(b"\0" * 500)
    report = prepare(str(root), str(tmp_path / "cache"), short_side=48)
    assert set(report.failed) == {"a/bad"}
    assert "1 video could not be read:\n  a/bad: " in str(report)
    assert open_store(tmp_path / "cache").videos == ["a/good"]
    write_video(root / "a" / "bad.mp4", 6)
    assert prepare(str(root), str(tmp_path / "cache"), short_side=48).written == 1
    (root / "a" / "bad.mp4").write_bytes(b"\0" * 500)
    (root / "a" / "good.mp4").write_bytes(b"\0" * 500)
    with pytest.raises(ValueError, match=r"none of 2 videos under .* can be read"):
        prepare(str(root), str(tmp_path / "other"))


def test_a_wrong_guess_at_the_length_is_made_good(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(str(source), str(tmp_path / "a"), short_side=48, policies=["release"])
    for wrong in (lambda path: 3, lambda path: 1000):
        monkeypatch.setattr(convert, "estimate_num_frames", wrong)
        out = tmp_path / f"b{wrong(0)}"
        prepare(str(source), str(out), short_side=48, policies=["release"])
        for path in (tmp_path / "a").rglob("*.clip"):
            assert (out / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes()


def test_places_and_options_that_do_not_fit_are_refused(source: Path, frames: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "cache")
    prepare(str(source), out, short_side=48)
    refused = [
        (str(source), out, {"short_side": 32}, r"has other options \(short_side=48, not 32\): choose"),
        (str(source), out, {"short_side": 48, "jobs": 0}, "jobs is 0"),
        (str(source), "/proc/none", {}, "/proc/none cannot be written"),
        (out, str(tmp_path / "b"), {}, "is already a frame cache"),
        (str(source), str(source / "cache"), {}, "inside its source"),
        (str(source), str(tmp_path / "b"), {"format": "keep"}, "contains video files"),
        (str(frames), str(source), {}, "exists and is not a frame cache: choose another folder"),
        (str(frames), str(tmp_path / "b"), {"quality": 0}, "quality is 0: give a number from 1 to 100"),
        (str(frames), str(tmp_path / "b"), {"split": {"train": ["z"]}}, "unknown classes: 'z'"),
    ]
    for root, target, options, message in refused:
        with pytest.raises(ValueError, match=message):
            prepare(root, target, **options)
    with FileLock(tmp_path / "cache" / ".lock"), pytest.raises(ValueError, match="another `strm prepare` is writing"):
        prepare(str(source), out, short_side=48)


def test_a_disk_too_small_is_told_before_the_start(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    prepare(str(source), str(tmp_path / "a"), short_side=48)
    foretold = capsys.readouterr().err
    size = sum(path.stat().st_size for path in (tmp_path / "a").rglob("*.clip"))
    assert f"4 videos to prepare will take about {size / 1e6:.1f} MB" in foretold
    monkeypatch.setattr("shutil.disk_usage", lambda path: os.statvfs_result((0,) * 10) and _Usage(100, 99, 1))
    with pytest.raises(ValueError, match="use format jpeg, policy release or a split"):
        prepare(str(source), str(tmp_path / "b"), short_side=48)


def test_a_disk_that_fills_up_is_told_in_a_line_and_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, finished = ClipWriter.finish, []

    def finish(self: ClipWriter, *, source_frames: int) -> int:
        if len(finished) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finished.append(self)
        return real(self, source_frames=source_frames)

    monkeypatch.setattr(ClipWriter, "finish", finish)
    with pytest.raises(ValueError, match=r"cache cannot be written \(No space left on device\)"):
        prepare(str(source), str(tmp_path / "cache"), short_side=48, jobs=1)
    monkeypatch.undo()
    report = prepare(str(source), str(tmp_path / "cache"), short_side=48)
    assert (report.present, report.written) == (2, 2)


def test_what_a_split_lacks_and_where_clips_are_from_is_said(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "trainlist01.txt").write_text("a/wide\na/gone\n")
    out = str(tmp_path / "cache")
    prepare(str(source), out, short_side=48, split=str(tmp_path))
    assert "1 of 2 videos of split" in capsys.readouterr().err
    shutil.copytree(source, tmp_path / "moved")
    assert prepare(str(tmp_path / "moved"), out, short_side=48).present == 1
    assert (
        f"has clips of {source}; clips of files with the same name, size and time are kept" in capsys.readouterr().err
    )


class _Usage(tuple):
    def __new__(cls, total: int, used: int, free: int) -> "_Usage":
        made = super().__new__(cls, (total, used, free))
        made.free = free
        return made


def test_wrong_and_cut_caches_are_refused(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    prepare(str(source), str(root), short_side=48)
    manifest = root / MANIFEST
    good = manifest.read_text()
    spoilt = {
        "is damaged": [
            good[:50],
            "[]",
            "{}",
            good.replace("a/wide", "../../a/wide"),
            good.replace("a/wide", "/a/wide"),
        ],
        r"format 99; this version reads format 1": [json.dumps(json.loads(good) | {"version": 99})],
        "is incomplete: run the same `strm prepare` command": [json.dumps(json.loads(good) | {"complete": False})],
    }
    for message, texts in spoilt.items():
        for text in texts:
            manifest.write_text(text)
            with pytest.raises(ValueError, match=message):
                open_store(root)
    manifest.write_text(good)
    clip = root / "a" / "wide.clip"
    data = clip.read_bytes()
    for damaged in (data[:-1], data[:1000], data[:10], b""):
        clip.write_bytes(damaged)
        with pytest.warns(DataWarning, match=r"skipped 1 video .*a/wide .* bytes, not"):
            assert "a/wide" not in open_store(root).videos
    clip.unlink()
    with pytest.raises(VideoError, match="a/wide"):
        open_store(root, unreadable="refuse")


def test_clip_files_are_checked_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.clip"
    with ClipWriter(path) as writer:
        writer.add(3, b"three")
        writer.add(7, b"seven")
        with pytest.raises(VideoError, match="frame 8 differs in size"):
            writer.add(8, np.zeros((2, 2, 3), np.uint8))
        size = writer.finish(source_frames=9)
    assert size == path.stat().st_size
    with ClipFile(path) as clip:
        assert [clip.read(entry) for entry in clip.find([3, 7, 7])] == [b"three", b"seven", b"seven"]
        assert (clip.source_frames, clip.kept) == (9, 2)
    data = bytearray(path.read_bytes())
    cases = {
        "frame 3 is damaged": (34, data[34] ^ 1),
        "format 66; this version": (8, 66),
        "is not a clip file": (0, 0),
        "is truncated or damaged": (len(data) - 3, 9),
    }
    for message, (place, value) in cases.items():
        damaged = bytearray(data)
        damaged[place] = value
        path.write_bytes(damaged)
        with pytest.raises(VideoError, match=message), ClipFile(path) as clip:
            clip.read(0)
    path.write_bytes(data[:20])
    with pytest.raises(VideoError, match="is not a clip file"):
        ClipFile(path)
    with ClipWriter(tmp_path / "b.clip") as writer:
        writer.add(0, b"never finished")
    assert not list(tmp_path.glob("*b.clip*"))


KILLED = """
import sys, time
from strm_lightning.data.cache import writer as convert
from strm_lightning.data.cache import clipfile
from strm_lightning.data.prepare import prepare
real = clipfile.ClipWriter.add
def slow(self, number, frame):
    real(self, number, frame)
    print("frame", flush=True)
    time.sleep(0.01)
clipfile.ClipWriter.add = slow
prepare(sys.argv[1], sys.argv[2], short_side=48, jobs=1)
"""


@pytest.mark.parametrize("frames_before", [1, 60])
def test_a_killed_run_goes_on_where_it_was(source: Path, frames_before: int, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    command = [sys.executable, "-c", KILLED, str(source), str(out)]
    environment = os.environ | {"PYTHONPATH": str(Path(convert.__file__).parents[3])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        said = [process.stdout.readline() for _ in range(frames_before)]
        process.send_signal(signal.SIGKILL)
    assert all(said)
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("*.clip")}
    (part,) = out.rglob("*.part")
    young = part.with_name(".other.0123456789ab.part")  # of a run on another machine, perhaps
    young.touch()
    os.utime(part, (part.stat().st_mtime - 7200,) * 2)
    with pytest.raises(ValueError, match="is incomplete"):
        open_store(out)
    time.sleep(0.01)
    report = prepare(str(source), str(out), short_side=48)
    assert (report.present, report.written) == (len(finished), 4 - len(finished))
    assert finished == {path: path.stat().st_mtime_ns for path in finished}
    assert list(out.rglob("*.part")) == [young]
    prepare(str(source), str(tmp_path / "whole"), short_side=48)
    for path in out.rglob("*.clip"):
        assert path.read_bytes() == (tmp_path / "whole" / path.relative_to(out)).read_bytes()
