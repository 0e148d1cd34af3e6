"""The doctor's page: every fault that was put into a folder is named, and the exit status says whether to start."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from strm_lightning.data.checks.doctor import doctor
from strm_lightning.data.prepare import prepare
from tests.data.clips import numbered_frame, write_audio, write_frames, write_video, zip_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four classes of three clips of ten frames."""
    for name in ("clap", "Wave Hand", "push_left", "sit"):
        for clip in range(3):
            write_video(tmp_path / "data" / name / f"{name[:2]}{clip}.mp4", 10, size=(32, 48))
    return tmp_path / "data"


SPLIT = {"train": ["clap", "wave_hand"], "test": ["push_left", "sit"]}
SMALL = {"way": 2, "shot": 1, "query_per_class": 2}


def test_a_sound_folder_may_start(root: Path) -> None:
    report = doctor(str(root), SPLIT, **SMALL, flip=False)
    assert (report.status, report.problems, report.warnings) == (0, [], [])
    assert report.frames == (10, 10, 10, 120)
    assert [(c.name, c.stage, c.listed, c.found, c.usable) for c in report.classes] == [
        ("Wave Hand", "train", None, 3, 3),
        ("clap", "train", None, 3, 3),
        ("push_left", "test", None, 3, 3),
        ("sit", "test", None, 3, 3),
    ]
    assert str(report).endswith("Training can start.")


def test_every_fault_is_named(root: Path, tmp_path: Path) -> None:
    (root / "clap" / "cl0.mp4").write_bytes(b"")
    write_audio(root / "clap" / "sound.mp4")
    write_video(root / "sit" / "short.mp4", 5)
    (root / "sit" / "folder.mp4").mkdir()
    report = doctor(str(root), SPLIT, **SMALL, short_clips="drop")
    assert report.unreadable == {
        "clap/cl0": "is empty (0 bytes)",
        "clap/sound": "contains no video stream",
        "sit/folder": "is a folder, not a video",
    }
    assert report.short == {"sit/short": 5}
    assert report.problems == ["train: 'clap' has 2; 2-way 1-shot with 2 queries a class needs 3 clips a class"]
    assert report.warnings == ["flip is on, but classes name directions (set --data.flip=false): push_left"]
    assert report.status == 1
    page = str(report)
    for said in (
        "clap/cl0 (is empty",
        "sit/short (5 frames)",
        "PROBLEM: train: 'clap' has 2",
        "Training cannot start.",
    ):
        assert said in page
    assert {c.name: (c.found, c.usable) for c in report.classes}["sit"] == (5, 3)
    assert doctor(str(root), SPLIT, **SMALL).classes[-1].usable == 4


def test_the_json_says_what_the_page_says(root: Path) -> None:
    (root / "sit" / "bad.mp4").write_bytes(b"nothing")
    report = doctor(str(root), SPLIT, **SMALL, json_file=str(root / "report.json"))
    read = json.loads((root / "report.json").read_text())
    assert read["unreadable"] == report.unreadable
    assert read["status"] == 0
    assert read["classes"][0] == {"name": "Wave Hand", "stage": "train", "listed": None, "found": 3, "usable": 3}


def test_lists_are_held_against_the_folder(root: Path, tmp_path: Path) -> None:
    (tmp_path / "trainlist01.txt").write_text(
        "clap/cl0\nclap/cl1\nclap/CL2\nclap/gone\nWave Hand/Wa0\nlost/x\n../../etc/y\n"
    )
    (tmp_path / "testlist01.txt").write_text("push_left/pu0\nsit/si0\n")
    report = doctor(str(root), str(tmp_path), way=2, shot=1, query_per_class=1)
    assert report.missing == {"train": ["clap/gone", "lost/x", "../y"]}
    assert report.renamed == {"clap/CL2": ("clap/cl2", "spelling")}
    assert {c.name: (c.listed, c.found) for c in report.classes}["clap"] == (4, 3)
    assert report.unused == 12 - 6
    assert any("'Wave Hand' has 1" in problem for problem in report.problems)
    page = str(report)
    assert "              4        3        3  clap\n" in page
    assert "missing: 3 (clap/gone, lost/x" in page
    assert "matched by spelling: 1 (clap/CL2 is clap/cl2)" in page


def test_too_few_classes_keep_training_from_starting(root: Path) -> None:
    report = doctor(str(root), SPLIT, way=3, shot=1, query_per_class=1)
    assert report.problems[0] == "train has 2 classes; 3-way 1-shot with 1 queries a class needs 3"
    without = doctor(str(root), {"test": ["clap", "sit"]}, **SMALL)
    assert without.problems[0].startswith("train has 0 classes")


