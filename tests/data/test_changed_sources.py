"""`strm prepare` again after a source was replaced: the clip is written again, others are left alone."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from strm_lightning.data.cache.store import MANIFEST, read_manifest
from strm_lightning.data.prepare import PrepareReport, prepare
from strm_lightning.data.video_sets import open_store
from tests.data.clips import number_of, write_frames, write_video, zip_folder


def make(root: Path, kind: str, numbers: dict[str, int]) -> Path:
    """Videos of 3 frames, of which the first has the number that is given; the same size of file for all numbers."""
    frames = root / "frames"
    for name, first in numbers.items():
        folder = frames / "a" / name
        shutil.rmtree(folder, ignore_errors=True)
        write_frames(root / "all", 20, suffix="bmp", size=(32, 48))
        folder.mkdir(parents=True)
        for i in range(3):
            shutil.copy(root / "all" / f"{first + i + 1:08}.bmp", folder / f"{i}.bmp")
    return zip_folder(frames, root / "frames.zip") if kind == "zip" else frames


def again(root: Path, out: Path) -> PrepareReport:
    return prepare(str(root), str(out), short_side=32, jobs=1)


def numbers_in(out: Path) -> dict[str, int]:
    store = open_store(out)
    return {name: number_of(store.read(row, [0])[0].numpy()) for row, name in enumerate(store.videos)}


@pytest.mark.parametrize("kind", ["frames", "zip"])
def test_replaced_frames_are_noticed(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    again(make(tmp_path, kind, {"v": 2, "w": 5}), out)
    assert numbers_in(out) == {"a/v": 2, "a/w": 5}
    untouched = (out / "a" / "w.clip").stat().st_mtime_ns
    report = again(make(tmp_path, kind, {"v": 9}), out)
    assert (report.written, report.refreshed, report.present) == (1, 1, 1)
    assert "1 clip refreshed, since the source has changed" in str(report)
    assert numbers_in(out) == {"a/v": 9, "a/w": 5}
    assert (out / "a" / "w.clip").stat().st_mtime_ns == untouched
    assert again(make(tmp_path, kind, {}), out).written == 0


def test_an_image_rewritten_in_its_folder_is_noticed(tmp_path: Path) -> None:
    root, out = make(tmp_path, "frames", {"v": 2}), tmp_path / "cache"
    again(root, out)
    folder = root / "a" / "v"
    before = folder.stat().st_mtime_ns
    (folder / "0.bmp").write_bytes((tmp_path / "all" / "00000012.bmp").read_bytes())
    assert folder.stat().st_mtime_ns == before
    assert again(root, out).refreshed == 1
    assert numbers_in(out) == {"a/v": 11}


def test_a_replaced_video_file_is_noticed_and_a_copy_of_the_data_is_not_decoded_again(tmp_path: Path) -> None:
    root, out = tmp_path / "videos", tmp_path / "cache"
    write_video(root / "a" / "v.avi", 3, codec="mpeg4", size=(32, 48))
    write_video(root / "a" / "w.avi", 3, codec="mpeg4", size=(32, 48))
    again(root, out)
    write_video(root / "a" / "v.avi", 4, codec="mpeg4", size=(32, 48))
    report = again(root, out)
    assert (report.written, report.refreshed, report.present) == (1, 1, 1)
    assert open_store(out).frame_counts.tolist() == [4, 3]
    shutil.copytree(root, tmp_path / "moved")  # keeps the times
    assert again(tmp_path / "moved", out).written == 0


def test_a_clip_whose_new_source_is_damaged_leaves_the_cache(tmp_path: Path) -> None:
    root, out = make(tmp_path, "frames", {"v": 2, "w": 5}), tmp_path / "cache"
    again(root, out)
    (root / "a" / "v" / "1.bmp").write_bytes(b"BM")
    report = again(root, out)
    assert list(report.failed) == ["a/v"]
    assert numbers_in(out) == {"a/w": 5}
    assert not (out / "a" / "v.clip").exists()


def test_a_source_replaced_after_a_killed_run_is_noticed(tmp_path: Path) -> None:
    root, out = make(tmp_path, "frames", {"v": 2, "w": 5}), tmp_path / "cache"
    again(root, out)
    manifest = read_manifest(out)  # as a run leaves it that was killed after its last clip
    (out / MANIFEST).write_text(json.dumps(manifest | {"videos": {}, "complete": False}))
    again(make(tmp_path, "frames", {"v": 9}), out)
    assert numbers_in(out) == {"a/v": 9, "a/w": 5}


def test_a_cache_of_version_0_1_loads_and_notices_changes_from_then_on(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, out = make(tmp_path, "frames", {"v": 2, "w": 5}), tmp_path / "cache"
    again(root, out)
    manifest = json.loads((out / MANIFEST).read_text())
    assert manifest.pop("stamps").keys() == manifest["videos"].keys()
    (out / MANIFEST).write_text(json.dumps(manifest))
    assert numbers_in(out) == {"a/v": 2, "a/w": 5}
    capsys.readouterr()
    assert again(root, out).present == 2
    assert "did not record its sources: 2 clips kept" in capsys.readouterr().err
    assert again(make(tmp_path, "frames", {"v": 9}), out).refreshed == 1
    assert "did not record" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["frames", "zip"])
def test_a_video_known_to_be_bad_does_not_stop_the_others(kind: str, tmp_path: Path) -> None:
    root, out = make(tmp_path, "frames", {"bad": 2, "good": 5}), tmp_path / "cache"
    (root / "a" / "bad" / "1.bmp").write_bytes(b"")
    report = again(make(tmp_path, kind, {}), out)
    assert list(report.failed) == ["a/bad"]
    assert numbers_in(out) == {"a/good": 5}


def test_names_too_long_for_a_clip_file_do_not_stop_the_others(tmp_path: Path) -> None:
    root, out = tmp_path / "videos", tmp_path / "cache"
    good = write_video(root / "a" / "good.avi", 3, codec="mpeg4", size=(32, 48))
    wide = "\u5b57" * 80  # 240 bytes
    for stem in ("x" * 244, "x" * 251, wide):
        os.link(good, root / "a" / f"{stem}.avi")
    report = again(root, out)
    assert list(report.failed) == [f"a/{'x' * 251}"]
    assert "name is too long" in next(iter(report.failed.values()))
    assert open_store(out).videos == ["a/good", f"a/{'x' * 244}", f"a/{wide}"]


@pytest.mark.parametrize("place", ["loop", "a/loop", "a/loop.avi", "loop.avi"])
def test_a_link_that_loops_does_not_stop_the_others(place: str, tmp_path: Path) -> None:
    root = tmp_path / "videos"
    write_video(root / "a" / "good.avi", 3, codec="mpeg4", size=(32, 48))
    (root / place).symlink_to(root / place)
    assert set(again(root, tmp_path / "cache").failed) <= {"a/loop"}
    assert open_store(tmp_path / "cache").videos == ["a/good"]


def test_a_link_that_loops_among_frame_folders_is_passed_over(tmp_path: Path) -> None:
    root = make(tmp_path, "frames", {"v": 2})
    (root / "a" / "loop").symlink_to(root / "a" / "loop")
    (root / "loop").symlink_to(root / "loop")
    assert open_store(root).videos == ["a/v"]
    np.testing.assert_array_equal(open_store(root).frame_counts, [3])
