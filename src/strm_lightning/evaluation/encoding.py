"""Encode the videos of a stage into a feature bank, distributed over processes."""

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
from strm_lightning.data.splits.stages import Stage
from strm_lightning.errors import InputTypeError
from strm_lightning.evaluation.bank import DamagedBankError, FeatureBank
from strm_lightning.evaluation.fingerprint import bank_fingerprint
from strm_lightning.models.matching.base import Encoded


@dataclass(frozen=True)
class Keep:
    """Folder to keep a bank in, and the inputs of its fingerprint.

    Attributes:
        folder: folder of the banks.
        network: module that encodes the clips.
        options: options that change the features and are not part of the weights.
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
    """Encode the videos of the coming episodes of a stage; with ``keep``, all videos of the stage.

    Args:
        trainer: a running trainer with the loaders of an `EpisodeDataModule`.
        stage: the stage.
        encode: computes the features of clips ``[n, L, 3, H, W]`` on the trainer's device.
        views: number of random views of each video; 0 for the view of validation and test.
        limit_gb: see `FeatureBank`.
        keep: save the bank, or load a saved one with the same weights, videos and preprocessing.

    Raises:
        InputTypeError: the loaders are not of one `EpisodeDataModule`.
        InputError: the bank is too large, see `FeatureBank.plan`.
    """
    rows = stage_rows(trainer, stage) if keep else coming_rows(trainer, stage)
    if keep is None:
        return _encode(trainer, stage, encode, rows, views, limit_gb)
    data, precision = datamodule_of(trainer, stage), str(trainer.precision)
    fingerprint = bank_fingerprint(data, stage, rows, keep.network, keep.options, views=views, precision=precision)
    kept = _load(trainer, stage, path := keep.folder / f"{fingerprint[:24]}.safetensors", fingerprint)
    if trainer.strategy.reduce_boolean_decision(kept is not None) and kept is not None:
        _log(stage, f"{kept.describe()}, from an earlier run")
        return kept
    bank = _encode(trainer, stage, encode, rows, views, limit_gb)
    if trainer.is_global_zero:
        try:
            bank.save(path, fingerprint)
        except OSError as error:
            warnings.warn(f"the bank of {stage} features is not kept: {error}", stacklevel=2)
    return bank


def _load(trainer: L.Trainer, stage: Stage, path: Path, fingerprint: str) -> FeatureBank | None:
    old = [folder for folder in path.parent.glob("*") if (folder / "bank.json").is_file()]
    if old:
        _log(stage, f"{len(old)} banks of version 0.1 in {path.parent} are not used; delete the folders to free space")
    try:
        return FeatureBank.load(path, fingerprint, check=trainer.local_rank == 0)
    except DamagedBankError as error:
        warnings.warn(f"{error}; the videos are encoded again", stacklevel=2)
        return None


def _encode(
    trainer: L.Trainer, stage: Stage, encode: Callable[[Tensor], Encoded], rows: list[int], views: int, limit_gb: float
) -> FeatureBank:
    data, device = datamodule_of(trainer, stage), trainer.strategy.root_device
    bank: FeatureBank = FeatureBank(rows, views=max(views, 1), limit_gb=limit_gb)
    own = rows[trainer.global_rank :: trainer.world_size]
    # A process without videos encodes one too: it needs the shapes to receive the features of the other processes.
    loader = data.video_loader(stage, own or rows[:1], views=views)
    quiet = trainer.progress_bar_callback is None or not trainer.is_global_zero
    again = trainer.sanity_checking or (stage == "val" and trainer.current_epoch > 0)
    batches = tqdm(loader, f"Encoding {stage} videos", unit="batch", leave=False, disable=quiet or None)
    with trainer.precision_plugin.forward_context():
        bank.fill(batches, encode, device=device, log=lambda size: None if again else _log(stage, size))
    bank.share(own, device)
    return bank


def _log(stage: Stage, message: str) -> None:
    rank_zero_info(f"Bank of {stage} features: {message}")


def coming_rows(trainer: L.Trainer, stage: Stage) -> list[int]:
    """Return the sorted rows of the videos in the coming episodes of a stage; in training, of all videos.

    The episodes are drawn until every video has been found. The loaders draw them again, in their worker processes.
    """
    every = stage_rows(trainer, stage)
    if stage == "train":
        return every
    rows: set[int] = set()
    for loader, limit in zip(loaders_of(trainer, stage), _limits(trainer, stage), strict=True):
        for index in range(int(limit) * loader.batch_sampler.batch_size * trainer.world_size):
            episode, _ = loader.dataset.generator.draw(0, index)
            rows.update(episode.support_ids.flatten().tolist(), episode.query_ids.tolist())
            if len(rows) == len(every):
                return every
    return sorted(rows)


def _limits(trainer: L.Trainer, stage: Stage) -> Sequence[int | float]:
    """Return the number of batches of each loader of a stage."""
    if trainer.predicting:
        return trainer.num_predict_batches
    if trainer.sanity_checking:
        return trainer.num_sanity_val_batches
    return trainer.num_test_batches if stage == "test" else trainer.num_val_batches


def stage_rows(trainer: L.Trainer, stage: Stage) -> list[int]:
    """Return the sorted rows of all videos of a stage."""
    return sorted(int(row) for member in datamodule_of(trainer, stage).videos[stage].members for row in member)


def share_buffers(network: nn.Module) -> None:
    """Broadcast the buffers of the first process, which are those of a checkpoint.

    In training, each process has its own batch norm statistics. A bank must not mix them.
    """
    if dist.is_initialized():
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def loaders_of(trainer: L.Trainer, stage: Stage) -> list[Any]:
    """Return the trainer's loaders of a stage as a list; while it predicts, those of the prediction."""
    if trainer.predicting:
        loaders = trainer.predict_dataloaders
    elif stage == "train":
        loaders = trainer.train_dataloader
    else:
        loaders = trainer.test_dataloaders if stage == "test" else trainer.val_dataloaders
    return CombinedLoader(loaders, "sequential").flattened


def without_clips(loader: Any) -> bool:
    """Return whether the episodes of a loader have no clips, so that features must come from a bank."""
    dataset = getattr(loader, "dataset", None)
    return isinstance(dataset, EpisodeDataset) and dataset.reader is None


def source_of(trainer: L.Trainer, stage: Stage) -> EpisodeDataModule | None:
    """Return the data module that made the trainer's loaders of a stage; None for other loaders.

    It can differ from ``trainer.datamodule``, which may belong to an earlier run or be absent if loaders were passed.
    """
    sources = [getattr(loader, "source", None) for loader in loaders_of(trainer, stage)]
    first = sources[0] if sources else None
    return first if isinstance(first, EpisodeDataModule) and all(source is first for source in sources) else None


def datamodule_of(trainer: L.Trainer, stage: Stage) -> EpisodeDataModule:
    """Return the data module that made the trainer's loaders of a stage.

    Raises:
        InputTypeError: the loaders are not of one `EpisodeDataModule`.
    """
    data = source_of(trainer, stage)
    if data is None:
        raise InputTypeError(
            "episodes without clips need a bank of features, and a bank needs the loaders of one EpisodeDataModule: "
            "pass datamodule=EpisodeDataModule(...) to the trainer, or use episodes with clips"
        )
    return data
