"""EpisodeDataModule: a folder of videos in, N-way K-shot episodes out, for a stock Lightning Trainer."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader

from strm_lightning.data.episodes import (
    ClipReader,
    EpisodeDataset,
    EpisodeKeys,
    EpisodeLoader,
    EpisodeSampler,
    VideoDataset,
)
from strm_lightning.data.frames import FramePolicy
from strm_lightning.data.listing import LayoutOption
from strm_lightning.data.splits import Stage
from strm_lightning.data.store import VideoSet, load_video_sets
from strm_lightning.data.transforms import ClipTransform
from strm_lightning.errors import InputError

WorkerStart = Literal["fork", "spawn", "forkserver"]

MOVING_SHAPES: dict[str, dict[str, Any]] = {
    "moving-shapes": {"clutter": 0.2, "clips_per_class": 16},
    "moving-shapes-cluttered": {},  # as hard to see as real clips
}


class EpisodeDataModule(L.LightningDataModule):
    """Few-shot episodes from videos, cut into train, validation and test by classes.

    An episode is a pure function of (seed, stage, epoch, index): the same for any number of workers and ranks and after
    a restart. Clips travel as uint8; normalisation is the model's.

    Args:
        root: folder of videos, ``root/class/video.mp4``; or ``moving-shapes``, the data set that the package draws, or
            ``moving-shapes-cluttered``, the same actions as hard to see as in real clips.
        split: ``random`` (seeded shares by class), shares such as ``{train: 0.6, val: 0.2, test: 0.2}``, class names of
            each stage, the name of a published split, or a folder of list files.
        lists: folder of list files, for published splits that are by video.
        layout: how videos lie under ``root``; ``auto`` looks.
        way: classes of an episode, N.
        train_way: the same in training; None for as many. More than in use teaches finer distinctions.
        shot: support clips of a class, K.
        query_per_class: query clips of a class in training.
        eval_query_per_class: the same in validation and test; None for as many as in training.
        num_frames: frames of a clip, L.
        image_size: height and width of a clip in pixels, after the crop.
        short_side: length of a frame's short side before the crop, in pixels; None for ``image_size`` x 256 / 224.
        frame_policy: which frames; ``segments`` takes one of each of L equal parts, ``release`` is the released code's.
        flip: mirror training clips at random; wrong where classes name directions (Something-Something).
        short_clips: videos with fewer frames than L: ``repeat`` frames, or ``drop`` the video.
        unreadable: videos that cannot be read: ``skip`` them with a warning, or ``refuse`` to start.
        train_episodes: training episodes of an epoch, over all ranks.
        val_episodes: validation episodes, always the same.
        test_episodes: test episodes, always the same.
        batch_size: episodes of a training step on one device.
        eval_batch_size: episodes of a step in validation and test, which a GPU matches at once and a CPU one by one.
        num_workers: processes that read clips.
        worker_start: how they start, ``fork``, ``spawn`` or ``forkserver``; None for the platform's own way.
        seed: chooses the episodes.
        split_seed: chooses the classes of a random split, apart from ``seed`` so that seeds share their test classes.
        select_on: classes of validation, by which the checkpoint is chosen: ``val``, or ``test`` as in the released
            code, which flatters the test and is written on its protocol card.
        test_shots: test also with these numbers of support clips, in one call over one bank.
        test_ways: test also with these numbers of classes.
        evaluation: ``bank`` encodes each video once and matches episodes from that; ``episodes`` encodes every episode
            anew, which gives the same numbers and takes as much longer as videos recur.

    Raises:
        ValueError: in `setup`, where the videos cannot give such episodes.
    """

    def __init__(
        self,
        root: str = "moving-shapes",
        split: str | dict[str, list[str]] | dict[str, float] = "random",
        *,
        lists: str | None = None,
        layout: LayoutOption = "auto",
        way: int = 5,
        train_way: int | None = None,
        shot: int = 5,
        query_per_class: int = 5,
        eval_query_per_class: int | None = None,
        num_frames: int = 8,
        image_size: int = 224,
        short_side: int | None = None,
        frame_policy: FramePolicy = "segments",
        flip: bool = True,
        short_clips: Literal["repeat", "drop"] = "repeat",
        unreadable: Literal["skip", "refuse"] = "skip",
        train_episodes: int = 1000,
        val_episodes: int = 500,
        test_episodes: int = 10000,
        batch_size: int = 1,
        eval_batch_size: int = 16,
        num_workers: int = 2,
        worker_start: WorkerStart | None = None,
        seed: int = 0,
        split_seed: int = 0,
        select_on: Literal["val", "test"] = "val",
        test_shots: Sequence[int] = (),
        test_ways: Sequence[int] = (),
        evaluation: Literal["bank", "episodes"] = "bank",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.root, self.split, self.lists, self.layout = root, split, lists, layout
        self.way, self.train_way, self.shot = way, train_way or way, shot
        self.queries: dict[Stage, int] = dict.fromkeys(("val", "test"), eval_query_per_class or query_per_class)
        self.queries["train"] = query_per_class
        self.episodes: dict[Stage, int] = {"train": train_episodes, "val": val_episodes, "test": test_episodes}
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_frames, self.frame_policy = num_frames, frame_policy
        self.short_clips, self.unreadable = short_clips, unreadable
        self.transform = ClipTransform(image_size, short_side or 0, flip)
        self.num_workers, self.worker_start = num_workers, worker_start
        self.seed, self.split_seed = seed, split_seed
        self.select_on, self.evaluation = select_on, evaluation
        self.hparams["test_shots"], self.hparams["test_ways"] = list(test_shots), list(test_ways)
        others = [(n, k) for n in test_ways or (way,) for k in test_shots or (shot,)]
        self.test_settings = list(dict.fromkeys([(way, shot), *others]))  # (way, shot), the main one first
        self.train_views = 0  # views of each training video in a bank; 0 reads pixels
        self.videos: dict[Stage, VideoSet] = {}
        self._train_loader: EpisodeLoader | None = None
        self._resume: dict[str, int] = {}
        positive = {"way": way, "shot": shot, "query_per_class": query_per_class, "num_frames": num_frames}
        positive |= {"image_size": image_size, "batch_size": batch_size, "eval_batch_size": eval_batch_size}
        positive |= {"test_shots": min(test_shots, default=1), "test_ways": min(test_ways, default=1)}
        for name, value in positive.items():
            if value < 1:
                raise InputError(f"data.{name} is {value}: give a positive number")

    def prepare_data(self) -> None:
        """Write the moving shapes on first use."""
        if self.root in MOVING_SHAPES:
            from strm_lightning.data.shapes import moving_shapes

            moving_shapes(**MOVING_SHAPES[self.root])

    def setup(self, stage: str | None = None) -> None:
        """Find the videos and hold them against way, shot, queries and the frames that clips need."""
        if not self.videos:
            videos = self._load()
            store = next(iter(videos.values())).store  # the same for all stages
            store.require(self.frame_policy, self.num_frames, self.transform.short_side)
            self.videos = videos
            if self.select_on == "test" and "test" in self.videos:
                self.videos["val"] = replace(self.videos["test"], stage="val")
        wanted: dict[str | None, tuple[Stage, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for name in wanted.get(stage, ()):
            if name in self.videos or name != "val":
                self._check(name)

    def _load(self) -> dict[Stage, VideoSet]:
        root, split = Path(self.root), self.split
        if self.root in MOVING_SHAPES:
            from strm_lightning.data.shapes import SPLIT, moving_shapes

            root = moving_shapes(**MOVING_SHAPES[self.root])
            split = {stage: list(names) for stage, names in SPLIT.items()} if split == "random" else split
        return load_video_sets(
            root,
            split,
            lists=self.lists,
            layout=self.layout,
            num_frames=self.num_frames,
            short_clips=self.short_clips,
            unreadable=self.unreadable,
            seed=self.split_seed,
        )

    def _check(self, stage: Stage) -> None:
        if stage not in self.videos:
            raise InputError(f"the split has no {stage} classes; it has {', '.join(self.videos)}")
        videos, settings = self.videos[stage], self.settings(stage)
        way, shot = (max(numbers) for numbers in zip(*settings, strict=True))
        shape = f"{way}-way {shot}-shot with {self.queries[stage]} queries a class"
        if len(videos.class_names) < way:
            raise InputError(
                f"{shape} needs {way} classes; the {stage} split has {len(videos.class_names)}: "
                f"lower data.way or give {stage} more classes"
            )
        need = shot + self.queries[stage]
        small = [(n, len(m)) for n, m in zip(videos.class_names, videos.members, strict=True) if len(m) < need]
        if small:
            named = "; ".join(f"class {name!r} has {count} clips" for name, count in small[:5])
            more = f" and {len(small) - 5} more classes have too few" if len(small) > 5 else ""
            raise InputError(f"{named}{more}; {shape} needs {need} ({stage} split)")

    def settings(self, stage: Stage) -> list[tuple[int, int]]:
        """(way, shot) of a stage, the main one first; a test may have several."""
        if stage == "test":
            return self.test_settings
        return [(self.train_way if stage == "train" else self.way, self.shot)]

    def sampler(self, stage: Stage, setting: int = 0) -> EpisodeSampler:
        """The episodes of a stage, by (epoch, index), in one of its settings."""
        way, shot = self.settings(stage)[setting]
        return EpisodeSampler(self.videos[stage].members, way, shot, self.queries[stage], stage, self.seed)

    def reader(self, stage: Stage) -> ClipReader:
        """Reads the clips of a stage."""
        return ClipReader(self.videos[stage], self.num_frames, self.frame_policy, self.transform)

    def train_dataloader(self) -> EpisodeLoader:
        """Training episodes, other ones in each epoch; a run that was cut off goes on where it was."""
        reader = None if self.train_views else self.reader("train")
        self._train_loader = self._episode_loader("train", reader, self.batch_size)
        if self._resume:
            self._train_loader.load_state_dict(self._resume)
        return self._train_loader

    def state_dict(self) -> dict[str, int]:
        """How far training has come, for a checkpoint.

        Lightning would ask the loader itself, but hands the state back too late where a schedule has already counted
        its steps.
        """
        return self._train_loader.state_dict() if self._train_loader else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let training go on from a `state_dict`."""
        self._resume = state_dict

    def val_dataloader(self) -> EpisodeLoader | list[EpisodeLoader]:
        """Validation episodes, always the same; none where the split has no validation classes."""
        return self._evaluation_loader("val") if "val" in self.videos else []

    def test_dataloader(self) -> EpisodeLoader | list[EpisodeLoader]:
        """Test episodes, always the same; a loader for each setting where there are several."""
        loaders = [self._evaluation_loader("test", setting) for setting in range(len(self.test_settings))]
        return loaders[0] if len(loaders) == 1 else loaders

    def video_loader(self, stage: Stage, rows: Iterable[int], *, views: int = 0) -> DataLoader[tuple[Tensor, Tensor]]:
        """Clips for a feature bank, ``((row, view), clip)``: the test choice of frames and crop, or random views."""
        items = [(row, view) for row in rows for view in range(max(views, 1))]
        dataset = VideoDataset(self.reader(stage), items, seed=self.seed if views else None)
        return DataLoader(dataset, batch_size=max(1, 64 // self.num_frames), **self._workers(self.num_workers))

    def _evaluation_loader(self, stage: Stage, setting: int = 0) -> EpisodeLoader:
        reader = self.reader(stage) if self.evaluation == "episodes" else None
        batch_size = self.eval_batch_size if reader is None else self.batch_size
        return self._episode_loader(stage, reader, batch_size, setting=setting)

    def _episode_loader(
        self, stage: Stage, reader: ClipReader | None, batch_size: int, setting: int = 0
    ) -> EpisodeLoader:
        trainer = self.trainer
        keys = EpisodeKeys(
            self.episodes[stage],
            batch_size,
            training=stage == "train",
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        views = self.train_views if stage == "train" else 1
        dataset = EpisodeDataset(self.sampler(stage, setting), reader, views=views)
        workers = self.num_workers if reader else 0  # rows alone take microseconds
        return EpisodeLoader(dataset, keys, persistent_workers=workers > 0, **self._workers(workers))

    def _workers(self, number: int) -> dict[str, Any]:
        start = self.worker_start if number else None
        pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": number, "multiprocessing_context": start, "pin_memory": pin}
