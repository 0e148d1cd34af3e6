"""Checkpoints that a kill at any moment leaves whole and recent, and what is refused as one."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from strm_lightning.errors import InputError
from strm_lightning.fileio import atomic_path
from strm_lightning.models.backbone import load_tensors


class LastCheckpoint(ModelCheckpoint):
    """Write ``last.ckpt`` within an epoch too, so that a run that is killed loses minutes and not an epoch.

    Args:
        minutes: time between two of them; the end of each epoch writes one in any case.
    """

    def __init__(self, minutes: float = 10.0) -> None:
        super().__init__(
            save_last=True, save_top_k=0, train_time_interval=timedelta(minutes=minutes), enable_version_counter=False
        )


class WholeFiles(TorchCheckpointIO):
    """Write a checkpoint beside its place, then rename it.

    Lightning writes to the system's temporary folder and moves the file; from another file system that is a copy,
    which a kill cuts off after the old file is gone.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_path(path) as part:
            super().save_checkpoint(checkpoint, part, storage_options)


def check_checkpoint(path: Path) -> None:
    """Refuse a ``--ckpt_path`` that cannot be read safely or is of something else, before anything is built.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, unsafe, or no checkpoint of `STRMModule`.
    """
    content = load_tensors(path, "--ckpt_path")
    if not isinstance(content, dict) or "hyper_parameters" not in content or "state_dict" not in content:
        raise InputError(
            f"--ckpt_path {path}: not a checkpoint of `strm fit`; a file of the released code becomes one by "
            "`strm convert`, and weights of a backbone go to --model.weights"
        )
