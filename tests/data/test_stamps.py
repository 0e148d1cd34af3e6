"""The stamp of a video changes if and only if its source file is written again."""

import os
from pathlib import Path

import pytest

from strm_lightning.data.decode.video import VideoError
from strm_lightning.data.prepare import prepare
from strm_lightning.data.video_sets import VideoStore, open_store
from tests.data.clips import write_frames, write_video, zip_folder


def keep_times(path: Path) -> tuple[int, int]:
    return path.stat().st_atime_ns, path.stat().st_mtime_ns


def stamps(store: VideoStore) -> list[str]:
    return [store.stamp(row) for row in range(len(store.videos))]


def test_video_files(tmp_path: Path) -> None:
    for clip in "ab":
        write_video(tmp_path / "wave" / f"{clip}.mp4", 4, size=(32, 48))
    before = stamps(open_store(tmp_path))
    assert stamps(open_store(tmp_path)) == before
    write_video(tmp_path / "wave" / "b.mp4", 4, size=(48, 32))
    after = stamps(open_store(tmp_path))
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False]


def test_clips_of_a_cache(tmp_path: Path) -> None:
    for clip in "ab":
        write_frames(tmp_path / "data" / "wave" / clip, 3)
    prepare(str(tmp_path / "data"), str(tmp_path / "cache"), short_side=48)
    before = stamps(store := open_store(tmp_path / "cache"))
    assert stamps(store) == before
    (tmp_path / "cache" / "wave" / "b.clip").touch()
    assert [a == b for a, b in zip(before, stamps(store), strict=True)] == [True, False]


@pytest.mark.parametrize("what", ["pixels", "time", "name"])
def test_images_of_a_folder_whose_own_time_stays(tmp_path: Path, what: str) -> None:
    folders = [write_frames(tmp_path / "wave" / clip, 3) for clip in "ab"]
    before = stamps(store := open_store(tmp_path))
    assert stamps(open_store(tmp_path)) == before
    folder, image = keep_times(folders[1]), sorted(folders[1].iterdir())[1]
    if what == "pixels":
        image.write_bytes(sorted(folders[1].iterdir())[2].read_bytes() + b"0")
    elif what == "time":
        image.touch()
    else:
        image.rename(image.with_stem("00000099"))
    os.utime(folders[1], ns=folder)
    assert [a == b for a, b in zip(before, stamps(store), strict=True)] == [True, False]
    for image in folders[1].iterdir():
        image.unlink()
    folders[1].rmdir()
    with pytest.raises(VideoError, match="cannot be read"):
        store.stamp(1)


def test_entries_of_a_zip(tmp_path: Path) -> None:
    root, path = tmp_path / "data", tmp_path / "data.zip"
    for clip, count in (("a", 3), ("b", 4)):
        write_frames(root / "wave" / clip, count)
    before = stamps(open_store(zip_folder(root, path)))
    times = keep_times(path)
    assert len(set(before)) == 2
    assert stamps(open_store(path)) == before
    image = sorted((root / "wave" / "b").iterdir())[1]
    data = bytearray(image.read_bytes())
    data[-3] ^= 1  # as long as before
    image.write_bytes(data)
    zip_folder(root, path)
    os.utime(path, ns=(times[0], times[1] + 1))  # a zip of the same size and time is not read again
    changed = stamps(open_store(path))
    assert [a == b for a, b in zip(before, changed, strict=True)] == [True, False]
    store = open_store(path)
    path.unlink()
    with pytest.raises(VideoError, match=r"data\.zip.*: cannot be read"):
        store.stamp(0)
