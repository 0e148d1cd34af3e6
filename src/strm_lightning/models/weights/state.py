"""State dicts: their hash, and their names without the prefixes of `torch.compile`."""

from collections.abc import Mapping
from hashlib import sha256

import torch
from torch import Tensor

_COMPILED = "_orig_mod."  # `torch.compile(module)` puts the module's tensors below this name


def hash_state(state: Mapping[str, Tensor], about: str = "") -> str:
    """SHA-256 of tensors with their names, shapes and types, 64 hexadecimal digits.

    The order of the tensors and their device do not matter. Support files keep this hash: a change of it makes the
    existing files invalid.

    Args:
        state: tensors by name.
        about: anything else that the hash should cover.
    """
    digest = sha256(about.encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def plain_name(name: str) -> str:
    """Name of a tensor or module as it is without `torch.compile`."""
    return name.replace(_COMPILED, "")
