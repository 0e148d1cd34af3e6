"""Clips as single vectors: descriptions, ridge regression on them, and kernel ridge on a weighted sum of similarities.

Except `ridge` these are our own methods, not from a paper. A description that is not ``unit_patches`` leaves out
something: `energy` what moves, `motionmap` when, `meanpatch` motion. Similarities are inner products
(`precision.inner_products`) of the flattened descriptions, and `lag.lag_similarity`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from strm_lightning.errors import InputError
from strm_lightning.models.matching.precision import at_least_float32, inner_products, no_autocast, safe_ratio
from strm_lightning.models.matching.shots import check_shot_mask, zero_absent


def unit(x: Tensor, axes: int = 1) -> Tensor:
    """Scale the vector in the last ``axes`` axes to length 1, in float32 at least; zero vectors stay zero."""
    (x,) = at_least_float32(x)
    return safe_ratio(x, torch.linalg.vector_norm(x, dim=tuple(range(-axes, 0)), keepdim=True))


def centered(grid: Float[Tensor, "*B L P D"]) -> Float[Tensor, "*B L P D"]:
    """Subtract the clip's mean map, in float32 at least: what does not move goes away."""
    (grid,) = at_least_float32(grid)
    return grid - grid.mean(-3, keepdim=True)


def unit_patches(grid: Float[Tensor, "*B L P D"]) -> Float[Tensor, "*B L P D"]:
    """The centred patches of all frames in order as one unit vector over the last three axes."""
    return unit(centered(grid), 3)


def energy(grid: Float[Tensor, "*B L P D"]) -> Float[Tensor, "*B LP"]:
    """How much moves, where and when: lengths ``|x_tp|`` of the centred patches, minus their mean, as a unit vector."""
    length = torch.linalg.vector_norm(centered(grid), dim=-1).flatten(-2)
    return unit(length - length.mean(-1, keepdim=True))


def motionmap(grid: Float[Tensor, "*B L P D"]) -> Float[Tensor, "*B PD"]:
    """What moves where, without order: ``sqrt(mean_t x^2)`` of the centred patches, as a unit vector."""
    # vector_norm, not a root of squares: its gradient at 0 is 0, not NaN. The factor 1 / sqrt(L) goes with the scale.
    return unit(torch.linalg.vector_norm(centered(grid), dim=-3).flatten(-2))


def meanpatch(grid: Float[Tensor, "*B L P D"]) -> Float[Tensor, "*B PD"]:
    """Appearance alone: the mean over time of the patches (not centred), as a unit vector."""
    (grid,) = at_least_float32(grid)
    return unit(grid.mean(-3).flatten(-2))


def ridge(
    support: Float[Tensor, "*B N K F"],
    query: Float[Tensor, "*B Q F"],
    rho: float = 1.0,
    shot_mask: Tensor | None = None,
) -> Float[Tensor, "*B Q N"]:
    """Ridge regression from clips to one-hot labels in closed form (R2-D2: Bertinetto et al., ICLR 2019, section 3.2).

    ``A = (V V^T + rho I)^-1 Y`` over the support clips, ``logits = v_q V^T A``.

    Args:
        support: each clip as one unit vector (`unit`).
        query: the same for the queries.
        rho: weight of the penalty.
        shot_mask: ``[..., N, K]``, true where a clip is present. Absent clips may hold anything.

    Raises:
        InputError: ``rho`` is below 0, or so small that linearly dependent clips make the system singular (the latter
            is not checked in compiled code); the mask does not fit.
    """
    if not rho >= 0:
        raise InputError(f"rho is {rho}: give 0 or a positive number")
    if shot_mask is not None:
        check_shot_mask(shot_mask, support.shape[-3:-1])
    clips, query = at_least_float32(zero_absent(support, shot_mask).flatten(-3, -2), query)
    way = support.shape[-3]
    gram, present = inner_products(clips, clips), _present(clips, shot_mask)
    # An absent clip has a row of zeros: 1 on the diagonal keeps the system regular, whatever rho is.
    penalty = torch.full_like(gram[..., 0], rho).masked_fill(~present, 1)
    _check_regular(gram, rho, penalty)
    solution = _solve(gram, penalty, _one_hot(way, present, gram.dtype))
    with no_autocast(gram):
        return inner_products(clips, query) @ solution


