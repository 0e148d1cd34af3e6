"""Encode the videos of a stage once, each process its share of them."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.utilities import CombinedLoader, rank_zero_info
from torch import Tensor, nn
from tqdm import tqdm

from strm_lightning.data.datamodule import EpisodeDataModule
from strm_lightning.data.loaders import EpisodeDataset
from strm_lightning.data.splits.split import Stage
from strm_lightning.errors import InputTypeError
from strm_lightning.evaluation.bank import DamagedBankError, FeatureBank
from strm_lightning.evaluation.fingerprint import bank_fingerprint
from strm_lightning.models.matching.base import Encoded


@dataclass(frozen=True)
class Keep:
    """Where a bank is kept for the next test, and what decides its features.

    Attributes:
        folder: folder of all banks.
        network: what encodes the clips.
        options: what else decides what the network does.
    """

    folder: Path
    network: nn.Module
    options: Mapping[str, Any]


def encode_videos(
    trainer: L.Trainer,
    stage: Stage,
    encode: Callable[[Tensor], Encoded],
    *,
    views: int = 0,
    limit_gb: float = 8.0,
    keep: Keep | None = None,
) -> FeatureBank:
    """A bank of the videos that the coming episodes of a stage name; of all of them where it is kept.

    Args:
        trainer: runs the stage, with loaders of an `EpisodeDataModule`.
        stage: whose videos.
        encode: clips ``[n, L, 3, H, W]`` on the trainer's device to their features.
        views: random views of each video; 0 for the one view of validation and test.
        limit_gb: see `FeatureBank`.
        keep: keep the bank, and take a kept one where it is of the same weights, videos and preprocessing.
    """
    rows = stage_rows(trainer, stage) if keep else coming_rows(trainer, stage)
    if keep is None:
        return _encode(trainer, stage, encode, rows, views, limit_gb)
    data, precision = datamodule_of(trainer, stage), str(trainer.precision)
    mark = bank_fingerprint(data, stage, rows, keep.network, keep.options, views=views, precision=precision)
    kept = _load(trainer, stage, path := keep.folder / f"{mark[:24]}.safetensors", mark)
    if trainer.strategy.reduce_boolean_decision(kept is not None) and kept is not None:
        _say(stage, f"{kept.describe()}, kept from an earlier run")
        return kept
    bank = _encode(trainer, stage, encode, rows, views, limit_gb)
    if trainer.is_global_zero:
        try:
            bank.save(path, mark)
        except OSError as error:
            warnings.warn(f"the bank of {stage} features could not be kept: {error}", stacklevel=2)
    return bank


def _load(trainer: L.Trainer, stage: Stage, path: Path, mark: str) -> FeatureBank | None:
    old = [folder for folder in path.parent.glob("*") if (folder / "bank.json").is_file()]
    if old:
        _say(stage, f"{len(old)} banks of version 0.1 in {path.parent} are not used; delete the folders to free space")
    try:
        return FeatureBank.load(path, mark, check=trainer.local_rank == 0)
    except DamagedBankError as error:
        warnings.warn(f"{error}; it is made again", stacklevel=2)
        return None


def _encode(
    trainer: L.Trainer, stage: Stage, encode: Callable[[Tensor], Encoded], rows: list[int], views: int, limit_gb: float
) -> FeatureBank:
    data, device = datamodule_of(trainer, stage), trainer.strategy.root_device
    bank: FeatureBank = FeatureBank(rows, views=max(views, 1), limit_gb=limit_gb)
    own = rows[trainer.global_rank :: trainer.world_size]
    # A process without videos encodes one all the same: it must know the shapes to receive the others' features.
    loader = data.video_loader(stage, own or rows[:1], views=views)
    quiet = trainer.progress_bar_callback is None or not trainer.is_global_zero
    again = trainer.sanity_checking or (stage == "val" and trainer.current_epoch > 0)
    batches = tqdm(loader, f"Encoding {stage} videos", unit="batch", leave=False, disable=quiet or None)
    with trainer.precision_plugin.forward_context():
        bank.fill(batches, encode, device=device, tell=lambda size: None if again else _say(stage, size))
    bank.share(own, device)
    return bank


def _say(stage: Stage, size: str) -> None:
    rank_zero_info(f"Bank of {stage} features: {size}")


def coming_rows(trainer: L.Trainer, stage: Stage) -> list[int]:
    """Rows of the videos that the coming episodes of a stage name, ascending; in training, all of them."""
    every = stage_rows(trainer, stage)
    if stage == "train":
        return every
    rows: set[int] = set()
    for loader, limit in zip(loaders_of(trainer, stage), _limits(trainer, stage), strict=True):
        for index in range(int(limit) * loader.batch_sampler.batch_size * trainer.world_size):
            episode, _ = loader.dataset.sampler.draw(0, index)
            rows.update(episode.support_ids.flatten().tolist(), episode.query_ids.tolist())
            if len(rows) == len(every):  # after some hundreds of ten thousand episodes
                return every
    return sorted(rows)


def _limits(trainer: L.Trainer, stage: Stage) -> Sequence[int | float]:
    """Batches that each loader of a stage will give."""
    if trainer.predicting:
        return trainer.num_predict_batches
    if trainer.sanity_checking:
        return trainer.num_sanity_val_batches
    return trainer.num_test_batches if stage == "test" else trainer.num_val_batches


def stage_rows(trainer: L.Trainer, stage: Stage) -> list[int]:
    """Rows of all videos of a stage, ascending."""
    return sorted(int(row) for member in datamodule_of(trainer, stage).videos[stage].members for row in member)


def share_buffers(network: nn.Module) -> None:
    """Give every process the buffers of the first, which are those of a checkpoint.

    In training, the batch norms of each process have seen other episodes: one bank must not mix them.
    """
    if dist.is_initialized():
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def loaders_of(trainer: L.Trainer, stage: Stage) -> list[Any]:
    """The trainer's loaders for a stage, as one list; those of a prediction while one is running."""
    if trainer.predicting:
        loaders = trainer.predict_dataloaders
    elif stage == "train":
        loaders = trainer.train_dataloader
    else:
        loaders = trainer.test_dataloaders if stage == "test" else trainer.val_dataloaders
    return CombinedLoader(loaders, "sequential").flattened


def without_clips(loader: Any) -> bool:
    """Whether a loader's episodes only name their videos, so that features must come from a bank."""
    dataset = getattr(loader, "dataset", None)
    return isinstance(dataset, EpisodeDataset) and dataset.reader is None


def source_of(trainer: L.Trainer, stage: Stage) -> EpisodeDataModule | None:
    """The data module that made the trainer's loaders for a stage; None for loaders of another origin.

    It need not be ``trainer.datamodule``, which may be of an earlier run, or absent where loaders were passed.
    """
    sources = [getattr(loader, "source", None) for loader in loaders_of(trainer, stage)]
    first = sources[0] if sources else None
    return first if isinstance(first, EpisodeDataModule) and all(source is first for source in sources) else None


def datamodule_of(trainer: L.Trainer, stage: Stage) -> EpisodeDataModule:
    """As `source_of`.

    Raises:
        InputTypeError: the loaders are not of one `EpisodeDataModule`.
    """
    data = source_of(trainer, stage)
    if data is None:
        raise InputTypeError(
            "episodes without clips need a bank of features, which takes the loaders of one EpisodeDataModule: pass "
            "datamodule=EpisodeDataModule(...) to the trainer, or give episodes with clips"
        )
    return data
