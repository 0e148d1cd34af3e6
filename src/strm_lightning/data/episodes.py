"""Episodes as a pure function of (seed, stage, epoch, index), and the data sets that hand them out.

Workers, ranks, restarts and machines give the same episodes because nothing but those four numbers is asked.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from strm_lightning.data.frames import FramePolicy, select_frames
from strm_lightning.data.splits import Stage
from strm_lightning.data.store import VideoSet
from strm_lightning.data.transforms import ClipTransform
from strm_lightning.episode import Episode

EpisodeKey = tuple[int, int]  # epoch, index


@dataclass(frozen=True)
class EpisodeSampler:
    """Draw classes, then clips: ``way`` classes, and ``shot`` + ``query_per_class`` different clips of each.

    Nothing is scanned: a draw costs the same for 60 videos and for 200,000.

    Args:
        members: rows of each class's videos, one array a class.
        way: classes of an episode, N.
        shot: support clips of a class, K.
        query_per_class: query clips of a class; Q is ``way`` times as many.
        stage: ``train`` draws new episodes in each epoch; ``val`` and ``test`` always the same ones.
        seed: another seed gives other episodes.
    """

    members: Sequence[np.ndarray]
    way: int
    shot: int
    query_per_class: int
    stage: Stage
    seed: int = 0

    def draw(self, epoch: int, index: int) -> tuple[Episode, Random]:
        """The episode, as rows of videos without clips, and the generator for whatever else is random in it."""
        rng = Random(f"{self.seed}/{self.stage}/{epoch if self.stage == 'train' else 0}/{index}")
        classes = rng.sample(range(len(self.members)), self.way)
        clips = self.shot + self.query_per_class
        picks = [[int(self.members[c][i]) for i in rng.sample(range(len(self.members[c])), clips)] for c in classes]
        rows = torch.tensor(picks)
        support, query = rows[:, : self.shot], rows[:, self.shot :].flatten()
        episode = Episode(
            support_ids=support,
            query_ids=query,
            query_labels=torch.arange(self.way).repeat_interleave(self.query_per_class),
            class_ids=torch.tensor(classes),
            index=torch.tensor(index),
            support_views=torch.zeros_like(support),
            query_views=torch.zeros_like(query),
        )
        return episode, rng


@dataclass(frozen=True)
class ClipReader:
    """Read clips of a video set: choose the frames, decode them, cut them out.

    Args:
        videos: where clips come from.
        num_frames: frames of a clip, L.
        policy: which frames; see `select_frames`.
        transform: how they are resized, cropped and flipped.
    """

    videos: VideoSet
    num_frames: int
    policy: FramePolicy
    transform: ClipTransform

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of a clip, ``L, 3, H, W``."""
        return (self.num_frames, 3, self.transform.image_size, self.transform.image_size)

    def read(self, row: int, rng: Random | None, out: UInt8[Tensor, "L 3 H W"]) -> None:
        """Write the clip of a row into ``out``; with a generator the training choice, without one the test choice."""
        available = int(self.videos.store.frame_counts[row])
        frames = select_frames(self.policy, available, self.num_frames, rng)
        self.transform(self.videos.store.read(row, frames), rng, out)


class EpisodeDataset(Dataset[Episode]):
    """Episodes by their keys (epoch, index), several at once with a leading axis ``B``.

    Args:
        sampler: draws the episodes.
        reader: reads their clips, or None where features come from a bank and no pixels are wanted.
        views: stored views of each training video that a bank holds.
    """

    def __init__(self, sampler: EpisodeSampler, reader: ClipReader | None, *, views: int = 1) -> None:
        self.sampler, self.reader, self.views = sampler, reader, views

    def __getitem__(self, key: EpisodeKey) -> Episode:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[EpisodeKey]) -> Episode:
        drawn = [self.sampler.draw(*key) for key in keys]
        episodes = Episode.stack([episode for episode, _ in drawn])
        rngs = [rng if self.sampler.stage == "train" else None for _, rng in drawn]
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
    """Single clips by (row, view), for a feature bank: the row, and the clip ``[L, 3, H, W]``.

    Args:
        reader: reads the clips.
        items: (row, view) of each clip.
        seed: chooses the random view of a training video; None for the test choice of frames and crop.
    """

    def __init__(self, reader: ClipReader, items: Sequence[tuple[int, int]], *, seed: int | None = None) -> None:
        self.reader, self.items, self.seed = reader, items, seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        row, view = self.items[item]
        clip = torch.empty(self.reader.shape, dtype=torch.uint8)
        self.reader.read(row, None if self.seed is None else Random(f"{self.seed}/view/{row}/{view}"), clip)
        return torch.tensor((row, view)), clip


class EpisodeKeys(DistributedSampler[EpisodeKey]):
    """This rank's keys of an epoch.

    Rank r of R takes the indices r, r + R, ...; none is taken twice. Training leaves out a remainder; validation and
    test add episodes beyond ``num_episodes``, which the metrics do not count, so that all ranks do the same steps.

    It is a `DistributedSampler` so that Lightning does not put its own around it.

    Args:
        num_episodes: episodes of an epoch, over all ranks.
        batch_size: episodes of a step on one rank.
        training: leave out a remainder instead of adding to it.
        rank: this process.
        world_size: all processes.

    Attributes:
        resume: (epoch, steps) already done of an epoch that was cut off; that epoch goes on behind them.
    """

    def __init__(
        self,
        num_episodes: int,
        batch_size: int = 1,
        *,
        training: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.rank, self.num_replicas, self.epoch = rank, world_size, 0
        step = world_size * batch_size
        steps = num_episodes // step if training else -(-num_episodes // step)
        self.num_samples = steps * batch_size
        self.batch_size = batch_size
        self.resume = (0, 0)

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[EpisodeKey]:
        epoch, steps = self.resume
        for i in range(steps * self.batch_size if epoch == self.epoch else 0, self.num_samples):
            yield self.epoch, i * self.num_replicas + self.rank


class EpisodeLoader(DataLoader[Episode]):
    """Batches of episodes, from where a run was cut off: Lightning keeps ``state_dict`` in its checkpoints.

    Args:
        dataset: makes whole batches.
        keys: which episodes, and how many in a batch.
        **options: of `torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: EpisodeDataset, keys: EpisodeKeys, **options: Any) -> None:
        super().__init__(dataset, keys.batch_size, sampler=keys, collate_fn=_as_is, **options)
        self.keys, self.steps = keys, 0

    def __iter__(self) -> Any:
        epoch, steps = self.keys.resume
        self.steps = steps if epoch == self.keys.epoch else 0
        for batch in super().__iter__():
            self.steps += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch, and the steps of it that have been handed out."""
        return {"epoch": self.keys.epoch, "steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the steps of a `state_dict`."""
        self.keys.resume = state["epoch"], state["steps"]


def _as_is(episodes: Any) -> Any:
    """`EpisodeDataset` makes whole batches."""
    return episodes


def shared_empty(shape: tuple[int, ...]) -> UInt8[Tensor, "..."]:
    """An empty uint8 tensor, in shared memory inside a worker, so that it reaches the main process without a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    # As torch's own collate does it; `share_memory_` would copy what is not there yet, at twice the cost of an episode.
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
