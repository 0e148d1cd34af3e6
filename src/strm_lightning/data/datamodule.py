"""EpisodeDataModule: a folder of videos in, N-way K-shot episodes out, for a stock Lightning Trainer."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor
from torch.utils.data import DataLoader

from strm_lightning.data.episodes import EpisodeSampler
from strm_lightning.data.loaders import (
    ClipReader,
    EpisodeDataset,
    EpisodeKeys,
    EpisodeLoader,
    VideoDataset,
    align_progress,
)
from strm_lightning.data.sampling import FramePolicy
from strm_lightning.data.sources.base import LayoutOption
from strm_lightning.data.splits.split import Stage
from strm_lightning.data.transforms import ClipTransform
from strm_lightning.data.video_sets import VideoSet, load_video_sets
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
        self.videos: dict[Stage, VideoSet] = {}
        self._checked = False  # whether the videos are the same in all processes and have the frames that clips need
        self._train_loader: EpisodeLoader | None = None
        self._resume: dict[str, int] = {}
        _require(
            1,
            way=way, train_way=train_way, shot=shot, query_per_class=query_per_class, num_frames=num_frames,
            eval_query_per_class=eval_query_per_class, image_size=image_size, short_side=short_side,
            train_episodes=train_episodes, val_episodes=val_episodes, test_episodes=test_episodes,
            batch_size=batch_size, eval_batch_size=eval_batch_size,
            test_shots=min(test_shots, default=1), test_ways=min(test_ways, default=1),
        )  # fmt: skip
        _require(0, num_workers=num_workers)

    def prepare_data(self) -> None:
        """Draw the moving shapes on first use, and list and count the videos, in one process for all.

        The other processes wait here however long that takes; `setup` then gives them what was found.
        """
        if self.root in MOVING_SHAPES:
            from strm_lightning.moving_shapes import moving_shapes

            moving_shapes(**MOVING_SHAPES[self.root])
        if not self.videos and (self.trainer is None or self.trainer.is_global_zero):
            self.videos = self._load()

    def setup(self, stage: str | None = None) -> None:
        """Find the videos and check that there are enough for way, shot, queries and the frames of a clip."""
        if not self._checked:
            trainer, videos = self.trainer, self.videos
            if trainer is None or trainer.world_size == 1:
                videos = videos or self._load()
            else:
                videos = trainer.strategy.broadcast(videos)
            store = next(iter(videos.values())).store  # the same for all stages
            store.require(self.frame_policy, self.num_frames, self.transform.short_side)
            self.videos = videos
            if self.select_on == "test" and "test" in self.videos:
                self.videos["val"] = replace(self.videos["test"], stage="val")
            self._checked = True
        if stage == "fit":
            self._train_loader, self._resume = None, {}  # of an earlier run
        wanted: dict[str | None, tuple[Stage, ...]] = {
            "fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)
        }  # fmt: skip
        for name in wanted.get(stage, ()):
            if name in self.videos or name != "val":
                self._check(name)

    def _load(self) -> dict[Stage, VideoSet]:
        root, split = Path(self.root), self.split
        if self.root in MOVING_SHAPES:
            from strm_lightning.moving_shapes import SPLIT, moving_shapes

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
        if not self.videos:
            raise InputError("call data.prepare_data() and data.setup() before asking for episodes")
        if stage not in self.videos:
            self._check(stage)
        way, shot = self.settings(stage)[setting]
        return EpisodeSampler(self.videos[stage].members, way, shot, self.queries[stage], stage, self.seed)

    def reader(self, stage: Stage) -> ClipReader:
        """Reads the clips of a stage."""
        return ClipReader(self.videos[stage], self.num_frames, self.frame_policy, self.transform)

    def train_dataloader(self) -> EpisodeLoader:
        """Training episodes, other ones in each epoch; an interrupted run continues where it was.

        Episodes have no clips where the module that is being trained has an attribute ``train_views`` above 0: it then
        has features of so many views of each training video, and the episodes say which view to take.
        """
        trainer = self.trainer if self._running else None
        views = getattr(trainer.lightning_module, "train_views", 0) if trainer else 0
        reader = None if views else self.reader("train")
        self._train_loader = self._episode_loader("train", reader, self.batch_size, views=max(views, 1))
        if self._resume:
            self._train_loader.load_state_dict(self._resume)
            if trainer:
                align_progress(trainer, self._train_loader)
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

    def predict_dataloader(self) -> EpisodeLoader | list[EpisodeLoader]:
        """The episodes of the test."""
        return self.test_dataloader()

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
        self, stage: Stage, reader: ClipReader | None, batch_size: int, *, setting: int = 0, views: int = 1
    ) -> EpisodeLoader:
        trainer, number = self.trainer if self._running else None, self.episodes[stage]
        keys = EpisodeKeys(
            number,
            batch_size,
            training=stage == "train",
            rank=trainer.global_rank if trainer else None,
            world_size=trainer.world_size if trainer else None,
        )
        dataset = EpisodeDataset(self.sampler(stage, setting), reader, views=views, num_episodes=number)
        workers = self.num_workers if reader else 0  # rows alone take microseconds
        return EpisodeLoader(
            dataset,
            batch_size=batch_size,
            sampler=keys,
            source=self,
            persistent_workers=workers > 0,
            **self._workers(workers),
        )

    @property
    def _running(self) -> bool:
        """Whether a trainer is running; it stays attached afterwards."""
        return self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING

    def _workers(self, number: int) -> dict[str, Any]:
        start = self.worker_start if number else None
        pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": number, "multiprocessing_context": start, "pin_memory": pin}


def _require(least: int, **options: int | None) -> None:
    for name, value in options.items():
        if value is not None and value < least:
            wanted = "a positive number" if least else "0 or more"
            raise InputError(f"data.{name} is {value}: give {wanted}")
