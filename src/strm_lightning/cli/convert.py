"""``strm convert``: convert an official checkpoint to a checkpoint of this package."""

from pathlib import Path
from typing import Literal

import lightning as L
import torch

from strm_lightning.data.datamodule import EpisodeDataModule
from strm_lightning.errors import InputError
from strm_lightning.fileio import atomic_path
from strm_lightning.models.official import OfficialCheckpoint, read_official
from strm_lightning.training.module import STRMModule

# How the official code reads a clip. The checkpoint does not store it.
_INPUT = {"image_size": 224, "short_side": 256, "frame_policy": "release", "short_clips": "drop"}


def convert(checkpoint: Path, out: Path, *, query_class: Literal["off", "fresh"] = "off", seed: int = 0) -> None:
    """Convert an official STRM or TRX checkpoint for ``strm test --ckpt_path`` and ``STRMModule``.

    All options are inferred from the file. As in the official code, pixels are in 0 .. 1 without normalisation.

    Args:
        checkpoint: checkpoint file of the official code.
        out: file to write, such as ``strm.ckpt``.
        query_class: official checkpoints do not contain QC's projection: ``off`` disables QC, ``fresh`` initialises
            the projection at random.
        seed: seed of the random projection.

    Raises:
        MissingFileError: the checkpoint does not exist.
        InputError: the checkpoint is damaged, unsafe or not an official one, or ``out`` is a folder.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder: give the file to write, such as {out / 'strm.ckpt'}")
    found = read_official(checkpoint, query_class=query_class)
    module = STRMModule(pretrained=False, **found.options)
    module.model.load_state_dict(found.build(seed=seed).state_dict())
    content = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": L.__version__,
        "state_dict": module.state_dict(),
        module.CHECKPOINT_HYPER_PARAMS_KEY: dict(module.hparams),
        EpisodeDataModule.CHECKPOINT_HYPER_PARAMS_KEY: _INPUT | {"num_frames": module.model.num_frames},
    }
    module.on_save_checkpoint(content)
    with atomic_path(out) as part:
        torch.save(content, part)
    print(_report(found, out))


def _report(found: OfficialCheckpoint, out: Path) -> str:
    options = found.options
    kind, heads = (
        ("TRX", "") if found.is_trx else ("STRM", f", {options['patch_grid']} x {options['patch_grid']} patches")
    )
    configs = "--config experiments/kinetics.yaml --config experiments/official/release.yaml"
    frames = f" --data.num_frames={options['num_frames']}" if options["num_frames"] != 8 else ""
    sizes = ", ".join(map(str, options["tuple_sizes"]))
    rows = {
        kind: f"{found.path}: {len(found.state)} tensors",
        "backbone": f"{options['backbone']}, pixels 0 .. 1 without normalisation",
        "head": f"Omega {{{sizes}}}, d = {options['match_dim']}, L = {options['num_frames']}{heads}",
        "absent": "; ".join(found.absent) or "nothing",
        "ignored": "; ".join(found.ignored) or "nothing",
        "written": str(out),
        "next": f"strm test {configs} --ckpt_path {out}{frames} --data.root FOLDER --data.lists LISTS "
        "(see experiments/ for other data)",
    }
    return "\n".join(f"  {name:<10}{text}" for name, text in rows.items())