def weighted_kernel_ridge(
    support: Sequence[Float[Tensor, "*B S S"]],
    query: Sequence[Float[Tensor, "*B Q S"]],
    way: int,
    shot_mask: Tensor | None = None,
    ridge: float = 0.1,
) -> Float[Tensor, "*B Q N"]:
    """Kernel ridge regression to one-hot labels on a weighted sum of similarities (several examples a class).

    Each kernel is centred in rows and columns on the support and scaled to a mean diagonal of 1; its weight is that of
    `kernel_weights`; negative eigenvalues of the sum are set to 0; the penalty is ``ridge`` times its mean diagonal.
    Logits depend on all classes of the episode. The gradient takes the part that is cut off with the negative
    eigenvalues as constant: a gradient through repeated eigenvalues does not exist.

    Args:
        support: for each kernel, similarities of the support clips with each other, class after class: ``S = N K``.
        query: for each kernel, similarities of the queries with the support clips.
        way: number of classes N.
        shot_mask: ``[..., N, K]``, true where a clip is present. Rows and columns of absent clips may hold anything.
        ridge: penalty as a share of the mean diagonal.

    Raises:
        InputError: no kernel, another number of kernels for support and query, ``ridge`` not positive, or the mask
            does not fit.
    """
    if not support or len(support) != len(query):
        raise InputError(f"{len(support)} support kernels and {len(query)} query kernels: give at least one of each")
    if not ridge > 0:
        raise InputError(f"ridge is {ridge}: give a positive number")
    if shot_mask is not None:
        check_shot_mask(shot_mask, (way, support[0].shape[-1] // way))
    own, cross = torch.stack(at_least_float32(*support), -3), torch.stack(at_least_float32(*query), -3)
    own, cross = at_least_float32(own, cross)
    present = _present(own[..., 0, :, :], shot_mask)
    with no_autocast(own):
        own, cross = center_kernels(own, cross, present.unsqueeze(-2))
        weight = kernel_weights(own, way, present.unsqueeze(-2))[..., None, None]
        own, cross = (weight * own).sum(-3), (weight * cross).sum(-3)
        own = own + _negative_part(own)
        penalty = ridge * own.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) / present.sum(-1, keepdim=True)
        # All clips equal: every kernel is 0, and so is every logit.
        penalty = torch.where(present & (penalty > 0), penalty, 1)
        return cross @ _solve(own, penalty, _one_hot(way, present, own.dtype))


def center_kernels(
    own: Float[Tensor, "*B S S"], cross: Float[Tensor, "*B Q S"], present: Tensor
) -> tuple[Float[Tensor, "*B S S"], Float[Tensor, "*B Q S"]]:
    """Centre similarities twice on the support (in feature space: subtract the support's mean) and scale them.

    ``k(a, b) - mean_s k(a, s) - mean_s k(s, b) + mean_ss' k(s, s')``, divided by the mean diagonal over the support.
    Rows and columns of clips that are not ``present`` ``[..., S]`` are 0. A kernel that is constant but for rounding
    is 0.
    """
    count = present.sum(-1)[..., None, None].clamp_min(1)
    column, row = present.unsqueeze(-2), present.unsqueeze(-1)
    own, cross = torch.where(column & row, (own + own.mT) / 2, 0), torch.where(column, cross, 0)
    mean = own.sum(-2, keepdim=True) / count
    overall = mean.sum(-1, keepdim=True) / count
    size = own.abs().amax((-2, -1), keepdim=True)
    cross = torch.where(column, cross - cross.sum(-1, keepdim=True) / count - mean + overall, 0)
    own = torch.where(column & row, own - mean.mT - mean + overall, 0)
    scale = own.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] / count
    rounding = own.shape[-1] * torch.finfo(own.dtype).eps * size
    scale = torch.where(scale > rounding, scale, torch.inf)
    return own / scale, cross / scale


