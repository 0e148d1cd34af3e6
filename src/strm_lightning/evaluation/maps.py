"""Pooled maps of a frozen backbone, kept in one file from which any number of heads are trained and tested."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from strm_lightning.data.datamodule import EpisodeDataModule
from strm_lightning.episode import PooledMaps
from strm_lightning.errors import MissingFileError
from strm_lightning.evaluation.bank import DamagedBankError, FeatureBank
from strm_lightning.evaluation.fingerprint import bank_fingerprint
from strm_lightning.models.backbones.timm import Backbone
from strm_lightning.models.enrichment.pooling import pool_maps, scale

_CENTERED = "centered."  # prefix of the tensors with `center_clip`


def store_maps(
    folder: Path,
    data: EpisodeDataModule,
    backbone: Backbone,
    rows: Iterable[int],
    *,
    name: str = "maps",
    patch_grid: int = 4,
    views: int = 0,
) -> Path:
    """Encode videos once and store their pooled maps, with and without ``center_clip``.

    The file name contains the fingerprint of weights, videos and preprocessing. An existing file is not encoded again.

    Args:
        folder: folder of the file.
        data: a data module after `EpisodeDataModule.setup`.
        backbone: the frozen backbone.
        rows: rows of the videos in the store of the data module.
        name: start of the file name.
        patch_grid: rows and columns P of the grid.
        views: random views (frames, crop, flip) of each video; 0 for the one view of validation and test.

    Returns:
        The file, for `read_maps`.

    Raises:
        WriteError: the file cannot be written.
    """
    rows, stage = sorted(set(rows)), next(iter(data.videos))
    about = {"patch_grid": patch_grid, "centered": True}
    fingerprint = bank_fingerprint(data, stage, rows, backbone, about, views=views)
    path = folder / f"{name}-{fingerprint[:12]}.safetensors"
    try:
        if FeatureBank.load(path, fingerprint) is not None:
            return path
    except DamagedBankError as error:
        warnings.warn(f"{error}; the videos are encoded again", stacklevel=2)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bank = FeatureBank(rows, views=max(views, 1))
    network = backbone.eval().to(device)

    def encode(clips: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = network(clips)
        centered = vars(pool_maps(maps, patch_grid, center_clip=True))
        return vars(pool_maps(maps, patch_grid)) | {_CENTERED + key: tensor for key, tensor in centered.items()}

    bank.fill(
        tqdm(data.video_loader(stage, rows, views=views), f"Encoding {name}", unit="batch"), encode, device=device
    )
    backbone.cpu()
    bank.save(path, fingerprint)
    return path


def read_maps(path: Path, *, center_clip: bool = False, scale_clip: bool = False) -> FeatureBank:
    """Read a file of `store_maps`; the tensors of the bank are those of `PooledMaps`, as `pool_maps` gives them.

    Raises:
        MissingFileError: the file does not exist.
        DamagedBankError: the file is truncated or not a bank.
    """
    stored = FeatureBank.load(path, None, check=False)
    if stored is None or stored.tensors is None:
        raise MissingFileError(f"no pooled maps at {path}")
    bank = FeatureBank(stored.rows.tolist(), views=stored.views)
    prefix = _CENTERED if center_clip else ""
    maps = PooledMaps(grid=stored.tensors[f"{prefix}grid"], mean=stored.tensors[f"{prefix}mean"])
    bank.tensors = vars(scale(maps) if scale_clip else maps)
    return bank
