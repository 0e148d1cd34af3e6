"""Atomic writes of checkpoints, safe reading, and checkpoints within an epoch."""

import re
from datetime import timedelta
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.callbacks import ModelCheckpoint

from strm_lightning.errors import InputError
from strm_lightning.fileio import atomic_path
from strm_lightning.models.weights.loading import load_tensors

_KEYWORDS = re.compile(r"best|last|hpc|(?i:registry)(:.*)?")  # Lightning resolves these to a file


class LastCheckpoint(ModelCheckpoint):
    """Save ``last.ckpt`` at a time interval and at the end of each epoch.

    It is only saved after an optimiser step, not within a gradient accumulation.

    Args:
        minutes: time interval.
    """

    def __init__(self, minutes: float = 10.0) -> None:
        super().__init__(
            save_last=True, save_top_k=0, train_time_interval=timedelta(minutes=minutes), enable_version_counter=False
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically, and read them without executing code in them.

    Lightning writes to the system's temporary folder and moves the file. Between file systems that is a copy, so a kill
    can leave a truncated file in place of the old one. It also reads URLs with ``weights_only=False``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_path(path) as part:
            super().save_checkpoint(checkpoint, part, storage_options)

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Read a checkpoint to the CPU; Lightning's ``map_location`` and ``weights_only`` are ignored."""
        return read_checkpoint(path)


def use_atomic_checkpoints(trainer: L.Trainer) -> None:
    """Replace Lightning's default checkpoint plugin of a trainer by `AtomicCheckpointIO`; other plugins are kept."""
    owner: Any = trainer.strategy
    while hasattr(owner.checkpoint_io, "checkpoint_io"):  # a wrapper such as AsyncCheckpointIO
        owner = owner.checkpoint_io
    if type(owner.checkpoint_io) is TorchCheckpointIO:
        owner.checkpoint_io = AtomicCheckpointIO()


def read_checkpoint(path: str | Path, what: str = "checkpoint") -> Any:
    """Read a checkpoint of tensors and plain values to the CPU.

    Args:
        path: a local file, or a URL of remote storage such as ``s3://``.
        what: name of the file in error messages.

    Raises:
        MissingFileError: the file does not exist.
        InputError: the file is damaged, contains more than tensors and plain values, or is on a web server.
    """
    if "://" not in str(path):
        return load_tensors(path, what)
    if re.search(r"https?://", str(path), re.IGNORECASE):  # also in chained URLs such as simplecache::https://
        raise InputError(f"{what} {path}: checkpoints are not read from a web server; download the file first")
    try:
        with get_filesystem(path).open(str(path), "rb") as file:
            return torch.load(file, "cpu", weights_only=True)
    except UnpicklingError as error:
        raise InputError(
            f"{what} {path}: cannot be read safely; it holds more than tensors and plain values"
        ) from error


def check_checkpoint(path: str | Path) -> None:
    """Check ``--ckpt_path`` before the model and the data are built.

    Lightning's keywords ``last``, ``hpc`` and ``registry:NAME`` are accepted; `AtomicCheckpointIO` reads their files.

    Raises:
        MissingFileError: the file does not exist.
        InputError: it is damaged, unsafe, on a web server, or no checkpoint of `STRMModule`.
    """
    name = str(path)
    if _KEYWORDS.fullmatch(name):
        if Path(name).exists():  # Lightning's command line would read options from this file
            raise InputError(f"--ckpt_path {name}: a keyword of Lightning and also a file; give ./{name} for the file")
        if name == "best":  # Lightning means an earlier fit in the same process
            raise InputError("--ckpt_path best: name the file, such as runs/version_0/checkpoints/best.ckpt")
        return
    content = read_checkpoint(path, "--ckpt_path")
    if not isinstance(content, dict) or "hyper_parameters" not in content or "state_dict" not in content:
        raise InputError(
            f"--ckpt_path {path}: not a checkpoint of `strm fit`; convert official checkpoints with `strm convert`, "
            "and load weights of a backbone with --model.weights"
        )
