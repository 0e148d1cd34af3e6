"""Datasets, samplers and loaders of episodes and clips."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from strm_lightning.data.decode.video import VideoError
from strm_lightning.data.episodes import EpisodeGenerator, EpisodeKey
from strm_lightning.data.sampling import FRAME_STRIDE, FramePolicy, select_frames
from strm_lightning.data.transforms import ClipTransform
from strm_lightning.data.video_sets import VideoSet
from strm_lightning.episode import Episode


@dataclass(frozen=True)
class ClipReader:
    """Read clips of a video set: choose frames, decode and transform them.

    Args:
        videos: the video set.
        num_frames: frames of a clip, L.
        policy: policy that chooses the frames; see `select_frames`.
        transform: resize, crop and flip.
        num_segments: runs of consecutive frames of the policy ``dense``.
        frame_stride: step between the frames of a run of ``dense``.
    """

    videos: VideoSet
    num_frames: int
    policy: FramePolicy
    transform: ClipTransform
    num_segments: int = 1
    frame_stride: int = FRAME_STRIDE

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of a clip, ``L, 3, H, W``."""
        return (self.num_frames, 3, self.transform.image_size, self.transform.image_size)

    def read(self, row: int, rng: Random | None, out: UInt8[Tensor, "L 3 H W"]) -> int:
        """Write the clip of a row into ``out``; return the number of frames of the video.

        Args:
            row: row of the video in the store.
            rng: generator for the frames, crop and flip of training; None for the deterministic ones of test.
            out: tensor to write to.

        Raises:
            VideoError: the video cannot be read.
        """
        choose = partial(self._choose, rng, rng.getstate() if rng else None)
        frames, available = self.videos.store.read_chosen(row, choose)
        self.transform(frames, rng, out)
        return available

    def _choose(self, rng: Random | None, state: Any, available: int) -> list[int]:
        """Choose frames from the random state at the start: an earlier call may have been for a wrong estimate."""
        if rng is not None:
            rng.setstate(state)
        runs = {"num_segments": self.num_segments, "frame_stride": self.frame_stride}
        return select_frames(self.policy, available, self.num_frames, rng, **runs)


class EpisodeDataset(Dataset[Episode]):
    """Episodes by key (epoch, index); a list of keys gives a batch with a leading axis ``B``.

    An index alone means epoch 0, so samplers other than `EpisodeSampler` give the same episodes in each epoch.

    Args:
        generator: draws the episodes.
        reader: reads the clips; None for episodes without clips, whose features come from a bank.
        views: number of views of each training video in the bank.
        num_episodes: episodes of an epoch.
    """

    def __init__(
        self, generator: EpisodeGenerator, reader: ClipReader | None, *, views: int = 1, num_episodes: int = 1000
    ) -> None:
        self.generator, self.reader, self.views, self.num_episodes = generator, reader, views, num_episodes

    def __len__(self) -> int:
        return self.num_episodes

    def __getitem__(self, key: EpisodeKey | int) -> Episode:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[EpisodeKey | int]) -> Episode:
        drawn = [self.generator.draw(*(key if isinstance(key, tuple) else (0, key))) for key in keys]
        episodes = Episode.stack([episode for episode, _ in drawn])
        rngs = [rng if self.generator.stage == "train" else None for _, rng in drawn]
        if self.reader is None:
            return self._choose_views(episodes, rngs) if self.views > 1 else episodes
        clips = {name: self._read(self.reader, getattr(episodes, f"{name}_ids"), rngs) for name in ("support", "query")}
        return Episode(**vars(episodes) | clips)

    def _read(self, reader: ClipReader, rows: Int[Tensor, "B ..."], rngs: Sequence[Random | None]) -> Tensor:
        clips = shared_empty((*rows.shape, *reader.shape))
        for episode_rows, rng, out in zip(rows, rngs, clips, strict=True):
            for row, clip in zip(episode_rows.flatten().tolist(), out.flatten(0, -5), strict=True):
                reader.read(row, rng, clip)
        return clips

    def _choose_views(self, episodes: Episode, rngs: Sequence[Random | None]) -> Episode:
        def choose(rows: Tensor) -> Tensor:
            picks = [[rng.randrange(self.views) if rng else 0 for _ in range(rows[0].numel())] for rng in rngs]
            return torch.tensor(picks).view_as(rows)

        chosen = {"support_views": choose(episodes.support_ids), "query_views": choose(episodes.query_ids)}
        return Episode(**vars(episodes) | chosen)


