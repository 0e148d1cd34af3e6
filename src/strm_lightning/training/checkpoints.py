"""Write checkpoints whole and where a run can be resumed exactly; read them without running code that they hold."""

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

_WORDS = re.compile(r"best|last|hpc|(?i:registry)(:.*)?")  # Lightning finds the file of these itself


class LastCheckpoint(ModelCheckpoint):
    """Write ``last.ckpt`` within an epoch too, so that a run that is killed loses minutes and not an epoch.

    It is written after an optimiser step only, never inside a gradient accumulation.

    Args:
        minutes: time between two of them; the end of each epoch writes one in any case.
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


class WholeFiles(TorchCheckpointIO):
    """Write a checkpoint beside its place, then rename it; read it without running code that it holds.

    Lightning writes to the system's temporary folder and moves the file; from another file system that is a copy,
    which a kill cuts off after the old file is gone. It reads files of a web server with ``weights_only=False``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_path(path) as part:
            super().save_checkpoint(checkpoint, part, storage_options)

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Content of a checkpoint on the CPU; Lightning's ``map_location`` and ``weights_only`` have no effect."""
        return read_checkpoint(path)


def use_whole_files(trainer: L.Trainer) -> None:
    """Make a trainer read and write its checkpoints by `WholeFiles`, unless a plugin of another kind does it."""
    holder: Any = trainer.strategy
    while hasattr(holder.checkpoint_io, "checkpoint_io"):  # a plugin around another one, such as AsyncCheckpointIO
        holder = holder.checkpoint_io
    if type(holder.checkpoint_io) is TorchCheckpointIO:
        holder.checkpoint_io = WholeFiles()


def read_checkpoint(path: str | Path, what: str = "checkpoint") -> Any:
    """Content of a checkpoint on the CPU: tensors and plain values only.

    Args:
        path: a local file, or a file of a remote storage to which runs are written (``s3://`` and the like).
        what: what names the file, for the error messages.

    Raises:
        MissingFileError: there is no such file.
        InputError: the file is damaged, holds more than tensors and plain values, or is on a web server.
    """
    if "://" not in str(path):
        return load_tensors(path, what)
    if _is_web(path):
        raise InputError(f"{what} {path}: checkpoints are not read from a web server; download the file and name it")
    try:
        with get_filesystem(path).open(str(path), "rb") as file:
            return torch.load(file, "cpu", weights_only=True)
    except UnpicklingError as error:
        raise InputError(
            f"{what} {path}: cannot be read safely; it holds more than tensors and plain values"
        ) from error


def check_checkpoint(path: str | Path) -> None:
    """Refuse a ``--ckpt_path`` that cannot be read safely or is of something else, before anything is built.

    Lightning's words ``last``, ``hpc`` and ``registry:NAME`` pass; `WholeFiles` reads the files that they stand for.

    Raises:
        MissingFileError: there is no such file.
        InputError: it is damaged, unsafe, on a web server, or no checkpoint of `STRMModule`.
    """
    name = str(path)
    if _WORDS.fullmatch(name):
        if Path(name).exists():  # Lightning's command line would read its options from this file
            raise InputError(f"--ckpt_path {name}: is a word of Lightning and a file here; give ./{name} for the file")
        if name == "best":  # of an earlier fit in the same process, which a command line never has
            raise InputError("--ckpt_path best: name the file, such as runs/version_0/checkpoints/best.ckpt")
        return
    content = read_checkpoint(path, "--ckpt_path")
    if not isinstance(content, dict) or "hyper_parameters" not in content or "state_dict" not in content:
        raise InputError(
            f"--ckpt_path {path}: not a checkpoint of `strm fit`; a file of the released code becomes one by "
            "`strm convert`, and weights of a backbone go to --model.weights"
        )


def _is_web(path: str | Path) -> bool:
    return re.search(r"https?://", str(path), re.IGNORECASE) is not None
