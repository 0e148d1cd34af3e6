"""Matching in float32 or float64, also for bfloat16 features and under autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Convert tensors to their common type, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def no_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """Disable autocast on the device of ``tensor``: rounding similarities to bfloat16 changes the order of classes."""
    if tensor.device.type == "meta":  # autocast does not support it
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def inner_products(support: Tensor, query: Tensor) -> Tensor:
    """Compute inner products of ``[..., S, F]`` and ``[..., Q, F]`` -> ``[..., Q, S]``, in float32 or float64."""
    support, query = at_least_float32(support, query)
    with no_autocast(query):
        return query @ support.mT


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, with 1 in place of a denominator of 0, so that values and gradients are finite."""
    return numerator / torch.where(denominator == 0, 1, denominator)
