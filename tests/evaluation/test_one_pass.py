"""Videos that only a bank reads are decoded once, with the results of counting their frames first."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from strm_lightning.cli.main import main
from strm_lightning.data.decode import video
from strm_lightning.data.decode.video import VideoError, count_frames, estimate_num_frames
from strm_lightning.data.video_sets import DataWarning, open_store
from strm_lightning.errors import InputError
from tests.data.clips import write_video
from tests.evaluation.test_protocol import pytestmark as pytestmark
from tests.evaluation.test_protocol import run_test
from tests.test_module import SPLIT, data, module, trainer


def packet(path: Path, number: int) -> tuple[int, int]:
    """Place and size of a packet in its file."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][number]


def overwrite(path: Path, number: int, start: bytes) -> None:
    """Replace a packet by some bytes and zeros."""
    place, size = packet(path, number)
    content = bytearray(path.read_bytes())
    content[place : place + size] = start + bytes(size - len(start))
    path.write_bytes(content)


def damage(path: Path) -> None:
    """Damage the last frame, so that packets do not show it."""
    overwrite(path, -1, b"")
    assert estimate_num_frames(path) == 10
    with pytest.raises(VideoError):
        count_frames(path)


def miscount(path: Path) -> None:
    """Replace a video by one that has a frame less than packets."""
    write_video(path, count=30, codec="mpeg4", gop=1)
    overwrite(path, 10, b"\0\0\1\xb6\xd0")  # the header of a frame without content
    assert (estimate_num_frames(path), count_frames(path)) == (30, 29)


@pytest.fixture
def root(actions: Path, tmp_path: Path) -> Path:
    return shutil.copytree(actions, tmp_path / "clips")


@pytest.fixture
def spoilt(root: Path) -> Path:
    """One damaged video of train and test each, and a test video with a wrong number of packets."""
    train, test = SPLIT["train"][0], SPLIT["test"]
    for name in (f"{train}/0", f"{test[0]}/2"):
        damage(root / f"{name}.mp4")
    miscount(root / test[1] / "4.mp4")
    return root


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], Counter[str]]:
    """How often each video was decoded since the last call; a file, since workers decode too."""
    log, whole = tmp_path / "decoded.txt", video._whole

    def record(frames: Any, path: str | Path) -> Any:
        with log.open("a") as file:
            file.write(f"{Path(path).parent.name}/{Path(path).stem}\n")
        return whole(frames, path)

    def take() -> Counter[str]:
        found = Counter(log.read_text().split()) if log.exists() else Counter()
        log.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(video, "_whole", record)
    return take


def every(root: Path, *stages: str) -> set[str]:
    return {f"{name}/{path.stem}" for stage in stages for name in SPLIT[stage] for path in (root / name).iterdir()}


def without_timing(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key != "timing"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_test_decodes_each_test_video_once(root: Path, tmp_path: Path, decoded: Any, workers: int) -> None:
    for options in ({"test_episodes": 30}, {"test_episodes": 1}):  # the second does not draw all videos
        shutil.rmtree(os.environ["STRM_CACHE"], ignore_errors=True)
        decoded()
        run_test(tmp_path, module(), episodes := data(root, num_workers=workers, **options))
        assert decoded() == Counter(every(root, "test"))
        assert episodes.videos["test"].exact


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"test_episodes": 2}, {"test_shots": [1, 2]}, {"controls": True}])
def test_results_are_those_of_counted_frames(
    spoilt: Path, tmp_path: Path, workers: int, options: dict[str, Any]
) -> None:
    controls = {"controls": options.get("controls", False)}
    settings = {"test_episodes": 12, "num_workers": workers, **{k: v for k, v in options.items() if k != "controls"}}
    message = rf"^skipped 1 video under {spoilt} that cannot be read: {SPLIT['test'][0]}/2 \(cannot be decoded \(Invalid data"
    with pytest.warns(DataWarning, match=message):
        first = run_test(tmp_path / "first", module(**controls), data(spoilt, **settings))
    with pytest.warns(DataWarning, match="skipped 2 videos"):
        open_store(spoilt)  # counts all
    with pytest.warns(DataWarning, match="skipped 2 videos"):
        counted = run_test(tmp_path / "counted", module(**controls), data(spoilt, **settings))
        anew = run_test(tmp_path / "anew", module(**controls), data(spoilt, evaluation="episodes", **settings))
    assert without_timing(first) == without_timing(counted)
    assert first["per_episode"] == anew["per_episode"]
    assert first["card"]["data"]["unreadable"] == [f"{SPLIT['test'][0]}/2"]
    assert first["card"] == anew["card"]
