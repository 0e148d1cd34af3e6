"""Lag: frame-by-frame similarity of clips with tolerance to small shifts in time."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from strm_lightning.messages import check_not_negative, check_positive
from strm_lightning.models.matching.precision import at_least_float32, inner_products, safe_ratio


def lag_similarity(
    support: Float[Tensor, "*B S Ls P D"],
    query: Float[Tensor, "*B Q Lq P D"],
    max_lag: int = 7,
    temperature: float | Tensor = 30.0,
    decay: float | Tensor = 0.35,
) -> Float[Tensor, "*B Q S"]:
    """Compute the soft maximum over shifts d of the similarity of a query a and a support clip b.

    ``s_d = sum_t <a_t, b_(t+d)>`` over the overlapping frames (a diagonal of the matrix of frame-by-frame products),
    ``sim = 1/tau log(sum_d w_d exp(tau s_d) / sum_d w_d)`` with ``w_d = exp(-lambda |d|)`` and ``|d| <= R``.
    This method is not from a paper.

    Args:
        support: clips as unit vectors with separate axes for frames and patches (`kernels.unit_patches`; in training
            `soft_normalize`, then `kernels.unit` over the clip).
        query: the same for the queries.
        max_lag: R. Shifts without overlap are ignored, so values above L - 1 have no further effect.
        temperature: tau, a number or a learned scalar.
        decay: lambda, a number or a learned scalar.

    Raises:
        InputError: ``max_lag`` or ``decay`` is below 0, or ``temperature`` is not positive (learned scalars are not
            checked).
    """
    check_not_negative(max_lag=max_lag)
    if not isinstance(temperature, Tensor):
        check_positive(temperature=temperature)
    if not isinstance(decay, Tensor):
        check_not_negative(decay=decay)
    products, lags = _frame_products(support, query), _lags(query.shape[-3], support.shape[-3], max_lag)
    by_lag = torch.stack([products.diagonal(lag, -2, -1).sum(-1) for lag in lags], dim=-1)
    log_weight = -decay * torch.tensor([abs(lag) for lag in lags], dtype=by_lag.dtype, device=by_lag.device)
    weighted = torch.logsumexp(temperature * by_lag + log_weight, dim=-1)
    return (weighted - torch.logsumexp(log_weight, dim=-1)) / temperature


def lag_matches(
    support: Float[Tensor, "K L P D"],
    query: Float[Tensor, "L P D"],
    max_lag: int,
    temperature: float | Tensor,
    decay: float | Tensor,
) -> Float[Tensor, "K L L"]:
    """Compute the contribution of each pair of frames (query, support) to `lag_similarity`.

    It is the product of the frames times the softmax weight of their shift, ``softmax_d(tau s_d + log w_d)``. Their sum
    differs from the similarity by the Kullback-Leibler divergence of these weights from ``w`` over tau.
    """
    products, lags = _frame_products(support, query[None])[0], _lags(len(query), support.shape[-3], max_lag)
    by_lag = torch.stack([products.diagonal(lag, -2, -1).sum(-1) for lag in lags], dim=-1)
    distance = torch.tensor([abs(lag) for lag in lags], dtype=by_lag.dtype, device=by_lag.device)
    shares = torch.softmax(temperature * by_lag - decay * distance, -1)
    weights = sum(
        torch.diag_embed(share.unsqueeze(-1).expand(-1, products.shape[-1] - abs(lag)), lag)
        for lag, share in zip(lags, shares.unbind(-1), strict=True)
    )
    assert isinstance(weights, Tensor)
    return weights * products


def _lags(rows: int, columns: int, max_lag: int) -> range:
    return range(-min(max_lag, rows - 1), min(max_lag, columns - 1) + 1)


def _frame_products(
    support: Float[Tensor, "*B S Ls P D"], query: Float[Tensor, "*B Q Lq P D"]
) -> Float[Tensor, "*B Q S Lq Ls"]:
    rows, columns = query.shape[-3], support.shape[-3]
    support, query = at_least_float32(support, query)
    # [Q Lq, P D] x [S Ls, P D]: one product for all pairs, frames and shifts
    products = inner_products(support.flatten(-2).flatten(-3, -2), query.flatten(-2).flatten(-3, -2))
    return rearrange(products, "... (q i) (s j) -> ... q s i j", i=rows, j=columns)


def soft_normalize(patches: Float[Tensor, "*B L P D"]) -> Float[Tensor, "*B L P D"]:
    """Compute ``y_tp / sqrt(|y_tp|^2 + mean_tp |y_tp|^2)`` for each patch: lengths stay ordered and below 1.

    The trained variant of `lag_similarity` applies it after the projection. A clip of zeros stays zero.
    """
    (patches,) = at_least_float32(patches)
    energy = patches.square().sum(-1, keepdim=True)
    total = energy + energy.mean((-3, -2), keepdim=True)
    # Where the clip is zero, use 1: the gradient of the root at 0 is infinite.
    return safe_ratio(patches, torch.where(total == 0, 1, total).sqrt())
