"""Published splits by name, against the official lists where they are, and on excerpts elsewhere."""

from collections import Counter
from pathlib import Path

import pytest

from strm_lightning.data.splits.split import NAMED, published_classes, resolve_split
from strm_lightning.data.splits.stages import STAGES

LISTS = next((p / "shared/splits" for p in Path(__file__).parents if (p / "shared/splits").is_dir()), None)
CLASSES = {"hmdb51": (31, 10, 10), "ucf101": (70, 10, 21)}
VIDEOS = {
    "kinetics100": (6400, 1200, 2400),
    "ssv2-full": (67013, 1926, 2857),
    "ssv2-small": (6400, 1200, 2400),
    "hmdb51": (4280, 1194, 1292),
    "ucf101": (9154, 1421, 2745),
}
FOLDERS = {
    "kinetics100": ("trx/kinetics_CMN", "hyrsm/kinetics100"),
    "ssv2-full": ("trx/ssv2_OTAM", "hyrsm/ssv2_full"),
    "ssv2-small": ("trx/ssv2_CMN", "hyrsm/ssv2_small"),
    "hmdb51": ("trx/hmdb_ARN", "hyrsm/hmdb51"),
    "ucf101": ("trx/ucf_ARN", "hyrsm/ucf101"),
}


@pytest.mark.parametrize("name", NAMED)
def test_classes_ship_with_the_package(name: str) -> None:
    classes = published_classes(name)
    assert tuple(len(classes[stage]) for stage in STAGES) == CLASSES.get(name, (64, 12, 24))
    every = [c for stage in STAGES for c in classes[stage]]
    assert len(set(every)) == len(every)


needs_lists = pytest.mark.skipif(LISTS is None, reason="the official lists are not part of the repository")


@needs_lists
@pytest.mark.parametrize("name", NAMED)
def test_both_formats_of_the_official_lists_are_the_same_split(name: str) -> None:
    trx, hyrsm = (resolve_split(name, lists=str(LISTS / folder), class_names=[], seed=0) for folder in FOLDERS[name])
    for split in (trx, hyrsm):
        assert {stage: set(split.classes[stage]) for stage in STAGES} == {
            stage: set(names) for stage, names in published_classes(name).items()
        }
        assert tuple(len(split.videos[stage]) for stage in STAGES) == VIDEOS[name]
    for stage in STAGES:
        counts = [Counter(c for c, _ in split.videos[stage]) for split in (trx, hyrsm)]
        assert counts[0] == counts[1]
    resolve_split(str(LISTS / FOLDERS[name][0]), lists=None, class_names=[], seed=0)


@needs_lists
def test_epic_kitchens_lists_have_no_validation() -> None:
    split = resolve_split(str(LISTS / "hyrsm/epic_kitchens"), lists=None, class_names=[], seed=0)
    assert tuple(len(split.classes[stage]) for stage in STAGES) == (60, 0, 20)


@needs_lists
def test_small_ssv2_test_videos_are_in_the_full_train_list() -> None:
    full, small = (
        resolve_split(n, lists=str(LISTS / FOLDERS[n][0]), class_names=[], seed=0) for n in ("ssv2-full", "ssv2-small")
    )
    names = dict(map(reversed, full.videos["train"]))
    common = [(c, v) for c, v in small.videos["test"] if v in names]
    assert len(common) == 568
    assert all(names[v] == c for c, v in common)
    assert min(Counter(c for c, _ in full.videos["test"]).values()) == 17


def write(folder: Path, **lists: str) -> str:
    for name, text in lists.items():
        (folder / f"{name}.txt").write_text(text)
    return str(folder)


def test_numbered_classes_get_their_names(tmp_path: Path) -> None:
    lists = write(tmp_path, train_few_shot="train0/1\ntrain35/2\n", val_few_shot="val8/3\n", test_few_shot="test18/4\n")
    full = resolve_split("ssv2-full", lists=lists, class_names=[], seed=0)
    assert full.classes["train"] == ("Bending something until it breaks", "Pushing something from left to right")
    assert full.videos["val"] == (("Scooping something up with something", "3"),)
    assert full.videos["test"] == (("Showing something next to something", "4"),)
    small = resolve_split("ssv2-small", lists=lists, class_names=[], seed=0)
    assert small.videos["train"][0] == ("Pouring something into something", "1")


def test_published_splits_by_video_need_their_lists(tmp_path: Path) -> None:
    for name in ("kinetics100", "ssv2-full", "ssv2-small"):
        with pytest.raises(ValueError, match="set lists to the folder of its list files"):
            resolve_split(name, lists=None, class_names=[], seed=0)
    with pytest.raises(FileNotFoundError, match=r"folder of list files .* does not exist"):
        resolve_split("kinetics100", lists=str(tmp_path / "missing"), class_names=[], seed=0)
    with pytest.raises(ValueError, match="lists need a published split"):
        resolve_split("random", lists=str(tmp_path), class_names=[], seed=0)


def test_published_splits_by_class_need_none() -> None:
    split = resolve_split("hmdb51", lists=None, class_names=[], seed=0)
    assert split.videos is None
    assert "fencing" in split.classes["test"]


def test_lists_of_another_split_are_refused(tmp_path: Path) -> None:
    lists = write(tmp_path, trainlist01="brush_hair/a\nhug/b\n", testlist01="fencing/c\n")
    with pytest.raises(ValueError, match=r"contain classes not in split 'kinetics100': 'brush_hair', 'fencing', 'hug'"):
        resolve_split("kinetics100", lists=lists, class_names=[], seed=0)
    lists = write(tmp_path, trainlist01="brush_hair/a\n", testlist01="cartwheel/c\n")
    with pytest.raises(ValueError, match="not in split 'hmdb51': 'cartwheel'"):  # a validation class
        resolve_split("hmdb51", lists=lists, class_names=[], seed=0)
