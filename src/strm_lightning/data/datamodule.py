"""LightningDataModule of N-way K-shot episodes from a folder of videos."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor
from torch.utils.data import DataLoader

from strm_lightning.data.detect import list_videos
from strm_lightning.data.episodes import EpisodeGenerator
from strm_lightning.data.loaders import (
    ClipReader,
    CountingVideoDataset,
    EpisodeDataset,
    EpisodeLoader,
    EpisodeSampler,
    VideoDataset,
    align_progress,
)
from strm_lightning.data.sampling import FRAME_STRIDE, FramePolicy, check_dense
from strm_lightning.data.sources.base import LayoutOption, Listing
from strm_lightning.data.splits.stages import STAGES, Stage
from strm_lightning.data.transforms import ClipTransform
from strm_lightning.data.video_sets import VideoSet, load_video_sets
from strm_lightning.errors import InputError
from strm_lightning.messages import check_not_negative, check_positive

WorkerStart = Literal["fork", "spawn", "forkserver"]

MOVING_SHAPES: dict[str, dict[str, Any]] = {
    "moving-shapes": {"clutter": 0.2, "clips_per_class": 16},
    "moving-shapes-cluttered": {},
}


class EpisodeDataModule(L.LightningDataModule):
    """Few-shot episodes from videos, with disjoint classes in training, validation and test.

    An episode is a pure function of (seed, stage, epoch, index): it is the same for any number of workers and ranks and
    after a restart. Clips are uint8; the model normalises them.

    Args:
        root: folder of videos, ``root/class/video.mp4``, or ``moving-shapes`` or ``moving-shapes-cluttered`` for the
            data set of the package, with little clutter or with as much as in real clips.
        split: ``random`` (seeded shares by class), shares such as ``{train: 0.6, val: 0.2, test: 0.2}``, class names of
            each stage, the name of a published split, or a folder of list files.
        lists: folder of list files, for published splits that are by video.
        layout: layout of the videos under ``root``; ``auto`` detects it.
        way: classes of an episode, N.
        train_way: classes of a training episode; None for ``way``. A larger number makes training harder.
        shot: support clips of a class, K.
        query_per_class: query clips of a class in training.
        eval_query_per_class: query clips of a class in validation and test; None for ``query_per_class``.
        num_frames: frames of a clip, L.
        image_size: height and width of a clip in pixels, after the crop.
        short_side: short side of the frames before the crop, in pixels; None for ``image_size`` x 256 / 224.
        frame_policy: how the frames of a clip are chosen; ``segments`` uses one frame of each of L equal segments,
            ``release`` the frames of the official code, ``dense`` runs of consecutive frames for video backbones.
        num_segments: segments of a clip: the runs of ``dense``, which a video backbone encodes separately; it divides
            ``num_frames``.
        frame_stride: step between the frames of a run of ``dense``.
        flip: mirror training clips at random; wrong if classes name directions (Something-Something).
        short_clips: for videos with fewer than L frames, ``repeat`` frames or ``drop`` the video.
        unreadable: ``skip`` unreadable videos with a warning, or ``refuse`` them with an error.
        train_episodes: training episodes of an epoch, over all ranks.
        val_episodes: validation episodes, the same in each epoch.
        test_episodes: test episodes.
        batch_size: episodes of a training step on one device.
        eval_batch_size: episodes of a step in validation and test.
        num_workers: number of processes that read clips.
        worker_start: start method of these processes, ``fork``, ``spawn`` or ``forkserver``; None for the default.
        seed: seed of the episodes.
        split_seed: seed of a random split, separate from ``seed`` so that runs with other seeds have the same classes.
        select_on: classes of validation, by which the checkpoint is chosen: ``val``, or ``test`` as in the official
            code, which biases the test accuracy and is written on the protocol card.
        test_shots: numbers of support clips of additional tests, all from one bank.
        test_ways: numbers of classes of additional tests.
        evaluation: ``bank`` encodes each video once and matches all episodes from these features; ``episodes`` encodes
            the clips of each episode, with the same results in more time.

    Raises:
        InputError: an option is out of range, or (in `setup`) the videos are too few for the episodes.
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
        num_segments: int = 1,
        frame_stride: int = FRAME_STRIDE,
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
        self.num_segments, self.frame_stride = num_segments, frame_stride
        self.short_clips, self.unreadable = short_clips, unreadable
        self.transform = ClipTransform(image_size, short_side or 0, flip)
        self.num_workers, self.worker_start = num_workers, worker_start
        self.seed, self.split_seed = seed, split_seed
        self.select_on, self.evaluation = select_on, evaluation
        self.hparams["test_shots"], self.hparams["test_ways"] = list(test_shots), list(test_ways)
        others = [(n, k) for n in test_ways or (way,) for k in test_shots or (shot,)]
        self.test_settings = list(dict.fromkeys([(way, shot), *others]))  # (way, shot), the main one first
        self.videos: dict[Stage, VideoSet] = {}
        self.call: str | None = None  # the trainer's call that follows; only `strm` sets it, before it has a trainer
        self._checked = False  # whether the videos are the same in all processes and support the frame policy
        self._train_loader: EpisodeLoader | None = None
        self._resume: dict[str, int] = {}
        check_positive(
            way=way, train_way=train_way, shot=shot, query_per_class=query_per_class, num_frames=num_frames,
            eval_query_per_class=eval_query_per_class, image_size=image_size, short_side=short_side,
            train_episodes=train_episodes, val_episodes=val_episodes, test_episodes=test_episodes,
            batch_size=batch_size, eval_batch_size=eval_batch_size,
            test_shots=min(test_shots, default=1), test_ways=min(test_ways, default=1),
        )  # fmt: skip
        check_not_negative(num_workers=num_workers)
        check_dense(num_frames, num_segments, frame_stride)
        if frame_policy != "dense" and frame_stride != FRAME_STRIDE:
            raise InputError(
                f"frame_stride {frame_stride} has no effect with frame_policy {frame_policy!r}; use 'dense'"
            )

    def prepare_data(self) -> None:
        """Draw the moving shapes on first use, and list and count the videos, in one process.

        The other processes wait without a time limit; `setup` sends the result to them.
        """
        if self.root in MOVING_SHAPES:
            from strm_lightning.moving_shapes import moving_shapes

            moving_shapes(**MOVING_SHAPES[self.root])
        if self._outdated and (self.trainer is None or self.trainer.is_global_zero):
            self.videos, self._checked = self._load(), False

    def setup(self, stage: str | None = None) -> None:
        """Load the videos, and check that they are enough for way, shot, queries and the frames of a clip.

        Raises:
            InputError: they are not, or root and split do not match.
        """
        if not self._checked or self._outdated:
            trainer, videos = self.trainer, self.videos
            if trainer is None or trainer.world_size == 1:
                videos = self._load() if self._outdated else videos
            else:
                videos = trainer.strategy.broadcast(videos)
            store = next(iter(videos.values())).store  # the same for all stages
            store.check_supports(self.frame_policy, self.num_frames, self.transform.short_side)
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

    def count_frames(self, stage: Stage, known: Mapping[str, int]) -> None:
        """Load the videos again, with counted frames in place of the estimates of a stage; all processes call it.

        Args:
            stage: the stage.
            known: number of frames of each video that has been read to its end, by name; the others are counted.

        Raises:
            InputError: the videos that can be read are too few, see `setup`.
        """
        if self.trainer is None or self.trainer.is_global_zero:
            self.videos = self._load(["test" if stage == "val" and self.select_on == "test" else stage], known)
        self._checked = False
        self.setup(self.trainer.state.fn if self.trainer else None)

    @property
    def _outdated(self) -> bool:
        """Whether the videos are not loaded, or with estimates and other readers than a bank follow."""
        return not self.videos or not (self._only_bank or all(videos.exact for videos in self.videos.values()))

    @property
    def _only_bank(self) -> bool:
        """Whether only a feature bank reads clips: it checks the numbers of frames itself, see `encode_videos`.

        A fit needs all numbers before it begins: training reads clips in episodes, random views depend on the row of
        the video, and damage should not be found after hours.
        """
        call = self.trainer.state.fn if self.trainer and self._running else self.call
        usual = (self.evaluation, self.unreadable, self.short_clips) == ("bank", "skip", "repeat")
        return usual and call in ("validate", "test", "predict")

    def list_videos(self, root: Path) -> Listing:
        """List the videos under a root; override it for a layout of your own.

        Args:
            root: folder or zip of the option ``root``.

        Returns:
            The names and paths of the videos. Its methods count their frames and open a store that reads them.
        """
        return list_videos(root, self.layout)

    def _load(self, counted: Sequence[Stage] = (), known: Mapping[str, int] | None = None) -> dict[Stage, VideoSet]:
        root, split = Path(self.root).expanduser(), self.split
        if self.root in MOVING_SHAPES:
            from strm_lightning.moving_shapes import SPLIT, moving_shapes

            root = moving_shapes(**MOVING_SHAPES[self.root])
            split = {stage: list(names) for stage, names in SPLIT.items()} if split == "random" else split
        listing = self.list_videos(root)
        if known:
            listing.record(known)
        return load_video_sets(
            root,
            split,
            lists=self.lists,
            listing=listing,
            num_frames=self.num_frames,
            short_clips=self.short_clips,
            unreadable=self.unreadable,
            seed=self.split_seed,
            exact=counted if self._only_bank else STAGES,
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
        """Return the (way, shot) of a stage; test may have several, the main one first."""
        if stage == "test":
            return self.test_settings
        return [(self.train_way if stage == "train" else self.way, self.shot)]

    def generator(self, stage: Stage, setting: int = 0) -> EpisodeGenerator:
        """Return the episode generator of a stage, for one of its `settings`."""
        if not self.videos:
            raise InputError("call data.prepare_data() and data.setup() first")
        if stage not in self.videos:
            self._check(stage)
        way, shot = self.settings(stage)[setting]
        return EpisodeGenerator(self.videos[stage].members, way, shot, self.queries[stage], stage, self.seed)

    def reader(self, stage: Stage) -> ClipReader:
        """Return the clip reader of a stage."""
        return ClipReader(
            self.videos[stage],
            self.num_frames,
            self.frame_policy,
            self.transform,
            num_segments=self.num_segments,
            frame_stride=self.frame_stride,
        )

    def train_dataloader(self) -> EpisodeLoader:
        """Return the loader of training episodes, which differ in each epoch; a resumed run continues its epoch.

        If the trained module has an attribute ``train_views`` above 0, it has features of this number of views of each
        training video: episodes then have no clips, but the views to use.
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
        """Return the state of the training loader, for a checkpoint.

        Lightning can save the state of the loader itself, but restores it after a schedule has counted the steps.
        """
        return self._train_loader.state_dict() if self._train_loader else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue training from a `state_dict`."""
        self._resume = state_dict

    def val_dataloader(self) -> EpisodeLoader | list[EpisodeLoader]:
        """Return the loader of validation episodes; an empty list if the split has no validation classes."""
        return self._evaluation_loader("val") if "val" in self.videos else []

    def test_dataloader(self) -> EpisodeLoader | list[EpisodeLoader]:
        """Return the loader of test episodes, or a list of one for each of several settings."""
        loaders = [self._evaluation_loader("test", setting) for setting in range(len(self.test_settings))]
        return loaders[0] if len(loaders) == 1 else loaders

    def predict_dataloader(self) -> EpisodeLoader | list[EpisodeLoader]:
        """Return the loaders of `test_dataloader`."""
        return self.test_dataloader()

    def video_loader(
        self, stage: Stage, rows: Iterable[int], *, views: int = 0, counting: bool = False
    ) -> DataLoader[tuple[Tensor, ...]]:
        """Return a loader of clips for a feature bank, ``((row, view), clip)``.

        Args:
            stage: stage of the videos.
            rows: rows of the videos in the store.
            views: number of random views of each video; 0 for one view with the frames and crop of test.
            counting: return the numbers of frames too, and 0 for damaged videos; see `CountingVideoDataset`.
        """
        kind = CountingVideoDataset if counting else VideoDataset
        items = [(row, view) for row in rows for view in range(max(views, 1))]
        dataset = kind(self.reader(stage), items, seed=self.seed if views else None)
        return DataLoader(dataset, batch_size=max(1, 64 // self.num_frames), **self._workers(self.num_workers))

    def _evaluation_loader(self, stage: Stage, setting: int = 0) -> EpisodeLoader:
        reader = self.reader(stage) if self.evaluation == "episodes" else None
        batch_size = self.eval_batch_size if reader is None else self.batch_size
        return self._episode_loader(stage, reader, batch_size, setting=setting)

    def _episode_loader(
        self, stage: Stage, reader: ClipReader | None, batch_size: int, *, setting: int = 0, views: int = 1
    ) -> EpisodeLoader:
        trainer, number = self.trainer if self._running else None, self.episodes[stage]
        keys = EpisodeSampler(
            number,
            batch_size,
            training=stage == "train",
            rank=trainer.global_rank if trainer else None,
            world_size=trainer.world_size if trainer else None,
        )
        dataset = EpisodeDataset(self.generator(stage, setting), reader, views=views, num_episodes=number)
        workers = self.num_workers if reader else 0  # drawing episodes without clips takes microseconds
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
        """Whether the trainer is running; it remains attached afterwards."""
        return self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING

    def _workers(self, number: int) -> dict[str, Any]:
        start = self.worker_start if number else None
        pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": number, "multiprocessing_context": start, "pin_memory": pin}