class VideoDataset(Dataset[tuple[Tensor, Tensor]]):
    """Single clips for a feature bank, as ``(row, view)`` and ``[L, 3, H, W]``.

    Args:
        reader: reads the clips.
        items: (row, view) of each clip.
        seed: seed of the random views of training videos; None for the frames and crop of test.
    """

    def __init__(self, reader: ClipReader, items: Sequence[tuple[int, int]], *, seed: int | None = None) -> None:
        self.reader, self.items, self.seed = reader, items, seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        clip = torch.empty(self.reader.shape, dtype=torch.uint8)
        self._read(item, clip)
        return torch.tensor(self.items[item]), clip

    def _read(self, item: int, out: UInt8[Tensor, "L 3 H W"]) -> int:
        row, view = self.items[item]
        return self.reader.read(row, None if self.seed is None else Random(f"{self.seed}/view/{row}/{view}"), out)


class CountingVideoDataset(VideoDataset):
    """Clips of videos whose numbers of frames are estimates, as ``(row, view)``, ``[L, 3, H, W]`` and the true number.

    For a video that cannot be read, the number is 0 and the clip is black.
    """

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor, int]:  # type: ignore[override]
        clip = torch.zeros(self.reader.shape, dtype=torch.uint8)
        try:
            number = self._read(item, clip)
        except VideoError:
            number = 0
        return torch.tensor(self.items[item]), clip, number


