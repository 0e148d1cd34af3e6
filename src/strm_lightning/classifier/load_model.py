"""Models of the classifier: from a checkpoint of `STRMModule`, or a pretrained backbone with a matching method."""

import inspect
from pathlib import Path
from typing import Any

import torch

from strm_lightning.errors import InputError
from strm_lightning.models.head import STRMHead
from strm_lightning.models.strm import STRM
from strm_lightning.models.weights.loading import load_tensors
from strm_lightning.models.weights.packaged import EFFICIENTNET_LITE0
from strm_lightning.models.weights.state import plain_name

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
_PREPROCESSING = ("num_frames", "image_size", "short_side", "frame_policy")
_PREFIX = "model."


def read_checkpoint(path: str | Path) -> tuple[STRM, float, dict[str, Any]]:
    """The model of a Lightning checkpoint, its weight of QC, and the preprocessing that it was trained with.

    Raises:
        MissingFileError: there is no such file.
        InputError: it cannot be read safely, is no checkpoint of `STRMModule`, or needs a class of the user's own.
    """
    checkpoint = load_tensors(path, "checkpoint")
    try:
        options, state = dict(checkpoint["hyper_parameters"]), dict(checkpoint["state_dict"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"checkpoint {path}: not one of STRMModule (no hyper_parameters or state_dict)") from error
    if own := checkpoint.get("own_classes"):
        part, kind = next(iter(own.items()))
        raise InputError(
            f"checkpoint {path}: its {part} is a {kind}, a class of your own, which FewShotClassifier cannot build"
        )
    known = {*inspect.signature(STRM).parameters, *inspect.signature(STRMHead).parameters}
    model = STRM(**{**{k: v for k, v in options.items() if k in known}, "pretrained": False, "weights": None})
    try:
        weights = {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}
        model.load_state_dict({plain_name(k): v for k, v in weights.items()})  # 0.1 kept torch.compile's prefixes
    except RuntimeError as error:
        raise InputError(f"checkpoint {path}: its weights are not those of the model that it describes") from error
    trained = checkpoint.get("datamodule_hyper_parameters", {})
    how = {name: trained[name] for name in _PREPROCESSING if trained.get(name) is not None}
    return model.eval(), options.get("qc_weight", 0.1), {**how, "num_frames": model.head.num_frames}


def untrained(backbone: str, *, weights: str | None, **head_options: Any) -> STRM:
    """A pretrained backbone with a matching method that has nothing to train.

    Raises:
        InputError: no such backbone, its weights cannot be loaded, or the method has weights to train.
        MissingFileError: there is no such file of weights.
    """
    if weights is None and backbone == DEFAULT_BACKBONE:
        weights = EFFICIENTNET_LITE0  # the same as timm's, and no hub is asked
    model = STRM(backbone, weights=weights, **head_options).eval()
    if model.head.learns:
        raise InputError(
            f"matching {model.head.matching_name!r} has weights that must be trained: train it (strm fit) and give the "
            "checkpoint, or choose a matching without weights, such as 'patches'"
        )
    return model


def resolve_device(device: str | None) -> torch.device:
    """The device of a name; for None, the GPU if there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"device {device!r}: cannot be used here ({reason})") from error
