"""Splits: shares, names, list files in both formats, and what is wrong with them."""

from pathlib import Path

import pytest

from strm_lightning.data.names import VideoFinder, youtube_id
from strm_lightning.data.splits.split import resolve_split
from strm_lightning.data.splits.stages import STAGES

CLASSES = [f"class {i}" for i in range(100)]


def resolve(split, class_names=CLASSES, lists=None, seed=0):
    return resolve_split(split, lists=lists, class_names=class_names, seed=seed)


@pytest.mark.parametrize(("number", "sizes"), [(100, (64, 12, 24)), (50, (32, 6, 12)), (5, (3, 1, 1)), (3, (1, 1, 1))])
def test_a_random_split_has_the_fields_shares(number: int, sizes: tuple[int, ...]) -> None:
    split = resolve("random", CLASSES[:number])
    assert tuple(len(split.classes[stage]) for stage in STAGES) == sizes
    assert sorted(sum((split.classes[stage] for stage in STAGES), ())) == sorted(CLASSES[:number])


def test_a_random_split_depends_on_its_seed_and_not_on_the_order_of_folders() -> None:
    assert resolve("random").classes == resolve("random", CLASSES[::-1]).classes
    assert resolve("random").classes != resolve("random", seed=1).classes


def test_shares_may_leave_classes_and_stages_out() -> None:
    split = resolve({"train": 0.5, "test": 0.2})
    assert {stage: len(split.classes[stage]) for stage in STAGES} == {"train": 50, "val": 0, "test": 20}
    whole = resolve({"train": 1 / 3, "val": 1 / 3, "test": 1 / 3}, CLASSES[:10])
    assert sum(len(whole.classes[stage]) for stage in STAGES) == 10


@pytest.mark.parametrize("shares", [{"train": 0.9, "test": 0.2}, {"train": -0.1, "test": 0.2}, {"train": 0.0}])
def test_impossible_shares_are_refused(shares: dict) -> None:
    with pytest.raises(ValueError, match="sum to at most 1"):
        resolve(shares)
    with pytest.raises(ValueError, match="2 classes cannot be split into train, val, test"):
        resolve("random", CLASSES[:2])


def test_classes_are_named_as_on_disk_however_they_are_spelled() -> None:
    split = resolve({"train": ["Class 1", "class_2"], "test": ["class 3"]})
    assert split.classes == {"train": ("class 1", "class 2"), "val": (), "test": ("class 3",)}
    assert split.videos is None


def test_wrong_names_are_answered_with_near_ones() -> None:
    with pytest.raises(
        ValueError, match=r"unknown classes: 'wavve'; did you mean 'wave'\? there are 2 classes: jump, wave"
    ):
        resolve({"train": ["wavve"], "test": ["jump"]}, ["wave", "jump"])
    with pytest.raises(ValueError, match="unknown split 'kinetics'"):
        resolve("kinetics")
    with pytest.raises(ValueError, match="train, val, test, not eval"):
        resolve({"train": ["class 1"], "eval": ["class 2"]})


def test_stages_that_overlap_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"in two stages: 'class 2' \(train and test\)"):
        resolve({"train": ["class 1", "class 2"], "test": ["class 2"]})