class EpisodeSampler(DistributedSampler[EpisodeKey]):
    """Sampler of the keys (epoch, index) of an epoch for one rank.

    Rank r of R gets the indices r, r + R, ... without repeats. All ranks have the same number of steps: training drops
    the remainder; validation and test add episodes beyond ``num_episodes``, which the metrics ignore.

    Each iteration is a new epoch: the first one is epoch 0, or the epoch of the last `set_epoch`, which Lightning calls
    before each epoch.

    It is a `DistributedSampler`, so that Lightning does not replace it.

    Args:
        num_episodes: episodes of an epoch, over all ranks.
        batch_size: episodes of a step on one rank.
        training: drop the remainder instead of adding episodes.
        rank: rank of this process; None to read it from `torch.distributed` on first use.
        world_size: number of processes; None to read it from `torch.distributed`.

    Attributes:
        begun: whether the current epoch has been iterated over.
        resume: epoch of an interrupted run, and its completed episodes over all ranks; that epoch continues after them.
    """

    def __init__(
        self,
        num_episodes: int,
        batch_size: int = 1,
        *,
        training: bool,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.num_episodes, self.batch_size, self.training = num_episodes, batch_size, training
        self._rank, self._world_size = rank, world_size
        self.epoch, self.begun = 0, False
        self.resume = (0, 0)

    @property
    def rank(self) -> int:  # type: ignore[override]  # unknown before the processes are connected
        """Rank of this process."""
        if self._rank is None:
            return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return self._rank

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """Number of processes."""
        if self._world_size is None:
            return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        return self._world_size

    @property
    def step_episodes(self) -> int:
        """Episodes of one step, over all ranks."""
        return self.batch_size * self.num_replicas

    def steps(self, done: int = 0) -> int:
        """Return the number of steps of an epoch after its first ``done`` episodes."""
        left = max(self.num_episodes - done, 0)
        return left // self.step_episodes if self.training else -(-left // self.step_episodes)

    @property
    def start(self) -> int:
        """Episodes of the current epoch that an interrupted run completed."""
        epoch, episodes = self.resume
        return episodes if epoch == self.epoch else 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch, self.begun = epoch, False

    def __len__(self) -> int:
        return self.steps() * self.batch_size

    def __iter__(self) -> Iterator[EpisodeKey]:
        if self.begun:
            self.epoch += 1
        self.begun = True
        epoch, start = self.epoch, self.start
        for i in range(self.steps(start) * self.batch_size):
            yield epoch, start + i * self.num_replicas + self.rank


class EpisodeLoader(DataLoader[Episode]):
    """Batches of episodes; each iteration is a new epoch, and training can continue from a `state_dict`.

    Lightning creates loaders again from the arguments of their constructor (``overfit_batches``, ``trainer.predict``),
    so this one accepts all arguments of `torch.utils.data.DataLoader`.

    Args:
        dataset: dataset that returns whole batches.
        batch_size: episodes of a batch.
        sampler: sampler of the keys; None for an `EpisodeSampler` of all episodes of ``dataset``.
        source: the data module of the loader, whose videos are encoded for episodes without clips.
        **options: options of `torch.utils.data.DataLoader`.

    Attributes:
        keys: the `EpisodeSampler`; None if Lightning has replaced it.
        resized: whether it continues a run with another number of episodes in a step.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        *,
        batch_size: int | None = 1,
        sampler: Any = None,
        batch_sampler: Any = None,
        collate_fn: Any = None,
        source: Any = None,
        **options: Any,
    ) -> None:
        if sampler is None and batch_sampler is None:
            training = dataset.generator.stage == "train"
            sampler = EpisodeSampler(len(dataset), batch_size or 1, training=training)
        super().__init__(
            dataset,
            batch_size,
            sampler=sampler,
            batch_sampler=batch_sampler,
            collate_fn=collate_fn or _identity,
            **options,
        )
        drawn = sampler if batch_sampler is None else getattr(batch_sampler, "sampler", None)
        self.keys = drawn if isinstance(drawn, EpisodeSampler) else None
        self.source, self.resized = source, False
        self._done = 0

    def __iter__(self) -> Any:
        # A generator function, since Lightning sets the epoch after it has created the iterator.
        for number, batch in enumerate(super().__iter__()):
            if self.keys is not None:
                self._done = (self._done if number else self.keys.start) + self.keys.step_episodes
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, its completed episodes over all ranks, and the episodes of a step.

        An epoch is complete if the remaining episodes are too few for a step.
        """
        if self.keys is None:
            return {}
        done = self._done if self.keys.begun else self.keys.start
        done = done if self.keys.steps(done) else self.keys.num_episodes
        return {"epoch": self.keys.epoch, "episodes": done, "step_episodes": self.keys.step_episodes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the completed episodes of a `state_dict`; batch size and number of processes may differ.

        A state of version 0.1 counts steps, which are assumed to have the batch size and processes of this loader.
        """
        if self.keys is None or "epoch" not in state:
            return
        keys, epoch, step = self.keys, state["epoch"], self.keys.step_episodes
        done = state["episodes"] if "episodes" in state else state["steps"] * step
        self.resized = state.get("step_episodes", step) != step
        keys.resume = epoch, done
        keys.set_epoch(epoch if keys.steps(done) else epoch + 1)


def align_progress(trainer: L.Trainer, loader: object) -> None:
    """Convert the batch progress of an interrupted epoch to the current number of episodes in a step.

    Lightning restores the number of batches, and ends an epoch by it. Without this, a run that continues with another
    batch size or number of processes ends its epoch too early, or without validation.

    Args:
        trainer: the trainer, whose progress is changed in place.
        loader: the training loader, after `EpisodeLoader.load_state_dict`.
    """
    if not (isinstance(loader, EpisodeLoader) and loader.keys is not None and loader.resized):
        return
    progress, keys = trainer.fit_loop.epoch_loop.batch_progress, loader.keys
    left = 0 if progress.is_last_batch else keys.steps(keys.resume[1])
    progress.is_last_batch = left == 0
    shift = keys.steps() - left - progress.current.ready
    for name in ("ready", "started", "processed", "completed"):
        setattr(progress.current, name, getattr(progress.current, name) + shift)


def _identity(episodes: Any) -> Any:
    return episodes  # `EpisodeDataset` returns whole batches


def shared_empty(shape: tuple[int, ...]) -> UInt8[Tensor, "..."]:
    """Return an empty uint8 tensor; in a worker it is in shared memory, to reach the main process without a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    # As in torch's `default_collate`. `share_memory_` copies the empty tensor, which doubles the time of an episode.
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
