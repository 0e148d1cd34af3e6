"""Load the model of a classifier from a checkpoint of `STRMModule`, or build it on a pretrained backbone."""

import inspect
from pathlib import Path
from typing import Any

import torch

from strm_lightning.errors import InputError
from strm_lightning.models.backbones.base import TORCHVISION_PREFIX
from strm_lightning.models.head import STRMHead
from strm_lightning.models.strm import STRM
from strm_lightning.models.weights.loading import load_tensors
from strm_lightning.models.weights.packaged import EFFICIENTNET_LITE0
from strm_lightning.models.weights.state import plain_name

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
DEFAULT_MATCHING = "auto"
DEFAULT_STAGES = (-1, -2)  # of the default backbone, with the default matching
_PREPROCESSING = ("num_frames", "image_size", "short_side", "frame_policy", "num_segments", "frame_stride")
_PREFIX = "model."


def read_checkpoint(path: str | Path) -> tuple[STRM, float, dict[str, Any]]:
    """Load a Lightning checkpoint of `STRMModule`.

    Returns:
        The model in evaluation mode, the weight of QC, and the preprocessing of its training.

    Raises:
        MissingFileError: the file does not exist.
        InputError: the file cannot be read with ``weights_only=True``, is not a checkpoint of `STRMModule`, or needs a
            user-defined class.
    """
    checkpoint = load_tensors(path, "checkpoint")
    try:
        options, state = dict(checkpoint["hyper_parameters"]), dict(checkpoint["state_dict"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"checkpoint {path}: not one of STRMModule (no hyper_parameters or state_dict)") from error
    if classes := checkpoint.get("own_classes"):
        part, kind = next(iter(classes.items()))
        raise InputError(
            f"checkpoint {path}: its {part} is a {kind}, a class of your own, which FewShotClassifier cannot build"
        )
    known = {*inspect.signature(STRM).parameters, *inspect.signature(STRMHead).parameters}
    model = STRM(**{**{k: v for k, v in options.items() if k in known}, "pretrained": False, "weights": None})
    try:
        weights = {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}
        model.load_state_dict(
            {plain_name(k): v for k, v in weights.items()}
        )  # version 0.1 saved the prefixes of torch.compile
    except RuntimeError as error:
        raise InputError(f"checkpoint {path}: its weights are not those of the model that it describes") from error
    trained = checkpoint.get("datamodule_hyper_parameters", {})
    preprocessing = {name: trained[name] for name in _PREPROCESSING if trained.get(name) is not None}
    return model.eval(), options.get("qc_weight", 0.1), {**preprocessing, "num_frames": model.num_frames}


def untrained(backbone: str, *, weights: str | None, **head_options: Any) -> STRM:
    """Build a model from a pretrained backbone and a matching method without trainable weights.

    Raises:
        InputError: the backbone does not exist, its weights cannot be loaded, or the method has trainable weights.
        MissingFileError: the weights file does not exist.
    """
    if weights is None and backbone == DEFAULT_BACKBONE:
        weights = EFFICIENTNET_LITE0  # the same weights as timm's, without a download
    model = STRM(backbone, weights=weights, **head_options).eval()
    if model.head.learns:
        raise InputError(
            f"matching {model.head.matching_name!r} has weights that must be trained: train it (strm fit) and pass the "
            f"checkpoint, or choose a matching without weights, such as {DEFAULT_MATCHING!r}"
        )
    return model


def usual_clip(backbone: str) -> dict[str, Any]:
    """Return the options of `ClipConfig` that fit a backbone without training: runs of frames for video models."""
    if not backbone.startswith(TORCHVISION_PREFIX):
        return {}
    from strm_lightning.models.backbones.torchvision import pretraining_size  # torchvision takes long to import

    return {"num_frames": 32, "num_segments": 2, "frame_policy": "dense", "image_size": pretraining_size(backbone)}


def default_stages(backbone: str, matching: str) -> int | list[int]:
    """Return the stages that own videos are compared by if none are given; see docs/own-videos.md."""
    return list(DEFAULT_STAGES) if (backbone, matching) == (DEFAULT_BACKBONE, DEFAULT_MATCHING) else -1


def resolve_device(device: str | None) -> torch.device:
    """Return the device of a name; for None, the GPU if one is available, else the CPU.

    Raises:
        InputError: the device is not available.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"device {device!r}: cannot be used here ({reason})") from error
