"""Read files of tensors without running any code that they hold."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from strm_lightning.errors import InputError, MissingFileError


def load_tensors(path: str | Path, what: str = "weights") -> Any:
    """Content of a .safetensors file or of a file that `torch.save` wrote, on the CPU.

    Pickled data is restricted to tensors and plain values (``weights_only=True``).

    Args:
        path: a local file.
        what: what the file should be, for the error messages.

    Raises:
        MissingFileError: there is no such file.
        InputError: the file is damaged, of another framework, or holds more than plain values and tensors.
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
            f"{what} {path}: cannot be read safely; it holds more than tensors and plain values, or is no such file"
        ) from error
    except Exception as error:  # damaged bytes make torch and safetensors raise almost any type
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{what} {path}: cannot be read safely; it is damaged or cut off ({reason})") from error


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a file of weights; a state dict inside a checkpoint is found.

    Raises:
        MissingFileError: there is no such file.
        InputError: the file is damaged or is no state dict.
    """
    state = load_tensors(path)
    for key in ("state_dict", "model_state_dict", "model"):
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"weights {path}: not a state dict (tensors by name)")
    return state
