"""OTAM's cost of an ordered alignment, batched over all pairs of an episode (Cao et al., CVPR 2020)."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

LOG2 = 0.6931471805599453


def otam_cost(cost: Float[Tensor, "*B Lq Ls"], smoothing: float = 0.1, direction: str = "both") -> Float[Tensor, "*B"]:
    """Compute OTAM's distance of each pair: ``d(C) + d(C^T)``, or only d(C) (``query``) or d(C^T) (``support``)."""
    if direction == "query":
        return alignment_cost(cost, smoothing)
    if direction == "support":
        return alignment_cost(cost.mT, smoothing)
    if cost.shape[-2] == cost.shape[-1]:  # compute both directions in one batch
        return alignment_cost(torch.stack([cost, cost.mT]), smoothing).sum(0)
    return alignment_cost(cost, smoothing) + alignment_cost(cost.mT, smoothing)


def alignment_cost(cost: Float[Tensor, "*B Lq Ls"], smoothing: float = 0.1) -> Float[Tensor, "*B"]:
    """Compute OTAM's ``d(C)`` for each matrix C: the soft cost of the cheapest ordered alignment.

    With ``smin_l(a) = -l logsumexp(-a / l)``, ``smin_0 = min``, and a column of zeros on the left and on the right of
    C: ``G(1, j) = sum_{m <= j} C(1, m)``, ``G(i, 0) = 0``, and for i from 2

        G(i, 1)    = C(i, 1) + smin{G(i-1, 0), G(i-1, 1), G(i, 0)}
        G(i, j)    = C(i, j) + smin{G(i-1, j-1), G(i, j-1)}                 2 <= j <= Ls
        G(i, Ls+1) =           smin{G(i-1, Ls), G(i-1, Ls+1), G(i, Ls)}

    and ``d(C) = G(Lq, Ls+1)``. An inner cell depends only on the column to its left, so all rows of all pairs are
    computed together, column by column: Ls - 1 steps. The first column takes Lq - 1 steps of one cell per pair. The
    last column adds no cost, so it is one soft minimum over the column before it, in which each row but the last
    counts twice: as G(i, Ls) of its row and as G(i-1, Ls) of the next row.

    Args:
        cost: C; the query's frames are the rows.
        smoothing: lambda; 0 for the hard minimum.
    """
    rows = cost.shape[-2]
    # In the log domain, gain = -G / lambda, the soft minimum is logaddexp without a factor.
    gain = -cost / smoothing if smoothing else -cost
    add, twice = (torch.logaddexp, LOG2) if smoothing else (torch.maximum, 0.0)
    first, *others = rearrange(gain, "... i j -> j i ...").contiguous().unbind(0)  # a column of all pairs is contiguous
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
