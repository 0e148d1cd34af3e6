"""Examples as folders of frames, zips of frames and tables of parts of videos; changes of an examples file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from strm_lightning import FewShotClassifier
from strm_lightning.classifier.clips import read_clip
from strm_lightning.classifier.storage import load
from strm_lightning.classifier.videos import VideoPart, find_examples, find_videos, video_name
from strm_lightning.cli.main import main
from strm_lightning.data.decode.video import VideoError, iter_frames, read_times
from strm_lightning.errors import InputError
from strm_lightning.models import Backbone
from tests.classifier.conftest import HOW, moving, save_weights, write_video
from tests.data.clips import zip_folder

MOTIONS = ("left", "right", "up")


def write_frames(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for number, image in enumerate(frames, start=1):
        Image.fromarray(image).save(folder / f"{number}.png")


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    root = tmp_path / "frames"
    for motion in MOTIONS:
        for seed in range(2):
            write_frames(root / motion / str(seed), moving(motion, seed))
    return root


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_weights(Backbone("test_resnet", pretrained=False).net, path)
    return path


def test_folders_and_zips_of_frames_are_the_arrays(frames: Path, tmp_path: Path) -> None:
    zip_folder(frames, tmp_path / "frames.zip")
    for found in (find_examples(frames), find_examples(tmp_path / "frames.zip")):
        assert {label: len(videos) for label, videos in found.items()} == dict.fromkeys(MOTIONS, 2)
        for motion in MOTIONS:
            for seed, video in enumerate(found[motion]):
                assert torch.equal(read_clip(video, HOW), read_clip(moving(motion, seed), HOW))
                assert video_name(video).endswith(f"{motion}/{seed}")
    assert len(find_videos([str(frames)])) == len(find_videos([str(tmp_path / "frames.zip")])) == 6
    assert find_videos([str(frames / "up" / "0")]) == [str(frames / "up" / "0")]


def test_a_table_names_parts_of_a_video(tmp_path: Path) -> None:
    joined = np.concatenate([moving(motion, seed) for motion in MOTIONS for seed in range(2)])
    write_video(tmp_path / "all.mp4", joined)  # 12 frames each at 10 frames a second
    lines = [
        f"all.mp4,{1.2 * (2 * i + s)},{1.2 * (2 * i + s + 1)},{m}" for i, m in enumerate(MOTIONS) for s in range(2)
    ]
    table = tmp_path / "examples.csv"
    table.write_text("\n".join(["video,start,end,label", *lines]), encoding="utf-8")
    found = find_examples(table)
    images = np.stack([image for image, _ in iter_frames(tmp_path / "all.mp4")])
    for i, motion in enumerate(MOTIONS):
        for seed, video in enumerate(found[motion]):
            part = images[12 * (2 * i + seed) : 12 * (2 * i + seed + 1)]
            assert torch.equal(read_clip(video, HOW), read_clip(part, HOW))
    assert video_name(found["right"][0]) == f"{tmp_path / 'all.mp4'} (0:02.4-0:03.6)"
    table.write_text("label,video,start,end\nwave,all.mp4,0:01,0:00:02.5\nclap,all.mp4,,\n", encoding="utf-8")
    assert find_examples(table)["wave"] == [VideoPart(str(tmp_path / "all.mp4"), 1.0, 2.5)]
    assert find_examples(table)["clap"] == [str(tmp_path / "all.mp4")]


def test_frames_at_times_are_those_shown(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving("left", frames=40))
    images = [image for image, _ in iter_frames(path)]
    for first in (0, 7, 31):
        numbers = [first, first, first + 2, first + 8]
        found = read_times(path, [(number + 0.5) / 10 for number in numbers])
        assert all(np.array_equal(image, images[n]) for image, n in zip(found.numpy(), numbers, strict=True))
    with pytest.raises(VideoError, match=r"is 3\.9 s long, there is no frame at 5\.0 s"):
        read_times(path, [3.0, 5.0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,start,end\na.mp4,0,1\n", "has no column 'label'"),
        ("video,lable\na.mp4,wave\n", "has no column 'label'; did you mean 'lable'"),
        ("video,label\na.mp4,\n", "line 2: has no label"),
        ("video,label\nb.mp4,wave\n", "line 2: video .*b.mp4: no such file"),
        ("video,start,end,label\na.mp4,2,1,wave\n", "line 2: start '2' and end '1': give an end after the start"),
        ("video,start,end,label\na.mp4,soon,1,wave\n", "line 2, start: 'soon' is no time"),
        ("video,start,end,label\na.mp4,1,,wave\n", "give an end after the start"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "examples.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        find_examples(tmp_path / "examples.csv")


def test_examples_in_a_file_are_listed_and_changed(
    frames: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], count_encoded
) -> None:
    file, other = str(tmp_path / "actions.safetensors"), str(tmp_path / "other.safetensors")
    sizes = {"num_frames": 4, "image_size": 64}
    FewShotClassifier.from_backbone("test_resnet", weights=weights, **sizes).fit(find_examples(frames)).save(file)
    before = count_encoded()

    def support(*options: str) -> str:
        main(["support", file, *options])
        return capsys.readouterr().out

    assert support().splitlines()[:2] == ["3 classes, 6 clips", "left: 2 clips"]
    assert "hello: 2 clips" in support("--rename", "left=hello", "--output", other)
    assert set(load(Path(file)).clips_by_class) == set(MOTIONS)
    support("--remove", "up/1")
    assert load(Path(file)).clips_by_class["up"] == ["0"]
    support("--rename", "up=right")
    assert load(Path(file)).clips_by_class == {"left": ["0", "1"], "right": ["0", "1", "0"]}
    assert count_encoded() == before
    write_frames(tmp_path / "more" / "down" / "a", moving("down"))
    assert "down: 1 clip" in support("--add", str(tmp_path / "more"))
    assert count_encoded() == before + 1
    assert FewShotClassifier.load(file).predict(moving("down", 5)).label == "down"
    for options, message in (
        (["--remove", "lefd"], "no class or clip 'lefd'; did you mean 'left'"),
        (["--rename", "wave=clap"], "no class 'wave'"),
        (["--rename", "left"], "give OLD=NEW"),
        (["--rename", "left=unknown"], "this is the label of rejected videos"),
    ):
        with pytest.raises(SystemExit):
            main(["support", file, *options])
        assert message in capsys.readouterr().err
