"""Read weight files without executing code in them, and load them into timm models."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from strm_lightning.errors import InputError, MissingFileError
from strm_lightning.models.weights.packaged import PACKAGED_PREFIX, packaged_file, rename_packaged

_CLASSIFIER = ("fc.", "head.", "classifier.", "head_dist.")


def load_tensors(path: str | Path, what: str = "weights") -> Any:
    """Read a .safetensors file or a file written by `torch.save` to the CPU.

    Pickled data is restricted to tensors and plain values (``weights_only=True``).

    Args:
        path: a local file.
        what: the kind of file, for the error messages.

    Raises:
        MissingFileError: the file does not exist.
        InputError: the file is damaged, has another format, or contains more than tensors and plain values.
    """
    if not Path(path).is_file():
        remote = " (a URL: download the file first)" if "://" in str(path) else ""
        raise MissingFileError(f"{what} {path}: {'is a folder' if Path(path).is_dir() else 'no such file'}{remote}")
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, "cpu", weights_only=True)
    except UnpicklingError as error:
        raise InputError(
            f"{what} {path}: cannot be read safely; it holds more than tensors and plain values, or has another format"
        ) from error
    except Exception as error:  # for damaged files torch and safetensors raise almost any type
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{what} {path}: cannot be read safely; it is damaged or cut off ({reason})") from error


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict in a weight file or checkpoint.

    Raises:
        MissingFileError: the file does not exist.
        InputError: the file is damaged or contains no state dict.
    """
    state = load_tensors(path)
    for key in ("state_dict", "model_state_dict", "model"):
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"weights {path}: not a state dict (tensors by name)")
    return state


def load_weights(net: nn.Module, weights: str | Path) -> None:
    """Load local weights into a timm model without classifier; classifier weights in the file are ignored.

    Args:
        net: a timm model.
        weights: a .safetensors or .pth file, or ``pip:efficientnet_lite0`` (or ``lite1``, ``lite2``) for the weights of
            the extra ``weights``.

    Raises:
        MissingFileError: the file does not exist, or the extra is not installed.
        InputError: there is no package of this name, or the file contains no state dict of this model.
    """
    name = str(weights)
    if name.startswith(PACKAGED_PREFIX):
        state = rename_packaged(name, read_state_dict(packaged_file(name)))
    else:
        state = read_state_dict(weights)
    try:
        result = net.load_state_dict({k.removeprefix("module."): v for k, v in state.items()}, strict=False)
    except RuntimeError as error:
        raise InputError(f"weights {weights}: not of this backbone; the shapes of tensors differ") from error
    unknown = [key for key in result.unexpected_keys if not key.startswith(_CLASSIFIER)]
    if result.missing_keys or unknown:
        raise InputError(
            f"weights {weights}: not of this backbone; {len(result.missing_keys)} tensors are missing "
            f"(such as {result.missing_keys[:2]}) and {len(unknown)} are unknown (such as {unknown[:2]})"
        )
