"""Folders of video files: what is opened, what is left out, and what is said of it."""

import pickle
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from strm_lightning import fileio
from strm_lightning.data.decode.video import VideoError
from strm_lightning.data.detect import list_videos
from strm_lightning.data.sources import video_files as files
from strm_lightning.data.video_sets import DataWarning, load_video_sets, open_store
from tests.data.clips import number_of, write_audio, write_video


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRM_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six classes of three clips of 4, 8 and 12 frames, in several containers."""
    for name in "abcdef":
        for clip, (count, suffix) in enumerate([(4, "mp4"), (8, "avi"), (12, "mkv")]):
            options = {} if suffix == "mp4" else {"codec": "mpeg4", "b_frames": 2}
            write_video(tmp_path / "data" / name / f"clip{clip}.{suffix}", count, size=(32, 48), **options)
    return tmp_path / "data"


def test_every_video_is_found_counted_and_read(root: Path) -> None:
    store = open_store(root)
    assert list(store.videos) == [f"{name}/clip{i}" for name in "abcdef" for i in range(3)]
    assert store.frame_counts.tolist() == [4, 8, 12] * 6
    assert store.path_of(4) == root / "b" / "clip1.avi"
    assert [number_of(frame) for frame in store.read(5, [0, 7, 11]).numpy()] == [0, 7, 11]
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.read(5, [3]), store.read(5, [3]))


def test_a_split_sorts_videos_into_stages_and_classes(root: Path) -> None:
    sets = load_video_sets(root, {"train": ["a", "C", "f"], "test": ["b", "d"]})
    assert sets["train"].class_names == ("a", "c", "f")
    assert set(sets) == {"train", "test"}
    train, test = sets["train"], sets["test"]
    assert [[train.store.videos[row] for row in rows] for rows in train.members] == [
        [f"{name}/clip{i}" for i in range(3)] for name in "acf"
    ]
    assert train.store is test.store
    assert not set(np.concatenate(train.members)) & set(np.concatenate(test.members))
    assert [int(test.labels[row]) for rows in test.members for row in rows] == [0, 0, 0, 1, 1, 1]
    assert (train.labels >= 0).sum() == 9
    pickle.loads(pickle.dumps(train))


def test_lists_pick_videos_and_what_is_gone_is_counted(root: Path, tmp_path: Path) -> None:
    (tmp_path / "trainlist01.txt").write_text("A/clip0\na/clip1\na/gone\n../data/b/clip0\nnowhere/x\n")
    (tmp_path / "testlist01.txt").write_text("b/clip2\n")
    with pytest.warns(DataWarning, match=r"3 of 6 videos of split .*: \.\./clip0, A/gone, nowhere/x"):
        sets = load_video_sets(root, str(tmp_path))
    assert sets["train"].class_names == ("A",)
    assert [sets["train"].store.videos[row] for row in sets["train"].members[0]] == ["a/clip0", "a/clip1"]
    assert sets["test"].class_names == ("b",)


def test_short_clips_repeat_or_are_dropped_with_a_count(root: Path) -> None:
    split = {"train": ["a", "b"], "test": ["c"]}
    assert [len(rows) for rows in load_video_sets(root, split)["train"].members] == [3, 3]
    with pytest.warns(DataWarning, match=r"dropped 3 videos with fewer than 8 frames: a/clip0, b/clip0, c/clip0"):
        sets = load_video_sets(root, split, short_clips="drop")
    assert [len(rows) for rows in sets["train"].members] == [2, 2]


def test_damaged_videos_are_left_out_by_name_or_refused(root: Path) -> None:
    (root / "a" / "empty.mp4").touch()
    (root / "b" / "folder.mp4").mkdir()
    write_audio(root / "c" / "sound.mp4")
    half = shutil.copy(root / "d" / "clip0.mp4", root / "d" / "half.mp4")
    half.write_bytes(half.read_bytes()[:900])
    (root / "e" / "link.mp4").symlink_to(root / "nowhere.mp4")
    with pytest.warns(DataWarning, match=r"skipped 5 videos .*: a/empty \(is empty .*b/folder .*c/sound .*and 2 more$"):
        store = open_store(root)
    assert len(store.videos) == 18
    assert set(store.unreadable) == {"a/empty", "b/folder", "c/sound", "d/half", "e/link"}
    with pytest.raises(VideoError, match="5 videos cannot be read"):
        open_store(root, unreadable="refuse")
    load_video_sets(root, {"train": ["f"]}, unreadable="refuse")  # nobody asked for the damaged ones


def test_roots_that_hold_no_data_are_answered_clearly(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_store(tmp_path / "missing")
    (tmp_path / "file.mp4").touch()
    with pytest.raises(ValueError, match=r"no videos under .* \(a file\); expected"):
        open_store(tmp_path / "file.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"it is empty\); expected <class>/<video>\.mp4"):
        open_store(tmp_path / "empty")
    (tmp_path / "other" / "notes").mkdir(parents=True)
    (tmp_path / "other" / "notes" / "a.txt").touch()
    with pytest.raises(ValueError, match="it contains: notes/"):
        open_store(tmp_path / "other")
    (tmp_path / "bad" / "a").mkdir(parents=True)
    (tmp_path / "bad" / "a" / "b.mp4").touch()
    with pytest.raises(VideoError, match="none of 1 video can be read: a/b"):
        open_store(tmp_path / "bad")


def test_a_split_of_other_data_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "trainlist01.txt").write_text("fencing/x\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        with pytest.raises(ValueError, match=r"no video of split .* which has 18 videos in 6 classes"):
            load_video_sets(root, str(tmp_path))


def test_videos_of_one_name_keep_their_endings(root: Path) -> None:
    shutil.copy(root / "a" / "clip0.mp4", root / "a" / "clip1.mp4")
    assert list(open_store(root).videos)[:4] == ["a/clip0", "a/clip1.avi", "a/clip1.mp4", "a/clip2"]


def test_frames_are_counted_once_and_again_when_a_file_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    real = files.count_frames
    monkeypatch.setattr(files, "count_frames", lambda path: counted.append(Path(path).name) or real(path))
    open_store(root)
    assert len(counted) == 18
    open_store(root)
    assert len(counted) == 18
    write_video(root / "a" / "clip0.mp4", 7, size=(32, 48))
    assert open_store(root).frame_counts[0] == 7
    assert counted[18:] == ["clip0.mp4"]


def test_estimates_are_no_counts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are counted where an estimate is known, unless it has been checked since and the file is the same."""
    counted: list[str] = []
    real = files.count_frames
    monkeypatch.setattr(files, "count_frames", lambda path: counted.append(Path(path).name) or real(path))
    (root / "b" / "clip0.mp4").write_bytes(b"")
    split = {"train": ["a"], "val": ["b"], "test": ["c"]}
    with pytest.warns(DataWarning, match=r"skipped 1 video .*: b/clip0 \(is empty"):
        store = load_video_sets(root, split, exact=["train"])["train"].store
    assert sorted(counted) == ["clip0.mp4", "clip0.mp4", "clip1.avi", "clip2.mkv"]
    assert store.frame_counts.tolist() == [4, 8, 12, 8, 12, 4, 8, 12]
    assert store.estimated == {3, 4, 5, 6, 7}
    assert [number_of(frame) for frame in store.read_chosen(5, lambda number: [1, number - 1])[0].numpy()] == [1, 3]

    listing = list_videos(root)
    write_video(root / "c" / "clip1.avi", 7, size=(32, 48))
    listing.record({"c/clip0": 4, "c/clip1": 8, "d/clip0": 4})
    counted.clear()
    with pytest.warns(DataWarning, match="skipped 1 video"):
        sets = load_video_sets(root, split, exact=["test"])
    assert sorted(counted) == ["clip1.avi", "clip2.mkv"]
    assert sets["test"].store.frame_counts[-3:].tolist() == [4, 7, 12]
    assert [sets[stage].exact for stage in split] == [True, False, True]
    assert sets["val"].unreadable == ("b/clip0",)


def test_a_spoilt_index_is_made_again(root: Path) -> None:
    open_store(root)
    (path,) = (fileio.cache_folder() / "index").iterdir()
    whole = path.read_text()
    for spoilt in ("", "{", "[]", '{"version": 0, "videos": {}}', whole[: len(whole) // 2]):
        path.write_text(spoilt)
        assert open_store(root).frame_counts.tolist() == [4, 8, 12] * 6
        assert path.read_text() == whole


def test_the_cache_folder_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert re.search("cache", str(fileio.cache_folder()))
    monkeypatch.delenv("STRM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fileio.cache_folder() == tmp_path / "strm_lightning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fileio.cache_folder() == tmp_path / ".cache" / "strm_lightning"