def kernel_weights(own: Float[Tensor, "*B S S"], way: int, present: Tensor) -> Float[Tensor, "*B"]:
    """``max(0, d')^2 + 0.001``: how well each kernel separates the classes of the support clips.

    d' is the mean similarity within classes minus that between classes, over all pairs of present support clips,
    divided by the pooled standard deviation of both groups. It is 0 where a group has no pair (one clip a class, or
    one class).
    """
    size = own.shape[-1]
    label = torch.arange(size, device=own.device) // (size // way)
    pairs = torch.ones(size, size, dtype=torch.bool, device=own.device).triu(1)
    pairs = pairs & present.unsqueeze(-1) & present.unsqueeze(-2)
    same = label == label.unsqueeze(-1)
    groups = [_moments(own, pairs & same), _moments(own, pairs & ~same)]
    (within, within_squares, within_count), (between, between_squares, between_count) = groups
    freedom = (within_count + between_count - 2).clamp_min(1)
    variance = (within_squares + between_squares) / freedom
    known = (within_count > 0) & (between_count > 0) & (variance > 0)
    separation = (within - between) / torch.where(known, variance, 1).sqrt()
    return torch.where(known, separation, 0).clamp_min(0).square() + 0.001


def z_sum(*logits: Float[Tensor, "*B Q N"]) -> Float[Tensor, "*B Q N"]:
    """Sum of several methods' logits, each z-scored over the classes of its query (one example a class: lag + energy).

    Minus the mean, divided by the standard deviation over the N classes (of the population, N in the denominator).
    Logits that are equal for all classes count as 0.

    Raises:
        InputError: no logits.
    """
    if not logits:
        raise InputError("z_sum of no logits: give those of one method at least")
    return torch.stack([_z_score(each) for each in at_least_float32(*logits)]).sum(0)


def _z_score(logits: Tensor) -> Tensor:
    apart = logits - logits.mean(-1, keepdim=True)
    deviation = torch.linalg.vector_norm(apart, dim=-1, keepdim=True) / logits.shape[-1] ** 0.5
    rounding = torch.finfo(logits.dtype).eps * logits.abs().amax(-1, keepdim=True)
    return torch.where(deviation > rounding, safe_ratio(apart, deviation), 0)


def _present(clips: Tensor, shot_mask: Tensor | None) -> Tensor:
    """Booleans ``[..., S]`` for clips ``[..., S, *]``."""
    if shot_mask is not None:
        return shot_mask.flatten(-2)
    return torch.ones(clips.shape[:-1], dtype=torch.bool, device=clips.device)


def _one_hot(way: int, present: Tensor, dtype: torch.dtype) -> Tensor:
    """Targets ``[..., S, N]`` of clips class after class; absent clips have none."""
    classes = torch.arange(way, device=present.device)
    label = classes.repeat_interleave(present.shape[-1] // way)
    return ((label.unsqueeze(-1) == classes) & present.unsqueeze(-1)).to(dtype)


def _solve(gram: Tensor, penalty: Tensor, targets: Tensor) -> Tensor:
    """``(gram + diag(penalty))^-1 targets`` by LU, which does not fail where rounding makes an eigenvalue negative."""
    with no_autocast(gram):
        solution: Tensor = torch.linalg.solve_ex(gram + torch.diag_embed(penalty), targets)[0]
        return solution


def _check_regular(gram: Tensor, rho: float, penalty: Tensor) -> None:
    """Refuse a system whose smallest eigenvalue is not above the rounding of the largest."""
    if torch.compiler.is_compiling():
        return
    rounding = gram.shape[-1] * torch.finfo(gram.dtype).eps
    largest = gram.detach().diagonal(dim1=-2, dim2=-1).sum(-1).amax().item()  # the trace bounds the eigenvalues
    if rho > rounding * largest:
        return
    values = torch.linalg.eigvalsh((gram + torch.diag_embed(penalty)).detach())
    if bool((values[..., 0] <= rounding * values[..., -1]).any()):
        raise InputError(
            f"rho is {rho}: the support clips depend on each other linearly, so the system is singular; "
            "give a larger rho, for example 1"
        )


def _negative_part(kernel: Tensor) -> Tensor:
    """What must be added to a symmetric matrix to set its negative eigenvalues to 0; without gradient."""
    values, vectors = torch.linalg.eigh(kernel.detach())
    return (vectors * (-values).clamp_min(0).unsqueeze(-2)) @ vectors.mT


def _moments(own: Tensor, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, sum of squared deviations, and number of the chosen entries of each matrix."""
    count = members.sum((-2, -1))
    mean = torch.where(members, own, 0).sum((-2, -1)) / count.clamp_min(1)
    squares = torch.where(members, own - mean[..., None, None], 0).square().sum((-2, -1))
    return mean, squares, count
