"""Videos that only a bank reads are decoded once, with the results of counting their frames first."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import av
import pytest
import torch

from strm_lightning.cli.main import main
from strm_lightning.data.decode import video
from strm_lightning.data.decode.video import VideoError, count_frames, estimate_num_frames
from strm_lightning.data.loaders import ClipReader
from strm_lightning.data.transforms import ClipTransform
from strm_lightning.data.video_sets import DataWarning, load_video_sets, open_store
from strm_lightning.errors import InputError
from tests.data.clips import write_video
from tests.evaluation.test_protocol import pytestmark as protocol_marks
from tests.evaluation.test_protocol import run_test
from tests.test_module import SPLIT, data, module, trainer

pytestmark = [
    *protocol_marks,
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]


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


@pytest.mark.parametrize(
    ("options", "workers"), [({"test_episodes": 7}, 0), ({"test_episodes": 2, "test_shots": [1, 2]}, 2)]
)
def test_results_are_those_of_counted_frames(
    spoilt: Path, tmp_path: Path, options: dict[str, Any], workers: int
) -> None:
    options = options | {"num_workers": workers}
    bad = f"{SPLIT['test'][0]}/2"
    with pytest.warns(
        DataWarning, match=rf"^skipped 1 video under {spoilt} that cannot be read: {bad} \(cannot be dec"
    ):
        first = run_test(tmp_path / "first", module(), data(spoilt, **options))
    with pytest.warns(DataWarning, match="skipped 2 videos"):
        anew = run_test(tmp_path / "anew", module(), data(spoilt, evaluation="episodes", **options))
    with pytest.warns(DataWarning, match="skipped 2 videos"):  # now from the index
        counted = run_test(tmp_path / "counted", module(), data(spoilt, **options))
    assert without_timing(first) == without_timing(counted)
    assert first["per_episode"] == anew["per_episode"]
    assert first["card"] == anew["card"]
    assert first["card"]["data"]["unreadable"] == [bad]


def test_kept_banks_contain_what_counting_first_gives(
    spoilt: Path, tmp_path: Path, count_encoded: Callable[[], int]
) -> None:
    banks = tmp_path / "banks"
    with pytest.warns(DataWarning, match="skipped 1 video"):
        first = run_test(tmp_path / "first", module(bank_dir=str(banks)), data(spoilt))
    assert count_encoded() == 18  # the features of readable videos are not computed again
    # The row of a video depends on the damaged videos of all stages that are known.
    for known in (18, 18 + 17, 18 + 17):
        with pytest.warns(DataWarning, match="skipped"):
            again = run_test(tmp_path / "again", module(bank_dir=str(banks)), data(spoilt))
        assert without_timing(first) == without_timing(again)
        assert count_encoded() == known
        with pytest.warns(DataWarning, match="skipped"):
            open_store(spoilt)


def test_too_few_readable_videos_are_refused_and_empty_classes_disappear(root: Path, tmp_path: Path) -> None:
    for serial in range(6):
        damage(root / SPLIT["test"][1] / f"{serial}.mp4")
    with pytest.warns(DataWarning, match="skipped 6 videos"):
        found = run_test(tmp_path, module(), data(root))
    assert found["confusion"]["classes"] == sorted({*SPLIT["test"]} - {SPLIT["test"][1]})
    assert found["card"]["data"]["classes"] == 2
    for serial in range(4):
        damage(root / SPLIT["test"][0] / f"{serial}.mp4")
    with (
        pytest.warns(DataWarning, match="skipped (6|10) videos"),
        pytest.raises(InputError, match=f"^class '{SPLIT['test'][0]}' has 2 clips; 2-way 1-shot .* needs 3"),
    ):
        run_test(tmp_path, module(), data(root))


def test_damage_is_refused_before_anything_is_encoded(
    spoilt: Path, tmp_path: Path, count_encoded: Callable[[], int]
) -> None:
    with pytest.raises(VideoError, match="2 videos cannot be read"):
        run_test(tmp_path, module(), data(spoilt, unreadable="refuse"))
    assert count_encoded() == 0


def test_short_clips_are_dropped_before_anything_is_encoded(root: Path, tmp_path: Path, decoded: Any) -> None:
    write_video(root / SPLIT["test"][0] / "2.mp4", 3)
    with pytest.warns(DataWarning, match="dropped 1 video with fewer than 4 frames"):
        run_test(tmp_path, module(), data(root, short_clips="drop"))
    assert set(decoded()) == every(root, *SPLIT)


def test_a_fit_after_a_test_counts_the_other_stages(spoilt: Path, tmp_path: Path, decoded: Any) -> None:
    episodes, plain = data(spoilt), module()
    with pytest.warns(DataWarning, match="skipped 1 video"):
        run_test(tmp_path, plain, episodes)
    decoded()
    with pytest.warns(DataWarning, match="skipped 2 videos"):
        trainer(tmp_path, max_epochs=1, enable_checkpointing=False).fit(plain, datamodule=episodes)
    assert not set(decoded()) & every(spoilt, "test")
    assert f"{SPLIT['train'][0]}/0" in episodes.videos["train"].unreadable
    assert not episodes.videos["test"].store.estimated
    trainer(tmp_path).test(plain, datamodule=episodes, verbose=False)


def test_a_prediction_leaves_out_damaged_videos(spoilt: Path, tmp_path: Path) -> None:
    with pytest.warns(DataWarning, match="skipped 1 video"):
        found = trainer(tmp_path).predict(module(), datamodule=data(spoilt))
    with pytest.warns(DataWarning, match="skipped 2 videos"):
        anew = trainer(tmp_path).predict(module(), datamodule=data(spoilt, evaluation="episodes"))
    assert found is not None
    assert anew is not None
    assert torch.equal(*(torch.cat([batch["predicted"] for batch in batches]) for batches in (found, anew)))


def test_random_clips_of_a_miscounted_video_are_those_of_the_right_count(spoilt: Path) -> None:
    with pytest.warns(DataWarning, match="skipped"):
        counted = load_video_sets(spoilt, SPLIT)["test"]
    shutil.rmtree(os.environ["STRM_CACHE"])
    estimated = load_video_sets(spoilt, SPLIT, exact=[])["test"]
    clips = []
    for videos in (counted, estimated):
        row = videos.store.videos.index(f"{SPLIT['test'][1]}/4")
        reader, rng = ClipReader(videos, 4, "segments", ClipTransform(32)), Random(7)
        clips.append(torch.empty(reader.shape, dtype=torch.uint8))
        assert reader.read(row, rng, clips[-1]) == 29
        assert videos.store.frame_counts[row] == (29 if videos is counted else 30)
        clips.append(torch.tensor(rng.random()))
    assert torch.equal(clips[0], clips[2])
    assert clips[1] == clips[3]


def test_validation_on_the_test_classes_is_checked_too(spoilt: Path, tmp_path: Path) -> None:
    episodes = data(spoilt, select_on="test")
    with pytest.warns(DataWarning, match="skipped 1 video"):
        trainer(tmp_path).validate(module(), datamodule=episodes, verbose=False)
    assert episodes.videos["val"].exact
    assert sum(map(len, episodes.videos["val"].members)) == 17
    with pytest.warns(DataWarning, match="skipped 2 videos"):
        (episodes := data(spoilt)).setup("test")  # without a trainer, all are counted
    assert not episodes.videos["test"].store.estimated


def test_the_command_decodes_each_test_video_once(root: Path, tmp_path: Path, decoded: Any) -> None:
    main(
        [
            "test", f"--data.root={root}", f"--data.split={json.dumps(SPLIT)}", "--data.way=2", "--data.shot=1",
            "--data.query_per_class=2", "--data.num_frames=4", "--data.image_size=32", "--data.test_episodes=5",
            "--data.num_workers=0", "--model.backbone=test_resnet", "--model.pretrained=false", "--model.match_dim=8",
            f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu", "--trainer.logger=false",
        ]
    )  # fmt: skip
    assert decoded() == Counter(every(root, "test"))


DDP = """
import json, sys
from pathlib import Path
from tests.test_module import data, module, trainer

if __name__ == "__main__":
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    run, model = trainer(out, devices=2, strategy="ddp"), module()
    run.test(model, datamodule=data(root), verbose=False)
    report = {key: value for key, value in model.report.items() if key != "timing"}
    (out / f"{run.global_rank}.json").write_text(json.dumps(report))
"""


@pytest.mark.slow
def test_two_processes_find_what_one_finds(spoilt: Path, tmp_path: Path) -> None:
    (script := tmp_path / "run.py").write_text(DDP)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["src", "."]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(script), str(spoilt), str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with pytest.warns(DataWarning, match="skipped 2 videos"):
        open_store(spoilt)
    with pytest.warns(DataWarning, match="skipped 2 videos"):
        one = without_timing(run_test(tmp_path / "one", module(), data(spoilt)))
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [one, one]
