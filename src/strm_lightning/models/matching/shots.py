"""Masks of absent support clips, and means over the present ones."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from strm_lightning.errors import InputError


def check_shot_mask(shot_mask: Tensor, way_and_shot: Sequence[int]) -> None:
    """Check that a mask fits the support.

    Args:
        shot_mask: True where a clip is present.
        way_and_shot: leading axes of the support, which end in N and K.

    Raises:
        InputError: the mask is not boolean with shape ``[..., N, K]``, or a class has no clip (not checked in compiled
            code, where it would break the graph).
    """
    if shot_mask.dtype != torch.bool or shot_mask.shape[-len(way_and_shot) :] != tuple(way_and_shot):
        raise InputError(
            f"shot_mask of shape {list(shot_mask.shape)} and type {shot_mask.dtype}: this support needs booleans "
            f"[..., {', '.join(map(str, way_and_shot))}], one for each clip"
        )
    if not torch.compiler.is_compiling() and not shot_mask.any(-1).all():
        raise InputError("shot_mask leaves a class without any support clip")


def zero_absent(support: Tensor, shot_mask: Tensor | None) -> Tensor:
    """Set absent clips ``[..., N, K, *features]`` to 0; unlike a product, ``where`` blocks gradients of NaN."""
    if shot_mask is None:
        return support
    extra = support.ndim - shot_mask.ndim
    return torch.where(shot_mask.reshape(shot_mask.shape + (1,) * extra), support, 0)


def prototypes(support: Float[Tensor, "*B N K Ls D"], shot_mask: Tensor | None = None) -> Float[Tensor, "*B N Ls D"]:
    """Return the mean of the present clips of each class; absent clips may contain any values."""
    if shot_mask is None:
        return support.mean(-3)
    return zero_absent(support, shot_mask).sum(-3) / shot_mask.sum(-1).clamp_min(1)[..., None, None]


def mean_over_shots(
    scores: Float[Tensor, "*B Q S"], way: int, shot_mask: Tensor | None = None
) -> Float[Tensor, "*B Q N"]:
    """Compute the mean score over the clips of each class.

    Args:
        scores: one score for each query and support clip, ordered by class: ``S = N K``.
        way: number of classes N.
        shot_mask: ``[..., N, K]``, True where a clip is present; None if all are.
    """
    by_class = scores.unflatten(-1, (way, -1))
    if shot_mask is None:
        return by_class.mean(-1)
    present = shot_mask.unsqueeze(-3)
    return torch.where(present, by_class, 0).sum(-1) / present.sum(-1).clamp_min(1)
