"""The data module: the same episodes however workers start, and refusals before training."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from strm_lightning import EpisodeDataModule
from strm_lightning.data.loaders import EpisodeDataset
from strm_lightning.data.prepare import prepare
from strm_lightning.data.sources.video_files import FileListing, list_files
from strm_lightning.errors import InputError
from tests.data.clips import write_frames, write_video, zip_folder

SPLIT = {"train": ["a", "b"], "test": ["c"]}
SMALL = {"way": 2, "shot": 1, "query_per_class": 1, "image_size": 32, "num_frames": 4, "train_episodes": 6}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of four clips of 30 frames."""
    root = tmp_path_factory.mktemp("videos")
    for name in "abc":
        for clip in range(4):
            write_video(root / name / f"{clip}.mp4", 30)
    return root


@pytest.fixture(scope="module")
def cache(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("caches") / "cache"
    prepare(str(root), str(out), short_side=37, policies=["release"], num_frames=4)
    return out


def episodes(root: Path, **options: Any) -> list[torch.Tensor]:
    data = EpisodeDataModule(str(root), SPLIT, frame_policy="release", **SMALL | options)
    data.setup("fit")
    return [torch.cat([batch.support.flatten(0, 2), batch.query.flatten(0, 1)]) for batch in data.train_dataloader()]


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_episodes_are_the_same_however_workers_start(cache: Path, start: str) -> None:
    alone = episodes(cache, num_workers=0)
    shared = episodes(cache, num_workers=2, worker_start=start)
    assert len(alone) == len(shared) == 6
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_clips_come_from_workers_in_shared_memory(cache: Path) -> None:
    data = EpisodeDataModule(str(cache), SPLIT, frame_policy="release", num_workers=1, **SMALL)
    data.setup("fit")
    assert all(batch.support.is_shared() and batch.query.is_shared() for batch in data.train_dataloader())
    data.num_workers = 0
    assert not any(batch.support.is_shared() for batch in data.train_dataloader())


SMAPS = Path("/proc/self/smaps_rollup")


class Weighed(EpisodeDataset):
    """Gives the memory that is the worker's own, in MB, for each episode that it reads."""

    def __getitems__(self, keys: list[tuple[int, int]]) -> float:
        if keys[0][1] == 20:
            gc.collect()  # touches, and in a fork so copies, whatever the parent had; better now than later
        super().__getitems__(keys)
        own = [line for line in SMAPS.read_text().splitlines() if line.startswith("Private_Dirty")]
        return int(own[0].split()[1]) / 1e3


@pytest.mark.skipif(not SMAPS.exists(), reason="only Linux shows the memory of a single process")
@pytest.mark.parametrize(
    ("layout", "start", "limit"),
    [
        ("cache", "fork", 16),
        ("cache", "spawn", 4),
        ("zip", "spawn", 4),
        pytest.param("frames", "spawn", 4, marks=pytest.mark.slow),
        pytest.param("videos", "fork", 64, marks=pytest.mark.slow),
        pytest.param("videos", "spawn", 64, marks=pytest.mark.slow),
    ],
)
def test_a_workers_memory_stays_flat(
    layout: str, start: str, limit: float, root: Path, cache: Path, tmp_path: Path
) -> None:
    """A fork copies, once, what it touches of its parent's; the C library keeps some of what decoders have freed.

    To keep the clips that are read would take 25 MB (cache) to 150 MB (videos).
    """
    if layout in {"zip", "frames"}:
        for name in "abc":
            for clip in range(4):
                write_frames(tmp_path / "frames" / name / str(clip), 30)
        zip_folder(tmp_path / "frames", tmp_path / "a.zip")
    places = {"cache": cache, "zip": tmp_path / "a.zip", "frames": tmp_path / "frames", "videos": root}
    data = EpisodeDataModule(str(places[layout]), SPLIT, frame_policy="release", num_workers=0, **SMALL)
    data.setup("fit")
    weighed = Weighed(data.generator("train"), data.reader("train"))
    keys = [[(0, index)] for index in range(1000)]
    loader = DataLoader(weighed, batch_sampler=keys, num_workers=1, multiprocessing_context=start, collate_fn=as_it_is)
    weights = list(loader)
    assert max(weights[500:]) - max(weights[:500]) < limit, f"MB at every hundredth episode: {weights[::100]}"


def as_it_is(weight: float) -> float:
    return weight


def test_caches_that_lack_what_is_asked_for_are_refused_before_training(cache: Path) -> None:
    for options, message in (
        ({"frame_policy": "segments"}, "has the frames of release with 4 frames a clip; segments with 4 needs more"),
        ({"num_frames": 8}, "release with 8 needs more"),
        ({"image_size": 64}, "has frames of short side 37; 73 is needed"),
    ):
        data = EpisodeDataModule(str(cache), SPLIT, **{"frame_policy": "release"} | SMALL | options)
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                data.setup("fit")


def test_a_listing_of_a_user_is_used(root: Path) -> None:
    class TwoClips(EpisodeDataModule):
        def list_videos(self, root: Path) -> FileListing:
            return FileListing(root, {name: path for name, path in list_files(root).items() if name[-1] in keep})

    keep = "13"
    data = TwoClips(str(root), {"train": ["a", "b"], "test": ["c"]}, **SMALL)
    data.setup("fit")
    assert data.videos["train"].store.videos == [f"{name}/{clip}" for name in "abc" for clip in (1, 3)]
    keep = "x"
    with pytest.raises(InputError, match=rf"^no videos under {root} \(layout 'videos'\)$"):
        TwoClips(str(root), **SMALL).setup("fit")
