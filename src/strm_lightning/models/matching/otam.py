"""OTAM's cost of an ordered alignment, for all pairs of an episode at once (Cao et al., CVPR 2020)."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

LOG2 = 0.6931471805599453


def otam_cost(cost: Float[Tensor, "*B Lq Ls"], smoothing: float = 0.1, direction: str = "both") -> Float[Tensor, "*B"]:
    """OTAM's distance of each pair: ``d(C) + d(C^T)``, or one of them (``query``: d(C); ``support``: d(C^T))."""
    if direction == "query":
        return alignment_cost(cost, smoothing)
    if direction == "support":
        return alignment_cost(cost.mT, smoothing)
    if cost.shape[-2] == cost.shape[-1]:  # both directions in the same steps
        return alignment_cost(torch.stack([cost, cost.mT]), smoothing).sum(0)
    return alignment_cost(cost, smoothing) + alignment_cost(cost.mT, smoothing)


def alignment_cost(cost: Float[Tensor, "*B Lq Ls"], smoothing: float = 0.1) -> Float[Tensor, "*B"]:
    """``d(C)`` of OTAM for each matrix C: the soft cost of the cheapest ordered alignment (Cao et al., section 3.3).

    With ``smin_l(a) = -l logsumexp(-a / l)``, ``smin_0 = min``, and a column of zeros on the left and on the right of
    C: ``G(1, j) = sum_{m <= j} C(1, m)``, ``G(i, 0) = 0``, and for i from 2

        G(i, 1)    = C(i, 1) + smin{G(i-1, 0), G(i-1, 1), G(i, 0)}
        G(i, j)    = C(i, j) + smin{G(i-1, j-1), G(i, j-1)}                 2 <= j <= Ls
        G(i, Ls+1) =           smin{G(i-1, Ls), G(i-1, Ls+1), G(i, Ls)}

    and ``d(C) = G(Lq, Ls+1)``. Inside, a cell needs the column on its left alone, so all rows of all pairs are computed
    at once, one column after the other: Ls - 1 steps. The first column adds Lq - 1 steps of one cell a pair. The last
    column has no cost of its own, so it is one soft minimum over the column before it, in which each row but the last
    counts twice: as G(i, Ls) of its own row and as G(i-1, Ls) of the next.

    Args:
        cost: C, rows are the frames that are aligned one after the other.
        smoothing: lambda; 0 for the hard minimum.
    """
    rows = cost.shape[-2]
    # The log domain: gain = -G / lambda, where the soft minimum is logaddexp without a factor.
    gain = -cost / smoothing if smoothing else -cost
    add, twice = (torch.logaddexp, LOG2) if smoothing else (torch.maximum, 0.0)
    first, *others = rearrange(gain, "... i j -> j i ...").contiguous().unbind(0)  # a column of all pairs is one block
    first_row = torch.stack([column[0] for column in (first, *others)]).cumsum(0).unbind(0)
    cells = [first[0]]
    edge = torch.full_like(first[0], twice)  # G(i-1, 0) and G(i, 0)
    for i in range(1, rows):
        cells.append(first[i] + add(edge, cells[-1]))
    column = torch.stack(cells)
    for start, step in zip(first_row[1:], others, strict=True):
        column = torch.cat([start[None], step[1:] + add(column[:-1], column[1:])])
    if smoothing:
        ends = torch.logsumexp(torch.cat([column[:-1] + twice, column[-1:]]), 0)
        return -smoothing * ends
    return -column.amax(0)
