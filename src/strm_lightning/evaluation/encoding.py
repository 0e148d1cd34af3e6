"""Encode the videos of a stage into a feature bank, distributed over processes."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from jaxtyping import Int
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

    If numbers of frames of the stage are estimates (`VideoSet.exact`), this reading of the videos checks them. The data
    module then gets the true numbers and leaves out damaged videos, and the trainer's loaders draw their episodes from
    the others.

    Args:
        trainer: a running trainer with the loaders of an `EpisodeDataModule`.
        stage: the stage.
        encode: computes the features of clips ``[n, L, 3, H, W]`` on the trainer's device.
        views: number of random views of each video; 0 for the view of validation and test.
        limit_gb: see `FeatureBank`.
        keep: save the bank, or load a saved one with the same weights, videos and preprocessing.

    Raises:
        InputTypeError: the loaders are not of one `EpisodeDataModule`.
        InputError: the bank is too large, see `FeatureBank.plan`, or too few videos can be read.
    """
    if keep is None:
        return _encode(trainer, stage, encode, coming_rows, views, limit_gb)
    kept = _load(trainer, stage, *_place(trainer, stage, keep, views))
    if trainer.strategy.reduce_boolean_decision(kept is not None) and kept is not None:
        _log(stage, f"{kept.describe()}, from an earlier run")
        return kept
    bank = _encode(trainer, stage, encode, stage_rows, views, limit_gb)
    if trainer.is_global_zero:
        try:
            bank.save(*_place(trainer, stage, keep, views))  # the videos may differ from those before
        except OSError as error:
            warnings.warn(f"the bank of {stage} features is not kept: {error}", stacklevel=2)
    return bank


def _place(trainer: L.Trainer, stage: Stage, keep: Keep, views: int) -> tuple[Path, str]:
    """Return the file of the bank of all videos of a stage, and its fingerprint."""
    data, rows, precision = datamodule_of(trainer, stage), stage_rows(trainer, stage), str(trainer.precision)
    fingerprint = bank_fingerprint(data, stage, rows, keep.network, keep.options, views=views, precision=precision)
    return keep.folder / f"{fingerprint[:24]}.safetensors", fingerprint


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
    trainer: L.Trainer,
    stage: Stage,
    encode: Callable[[Tensor], Encoded],
    find_rows: Callable[[L.Trainer, Stage], list[int]],
    views: int,
    limit_gb: float,
) -> FeatureBank:
    data, rows = datamodule_of(trainer, stage), find_rows(trainer, stage)
    bank: FeatureBank = FeatureBank(rows, views=max(views, 1), limit_gb=limit_gb)
    exact, names = data.videos[stage].exact, data.videos[stage].store.videos
    frames = _fill(trainer, stage, encode, bank, rows, views)
    if exact:
        return bank
    frames = trainer.strategy.reduce(frames.to(trainer.strategy.root_device), reduce_op="sum").cpu()
    read = {names[row]: row for row in rows if frames[row]}
    data.count_frames(stage, {name: int(frames[row]) for name, row in read.items()})
    for loader in loaders_of(trainer, stage):
        drawn = loader.dataset.generator
        loader.dataset.generator = replace(drawn, members=data.videos[drawn.stage].members)
    rows, names = find_rows(trainer, stage), data.videos[stage].store.videos
    before = {row: read[names[row]] for row in rows if names[row] in read}
    if len(rows) == len(bank.rows) and all(before.get(row) == row for row in rows):
        return bank
    # One view: random views are those of a fit, which has no estimates.
    changed: FeatureBank = FeatureBank(rows, limit_gb=limit_gb)
    _fill(trainer, stage, encode, changed, [row for row in rows if row not in before], views)
    for row, old in before.items():
        changed.put(torch.tensor([[row, 0]]), bank.get(torch.tensor([old])))
    return changed


def _fill(
    trainer: L.Trainer,
    stage: Stage,
    encode: Callable[[Tensor], Encoded],
    bank: FeatureBank,
    rows: list[int],
    views: int,
) -> Int[Tensor, " V"]:
    """Encode videos of a bank; return the true numbers of frames, if they were estimates and this process read them."""
    data, device = datamodule_of(trainer, stage), trainer.strategy.root_device
    own = rows[trainer.global_rank :: trainer.world_size]
    frames = torch.zeros(len(data.videos[stage].store.videos), dtype=torch.long)
    # A process without videos encodes one too: it needs the shapes to receive the features of the other processes.
    loader = data.video_loader(stage, own or rows[:1], views=views, counting=not data.videos[stage].exact)
    quiet = trainer.progress_bar_callback is None or not trainer.is_global_zero
    again = trainer.sanity_checking or (stage == "val" and trainer.current_epoch > 0)
    batches = tqdm(loader, f"Encoding {stage} videos", unit="batch", leave=False, disable=quiet or None)

    def clips() -> Iterator[tuple[Tensor, Tensor]]:
        for keys, pixels, *counted in batches:
            if counted and own:
                frames[keys[:, 0]] = counted[0]
            yield keys, pixels

    with trainer.precision_plugin.forward_context():
        bank.fill(clips(), encode, device=device, log=lambda size: None if again else _log(stage, size))
    bank.share(own, device)
    return frames


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
