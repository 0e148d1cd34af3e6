"""State dicts: hashes, and tensor names without the prefix of `torch.compile`."""

from collections.abc import Mapping
from hashlib import sha256

import torch
from torch import Tensor

_COMPILED = "_orig_mod."  # prefix that `torch.compile(module)` adds


def hash_state(state: Mapping[str, Tensor], about: str = "") -> str:
    """Return the SHA-256 of tensors with their names, shapes and types, 64 hexadecimal digits.

    It does not depend on the order of the tensors or on their device. Support files store this hash: changing the
    computation makes existing files invalid.

    Args:
        state: tensors by name.
        about: further text to include in the hash.
    """
    digest = sha256(about.encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def plain_name(name: str) -> str:
    """Return the name of a tensor or module without the prefix of `torch.compile`."""
    return name.replace(_COMPILED, "")
