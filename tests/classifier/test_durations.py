"""Durations of example clips: from time stamps, stored with the examples."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from strm_lightning.classifier import FewShotClassifier
from strm_lightning.data.decode.video import VideoError, video_seconds
from strm_lightning.errors import InputError
from strm_lightning.models import STRM
from tests.classifier.conftest import HOW, moving, write_video


def durations(classifier: FewShotClassifier) -> dict[str, list[float | None]]:
    return {label: [clip.duration for clip in clips] for label, clips in classifier.support.clips.items()}


def test_a_duration_is_that_of_the_time_stamps(tmp_path: Path) -> None:
    for count, fps in ((12, 10), (30, 25)):
        file = write_video(tmp_path / f"{count}.mp4", moving("left", frames=count), fps)
        assert video_seconds(file) == pytest.approx(count / fps, abs=0.01)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(VideoError, match="broken"):
        video_seconds(broken)


def test_durations_are_stored_with_the_examples(bare: STRM, tmp_path: Path) -> None:
    files = [write_video(tmp_path / f"{n}.mp4", moving("left", frames=n), 10) for n in (8, 16)]
    classifier = FewShotClassifier(bare, HOW).fit({"left": files, "up": [moving("up")]})
    expected = {"left": [pytest.approx(0.8, abs=0.01), pytest.approx(1.6, abs=0.01)], "up": [None]}
    assert durations(classifier) == expected
    classifier.save(tmp_path / "a.safetensors")
    assert durations(FewShotClassifier(bare, HOW).load(tmp_path / "a.safetensors")) == expected


def rewrite(path: Path, change) -> None:
    """Change the list of clips in the header of an examples file."""
    with safe_open(path, "pt") as file:
        about = dict(file.metadata())
    clips = json.loads(about["clips"])
    for clip in clips:
        change(clip)
    save_file(load_file(path), path, {**about, "clips": json.dumps(clips)})


def test_files_without_durations_load_and_wrong_ones_are_refused(bare: STRM, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    FewShotClassifier(bare, HOW).fit({"left": [moving("left")], "up": [moving("up")]}).save(path)
    rewrite(path, lambda clip: clip.pop("duration"))
    assert durations(FewShotClassifier(bare, HOW).load(path)) == {"left": [None], "up": [None]}
    rewrite(path, lambda clip: clip.update(duration="long"))
    with pytest.raises(InputError, match="clip 0 has the duration"):
        FewShotClassifier(bare, HOW).load(path)