def write_lists(folder: Path, **lines: list[str]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, listed in lines.items():
        (folder / f"{name}.txt").write_bytes("\n".join(listed).encode())
    return str(folder)


def test_lists_of_trx(tmp_path: Path) -> None:
    folder = write_lists(
        tmp_path,
        trainlist03=["air drumming/-VtLx-mcPds_000012_000022", "air drumming/-eGnPDG5Pxs_000053_000063", ""],
        vallist03=["baking cookies/-514AQUrSow_000058_000068"],
        testlist03=["test18/195025"],
    )
    split = resolve(folder)
    assert split.classes == {"train": ("air drumming",), "val": ("baking cookies",), "test": ("test18",)}
    assert split.videos["train"] == (
        ("air drumming", "-VtLx-mcPds_000012_000022"),
        ("air drumming", "-eGnPDG5Pxs_000053_000063"),
    )


def test_lists_of_hyrsm_name_classes_by_folder_where_they_can(tmp_path: Path) -> None:
    folder = write_lists(
        tmp_path / "named",
        train_few_shot=["train0//train_256/air_drumming/a.b_0.mp4", "train1//train_256/archery/x.avi"],
        test_few_shot=["test0//val_256/baking/-514AQUrSow.mp4"],
    )
    split = resolve(folder)
    assert split.videos["train"] == (("air_drumming", "a.b_0"), ("archery", "x"))
    assert split.classes["val"] == ()
    folder = write_lists(
        tmp_path / "numbered",
        train_few_shot=["train32//clips_256/P01_11_0.MP4", "train53//clips_256/P01_11_1.MP4"],
        test_few_shot=["test8//clips_256/P02.MP4"],
    )
    assert resolve(folder).videos["train"] == (("train32", "P01_11_0"), ("train53", "P01_11_1"))
    folder = write_lists(tmp_path / "short", train_few_shot=["train0/51958"], test_few_shot=["test0/88644"])
    assert resolve(folder).videos["test"] == (("test0", "88644"),)


def test_what_editors_do_to_lists_makes_no_difference(tmp_path: Path) -> None:
    write_lists(tmp_path, testlist01=["b/3"])
    (tmp_path / "trainlist01.txt").write_bytes(b"\xef\xbb\xbfa/1\r\n\r\n  \r\na/2\r\na/1\r\n")
    assert resolve(str(tmp_path)).videos["train"] == (("a", "1"), ("a", "2"))


def test_lists_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="contains no list files"):
        resolve(str(tmp_path))
    write_lists(tmp_path, trainlist01=["a/1", "loose"])
    with pytest.raises(ValueError, match=r"trainlist01\.txt, line 2: 'loose' has no class"):
        resolve(str(tmp_path))
    write_lists(tmp_path, trainlist01=[""])
    with pytest.raises(ValueError, match=r"trainlist01\.txt is empty"):
        resolve(str(tmp_path))
    write_lists(tmp_path, trainlist01=["a/1"], testlist01=["A/2"])
    with pytest.raises(ValueError, match=r"'A' \(train and test\)"):
        resolve(str(tmp_path))
    write_lists(tmp_path, trainlist02=["a/1"])
    with pytest.raises(ValueError, match=r"several lists for train \(trainlist01\.txt, trainlist02\.txt\)"):
        resolve(str(tmp_path))


def test_videos_are_found_under_the_names_people_give_them() -> None:
    names = ["Air_Drumming/-VtLx-mcPds_000012_000022", "archery/AAAAAAAAAAA", "run/v1", "run/V1", "x y/b"]
    finder = VideoFinder(names, ["air drumming", "archery", "run", "x y"])
    assert finder.find("air drumming", "-VtLx-mcPds_000012_000022") == (names[0], "spelling")
    assert finder.find("air drumming", "-VtLx-mcPds") == (names[0], "youtube id")
    assert finder.find("archery", "AAAAAAAAAAA_000001_000011") == (names[1], "youtube id")
    assert finder.find("x y", "b") == ("x y/b", "exact")
    assert finder.find("run", "v1") == ("run/v1", "exact")
    assert finder.find("Run", "v1") is None  # two would do
    assert finder.find("archery", "v1") is None
    assert finder.find("archery", "../run/v1") is None


def test_folders_of_another_name_are_searched_only_where_no_class_claims_them() -> None:
    finder = VideoFinder(["195025", "17", "test18/200", "walk/300"], ["Pushing", "walk", "climb"])
    assert finder.find("Pushing", "195025") == ("195025", "exact")
    assert finder.find("Pushing", "200") == ("test18/200", "other folder")
    assert finder.find("climb", "300") is None
    assert finder.find("walk", "195025") is None


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("-VtLx-mcPds", "-VtLx-mcPds"),
        ("-VtLx-mcPds_000012_000022", "-VtLx-mcPds"),
        ("v_Diving_g01_c01", None),
        ("12", None),
    ],
)
def test_youtube_ids(name: str, found: str | None) -> None:
    assert youtube_id(name) == found
