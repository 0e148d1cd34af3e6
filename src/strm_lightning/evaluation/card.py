"""The protocol card: test protocol, data, model, checkpoint and versions of an accuracy."""

import platform
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn

from strm_lightning._version import __version__
from strm_lightning.data.checks.pretraining import seen_in_pretraining
from strm_lightning.data.datamodule import EpisodeDataModule
from strm_lightning.data.splits.stages import Stage
from strm_lightning.data.video_sets import VideoSet
from strm_lightning.models.head import STRMHead
from strm_lightning.models.strm import STRM

SOURCE_KEYS = (
    "epoch",
    "global_step",
    "callbacks",
    "datamodule_hyper_parameters",
    "dropout_seed",
)  # of a Lightning checkpoint
_PACKAGES = ("torch", "lightning", "timm", "av", "numpy")


def protocol_card(
    data: EpisodeDataModule,
    model: nn.Module,
    options: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    *,
    episodes: int,
    stage: Stage = "test",
) -> dict[str, Any]:
    """Build the protocol card of a test, as plain values.

    ``protocol`` contains everything that decides the episodes and the preprocessing of their clips: results with equal
    protocols are of the same episodes. ``data`` also lists the videos of the stage that are missing on disk, and those
    that cannot be read.

    Args:
        data: data module of the episodes.
        model: the tested `STRM`; the card contains its pixel normalisation.
        options: options of the model, and other values to record.
        checkpoint: see `describe_checkpoint`.
        episodes: number of tested episodes.
        stage: the tested stage.

    Returns:
        ``protocol``, ``data``, ``model``, ``checkpoint`` and ``versions``.
    """
    videos, transform = data.videos[stage], data.transform
    backbone: Any = model.backbone
    pretraining = backbone.pretrained_on
    if pretraining and (warning := seen_in_pretraining(data.split, pretraining)):
        pretraining = f"{pretraining} ({warning})"
    return {
        "protocol": {
            "stage": stage,
            "video_list": video_list_hash(videos),
            "way": data.way,
            "shot": data.shot,
            "query_per_class": data.queries[stage],
            "episodes": episodes,
            "seed": data.seed,
            "num_frames": data.num_frames,
            "frame_policy": f"{data.frame_policy}{_runs(data)}, its test choice",
            "short_clips": data.short_clips,
            "resize": f"short side to {transform.short_side}",
            "crop": f"{transform.image_size} x {transform.image_size}, central",
            "flip": "never",
        },
        "data": {
            "root": data.root,
            "split": data.split,
            "split_seed": data.split_seed,
            "classes": len(videos.class_names),
            "videos": sum(map(len, videos.members)),
            "missing": list(videos.missing),
            "unreadable": list(videos.unreadable),
        },
        "model": {
            **plain({**model_options({}), **options}),
            "transductive": not getattr(getattr(getattr(model, "head", None), "matching", None), "per_query", True),
            "pretrained_on": pretraining,
            "normalisation": {"mean": backbone.mean.flatten().tolist(), "std": backbone.std.flatten().tolist()},
        },
        "checkpoint": {**checkpoint, "trained_on": trained_on(data, checkpoint)},
        "versions": {
            "strm-lightning": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
    }


def trained_on(data: EpisodeDataModule, checkpoint: Mapping[str, Any]) -> str | None:
    """Describe the data of the training: that of the test, another split of it, or another root; None if unknown.

    Args:
        data: data module of the test.
        checkpoint: see `describe_checkpoint`.
    """
    training = checkpoint.get("training")
    if not training or "root" not in training:
        return None
    if str(training["root"]) != str(data.root):
        return str(training["root"])
    same = all(training.get(name) == getattr(data, name) for name in ("split", "split_seed"))
    return "training classes of the same split" if same else f"another split of {data.root}"


def _runs(data: EpisodeDataModule) -> str:
    return f" ({data.num_segments} runs, stride {data.frame_stride})" if data.frame_policy == "dense" else ""


def video_list_hash(videos: VideoSet) -> str:
    """Compute the SHA-256 of class and name of every video, in the order that the draw of episodes uses."""
    lines = (
        f"{name}\t{videos.store.videos[row]}\n"
        for name, rows in zip(videos.class_names, videos.members, strict=True)
        for row in rows
    )
    return f"sha256:{sha256(''.join(lines).encode()).hexdigest()}"


def describe_checkpoint(checkpoint: Mapping[str, Any] | None, path: str | Path | None) -> dict[str, Any]:
    """Describe the source of the tested weights, and the split that they were selected on.

    Args:
        checkpoint: a Lightning checkpoint; None if the weights were not loaded from one.
        path: its file, if known.

    Returns:
        ``path``, ``epoch``, ``step``, ``seed`` of the training; ``chosen_on``: the split, ``val`` or ``test``, whose
        accuracy selected the checkpoint, ``none`` if nothing was selected; ``training``: options of the data module in
        training.
    """
    if checkpoint is None:
        return {"path": None, "chosen_on": "none", "training": None}
    training = plain(checkpoint.get("datamodule_hyper_parameters", {}))
    return {
        "path": str(path) if path else None,
        "epoch": checkpoint.get("epoch"),
        "step": checkpoint.get("global_step"),
        "seed": checkpoint.get("dropout_seed"),  # `seed_everything` of the training
        "chosen_on": training.get("select_on", "val") if _is_best(checkpoint, path) else "none",
        "training": training,
    }


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert options to values that JSON can store; drop those that Lightning adds."""
    simple = (str, int, float, bool, type(None), list, tuple, dict)
    own = {name: value for name, value in values.items() if not name.startswith("_")}
    return {name: value if isinstance(value, simple) else str(value) for name, value in own.items()}


def model_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Select the options of `STRM` and `STRMHead`; absent ones get their defaults."""
    parameters = [*signature(STRMHead).parameters.values(), *signature(STRM).parameters.values()]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {name: options.get(name, default) for name, default in defaults.items()}


def _is_best(checkpoint: Mapping[str, Any], path: str | Path | None) -> bool:
    """Return whether a monitored accuracy selected the checkpoint; assume so if its file is unknown."""
    savers = [state for name, state in checkpoint.get("callbacks", {}).items() if name.startswith("ModelCheckpoint")]
    best = [Path(state["best_model_path"]).name for state in savers if state.get("monitor")]
    return bool(best) and (path is None or Path(path).name in best)
