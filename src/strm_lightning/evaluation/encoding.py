"""Encode the videos of a stage once, each process its share of them."""

from collections.abc import Callable
from typing import TypeVar, cast

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from tqdm import tqdm

from strm_lightning.data.datamodule import EpisodeDataModule
from strm_lightning.data.splits import Stage
from strm_lightning.episode import PooledMaps, TupleFeatures
from strm_lightning.evaluation.bank import FeatureBank

Group = TypeVar("Group", PooledMaps, TupleFeatures)


def encode_videos(
    trainer: L.Trainer, stage: Stage, encode: Callable[[Tensor], Group], *, views: int = 0, limit_gb: float
) -> FeatureBank[Group]:
    """A bank of the videos that the coming episodes of a stage name.

    Args:
        trainer: runs the stage, with an `EpisodeDataModule`.
        stage: whose videos.
        encode: clips ``[n, L, 3, H, W]`` on the trainer's device to their features.
        views: random views of each video; 0 for the one view of validation and test.
        limit_gb: see `FeatureBank`.
    """
    data, device = datamodule_of(trainer), trainer.strategy.root_device
    rows = coming_rows(trainer, stage)
    bank: FeatureBank[Group] = FeatureBank(rows, views=max(views, 1), limit_gb=limit_gb)
    own = rows[trainer.global_rank :: trainer.world_size]
    # A process without videos encodes one all the same: it must know the shapes to receive the others' features.
    loader = data.video_loader(stage, own or rows[:1], views=views)
    quiet = trainer.progress_bar_callback is None or not trainer.is_global_zero
    for batch in tqdm(loader, f"Encoding {stage} videos", unit="batch", leave=False, disable=quiet or None):
        first = bank.group is None
        bank.fill([batch], encode, device=device)
        if first and not trainer.sanity_checking and not (stage == "val" and trainer.current_epoch):
            rank_zero_info(f"Bank of {stage} features: {bank.describe()}")
    bank.share(own, device)
    return bank


def coming_rows(trainer: L.Trainer, stage: Stage) -> list[int]:
    """Rows of the videos that the coming episodes of a stage name, ascending; in training, all of them."""
    data = datamodule_of(trainer)
    if stage == "train":
        return sorted(int(row) for member in data.videos[stage].members for row in member)
    batches = trainer.num_test_batches if stage == "test" else trainer.num_val_batches
    limits = trainer.num_sanity_val_batches if trainer.sanity_checking else batches
    rows: set[int] = set()
    for setting, limit in enumerate(limits):
        sampler = data.sampler(stage, setting)
        for index in range(int(limit) * data.eval_batch_size * trainer.world_size):
            episode, _ = sampler.draw(0, index)
            rows.update(episode.support_ids.flatten().tolist(), episode.query_ids.tolist())
    return sorted(rows)


def datamodule_of(trainer: L.Trainer) -> EpisodeDataModule:
    """The trainer's data module.

    Raises:
        TypeError: it has none of ours.
    """
    data = cast("object", getattr(trainer, "datamodule", None))
    if not isinstance(data, EpisodeDataModule):
        raise TypeError("banks, validation and test need trainer.fit(module, datamodule=EpisodeDataModule(...))")
    return data
