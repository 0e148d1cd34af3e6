"""`strm classify` takes the classes of its examples from folders by the rule of `strm fit`."""

from pathlib import Path

import pytest

from strm_lightning.classifier.videos import find_examples
from strm_lightning.data.detect import list_videos

FOLDERS = {
    "classes": ({"wave/a", "wave/b", "clap/a"}, {"clap": ["clap/a"], "wave": ["wave/a", "wave/b"]}),
    "a level deeper": (
        {"train/wave/a", "train/clap/a", "val/wave/b"},
        {"clap": ["train/clap/a"], "wave": ["train/wave/a", "val/wave/b"]},
    ),
    "both": ({"wave/a", "train/clap/a"}, {"clap": ["train/clap/a"], "wave": ["wave/a"]}),
    "a folder inside a class": ({"wave/a", "wave/more/b"}, {"wave": ["wave/a"]}),
    "a blank in a name": ({"wave/a", "wave back/a"}, {"wave": ["wave/a"], "wave back": ["wave back/a"]}),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_classes_of_examples_are_those_that_training_sees(kind: str, tmp_path: Path) -> None:
    files, classes = FOLDERS[kind]
    for file in files:
        path = tmp_path / f"{file}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    expected = {name: [str(tmp_path / f"{video}.mp4") for video in videos] for name, videos in classes.items()}
    assert find_examples(str(tmp_path)) == expected
    listing = list_videos(tmp_path)
    assert {name: [listing.paths[video] for video in listing.by_class[name]] for name in listing.by_class} == expected


def test_videos_of_one_class_and_name_in_two_folders_are_told(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "wave").mkdir(parents=True)
        (tmp_path / part / "wave" / "a.mp4").touch()
    with pytest.warns(
        UserWarning, match=r"1 video under .* skipped, since another has the same class and name: .*val/wave/a"
    ):
        assert find_examples(str(tmp_path)) == {"wave": [str(tmp_path / "train/wave/a.mp4")]}