def test_videos_in_two_stages_are_leaks(tmp_path: Path) -> None:
    for name, video in (("run", "-VtLx-mcPds_000012_000022"), ("walk", "-VtLx-mcPds"), ("sit", "AAAAAAAAAAA")):
        write_video(tmp_path / "data" / name / f"{video}.mp4", 3)
    (tmp_path / "trainlist01.txt").write_text("run/-VtLx-mcPds_000012_000022\n")
    (tmp_path / "testlist01.txt").write_text("walk/-VtLx-mcPds\nsit/AAAAAAAAAAA\n")
    report = doctor(str(tmp_path / "data"), str(tmp_path), way=1, shot=1, query_per_class=0)
    assert report.leaks == ["-VtLx-mcPds (train and test)"]
    assert "1 video in two stages: the accuracy will be too high" in report.warnings
    for name in ("run", "walk"):  # clip1 of every class is not one video
        write_video(tmp_path / "more" / name / "clip1.mp4", 3)
        shutil.copy(tmp_path / "more" / name / "clip1.mp4", tmp_path / "more" / name / "clip2.mp4")
    write_video(tmp_path / "more" / "jump" / "clip1.mp4", 3)
    assert doctor(str(tmp_path / "more"), {"train": ["run", "jump"], "test": ["walk"]}, **SMALL).leaks == []


def test_a_cache_that_training_would_refuse_is_a_problem(root: Path, tmp_path: Path) -> None:
    write_video(root / "sit" / "long.mp4", 60)
    prepare(str(root), str(tmp_path / "cache"), short_side=64, policies=["release"], num_frames=4)
    fits = {**SMALL, "num_frames": 4, "frame_policy": "release", "image_size": 56, "flip": False}
    assert doctor(str(tmp_path / "cache"), SPLIT, **fits).problems == []
    for options, problem in (
        ({"frame_policy": "segments"}, "segments with 4 needs more"),
        ({"image_size": 224}, "of short side 64; 256 is needed"),
    ):
        report = doctor(str(tmp_path / "cache"), SPLIT, **fits | options)
        assert report.status == 1
        assert problem in report.problems[0]


def test_flat_videos_are_not_called_misnamed(tmp_path: Path) -> None:
    for number in ("17", "18"):
        write_video(tmp_path / "videos" / f"{number}.webm", 3, codec="libvpx")
    (tmp_path / "trainlist01.txt").write_text("a/17\na/18\n")
    assert doctor(str(tmp_path / "videos"), str(tmp_path), way=1, shot=1, query_per_class=1).renamed == {}


def test_the_overlap_of_two_splits_is_counted(tmp_path: Path) -> None:
    for number in range(1, 5):
        write_video(tmp_path / "videos" / f"{number}.webm", 3, codec="libvpx")
    for folder, train, test in (
        ("small", "train0/1\n", "test0/2\ntest1/3\n"),
        ("full", "train0/2\ntrain0/3\n", "test0/1\n"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train_few_shot.txt").write_text(train)
        (tmp_path / folder / "test_few_shot.txt").write_text(test)
    report = doctor(
        str(tmp_path / "videos"), "ssv2-small", lists=str(tmp_path / "small"), other_lists=str(tmp_path / "full")
    )
    assert any("568 of the 2,400" in warning for warning in report.warnings)
    assert any(warning.startswith("2 test videos are training videos in") for warning in report.warnings)
    assert any(warning.startswith("1 training videos are test videos in") for warning in report.warnings)


@pytest.mark.parametrize("kind", ["frames", "zip", "cache", "raw"])
def test_a_deep_look_finds_damage_that_counting_does_not(kind: str, tmp_path: Path) -> None:
    for name in ("good", "bad"):
        write_frames(tmp_path / "frames" / "a" / name, 4)
    if kind == "frames":
        target = root = tmp_path / "frames"
        target = target / "a" / "bad" / "00000003.jpg"
        data = bytearray(target.read_bytes()[:900])
    elif kind == "zip":
        target = root = zip_folder(tmp_path / "frames", tmp_path / "a.zip")
        data = bytearray(target.read_bytes())
        data[data.index(b"a/bad/00000003.jpg") + 800] ^= 1
    else:
        root = tmp_path / "cache"
        prepare(str(tmp_path / "frames"), str(root), format="keep" if kind == "cache" else "raw", short_side=32)
        target = root / "a" / "bad.clip"
        data = bytearray(target.read_bytes())
        data[900] ^= 1
    target.write_bytes(data)
    split, shape = {"train": ["a"]}, {"way": 1, "shot": 1, "query_per_class": 0}
    assert doctor(str(root), split, **shape).unreadable == {}
    deep = doctor(str(root), split, **shape, deep=True)
    assert list(deep.unreadable) == ["a/bad"]
    assert [c.usable for c in deep.classes] == [1]


def test_pictures_of_other_sizes_are_seen_by_a_deep_look(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write_frames(tmp_path / "a" / "v", 3)
    Image.fromarray(numbered_frame(1, 20, 30)).save(tmp_path / "a" / "v" / "00000002.jpg")
    report = doctor(str(tmp_path), {"train": ["a"]}, way=1, shot=1, query_per_class=0, deep=True)
    assert report.unreadable == {"a/v": "its frames differ in size"}
    with pytest.raises(ValueError, match="differs in size"):
        prepare(str(tmp_path), str(tmp_path_factory.mktemp("out")), format="keep")
