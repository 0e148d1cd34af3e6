"""Arithmetic of matching: float32 at least, also for bfloat16 features and under autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in their common type, or in float32 where that is less precise."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def no_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off on the device of ``tensor``: similarities rounded to bfloat16 lose the order of classes."""
    if tensor.device.type == "meta":  # has no autocast
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def inner_products(support: Tensor, query: Tensor) -> Tensor:
    """Inner products of vectors ``[..., S, F]`` and ``[..., Q, F]`` -> ``[..., Q, S]``, in float32 at least."""
    support, query = at_least_float32(support, query)
    with no_autocast(query):
        return query @ support.mT


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, with 1 for a denominator of 0: values and gradients stay finite."""
    return numerator / torch.where(denominator == 0, 1, denominator)
