"""Lag: clips compared frame by frame under small shifts in time, so that a late start is forgiven."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from strm_lightning.errors import InputError
from strm_lightning.models.matching.precision import at_least_float32, inner_products, safe_ratio


def lag_similarity(
    support: Float[Tensor, "*B S Ls P D"],
    query: Float[Tensor, "*B Q Lq P D"],
    max_lag: int = 7,
    temperature: float | int | Tensor = 30.0,
    decay: float | int | Tensor = 0.35,
) -> Float[Tensor, "*B Q S"]:
    """Soft maximum over shifts d of the similarity of a query a and a support clip b.

    ``s_d = sum_t <a_t, b_(t+d)>`` over the frames that overlap (a diagonal of the matrix of frame-by-frame products),
    ``sim = 1/tau log(sum_d w_d exp(tau s_d) / sum_d w_d)`` with ``w_d = exp(-lambda |d|)`` and ``|d| <= R``.
    A class's logit is the mean over its clips. Our own method, not from a paper.

    Args:
        support: clips as unit vectors (`kernels.unit_patches`; trained: `soft_normalize`, then `kernels.unit` over the
            clip), frames and patches apart.
        query: the same for the queries.
        max_lag: R. Shifts that leave no overlap do not count, so L - 1 is the most that has an effect.
        temperature: tau, a number or a learned scalar. The start of training is 20.
        decay: lambda, a number or a learned scalar.

    Raises:
        InputError: ``max_lag`` or a number ``decay`` below 0, or a number ``temperature`` that is not positive.
    """
    if max_lag < 0:
        raise InputError(f"max_lag is {max_lag}: give 0 or a positive number of frames")
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise InputError(f"temperature is {temperature}: give a positive number")
    if not isinstance(decay, Tensor) and not decay >= 0:
        raise InputError(f"decay is {decay}: give 0 or a positive number")
    rows, columns = query.shape[-3], support.shape[-3]
    support, query = at_least_float32(support, query)
    # [Q Lq, P D] x [S Ls, P D]: one product for all pairs, frames and shifts
    products = inner_products(support.flatten(-2).flatten(-3, -2), query.flatten(-2).flatten(-3, -2))
    products = rearrange(products, "... (q i) (s j) -> ... q s i j", i=rows, j=columns)
    lags = range(-min(max_lag, rows - 1), min(max_lag, columns - 1) + 1)
    by_lag = torch.stack([products.diagonal(lag, -2, -1).sum(-1) for lag in lags], dim=-1)
    log_weight = -decay * torch.tensor([abs(lag) for lag in lags], dtype=by_lag.dtype, device=by_lag.device)
    weighted = torch.logsumexp(temperature * by_lag + log_weight, dim=-1)
    return (weighted - torch.logsumexp(log_weight, dim=-1)) / temperature


def soft_normalize(patches: Float[Tensor, "*B L P D"]) -> Float[Tensor, "*B L P D"]:
    """``y_tp / sqrt(|y_tp|^2 + the clip's mean of |y|^2)``, patch by patch: lengths below 1 that keep what moves more.

    The trained variant of `lag_similarity` does this after its projection. A clip of zeros stays zero.
    """
    (patches,) = at_least_float32(patches)
    energy = patches.square().sum(-1, keepdim=True)
    total = energy + energy.mean((-3, -2), keepdim=True)
    # The root is taken of 1 where the clip is zero: the gradient of the root at 0 is infinite.
    return safe_ratio(patches, torch.where(total == 0, 1, total).sqrt())
