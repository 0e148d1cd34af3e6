"""Clip descriptors (one vector for each clip), ridge regression, and kernel ridge regression on weighted kernels.

Except for `ridge`, these methods are not from a paper. `energy` ignores what moves, `motionmap` ignores order,
`meanpatch` ignores motion. Similarities are inner products of descriptors, and `lag.lag_similarity`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from strm_lightning.errors import InputError
from strm_lightning.messages import check_not_negative, check_positive
from strm_lightning.models.matching.precision import at_least_float32, inner_products, no_autocast, safe_ratio
from strm_lightning.models.matching.shots import check_shot_mask, zero_absent


def unit(x: Tensor, axes: int = 1) -> Tensor:
    """Scale the vector over the last ``axes`` axes to length 1, in float32 or float64; zero vectors stay zero."""
    (x,) = at_least_float32(x)
    return safe_ratio(x, torch.linalg.vector_norm(x, dim=tuple(range(-axes, 0)), keepdim=True))


def centered(grid: Float[Tensor, "*B L P D"]) -> Float[Tensor, "*B L P D"]:
    """Subtract the mean over time of each patch, in float32 or float64; this removes static content."""
    (grid,) = at_least_float32(grid)
    return grid - grid.mean(-3, keepdim=True)


def unit_patches(grid: Float[Tensor, "*B L P D"]) -> Float[Tensor, "*B L P D"]:
    """Scale the centred patches of a clip to one unit vector over the last three axes."""
    return unit(centered(grid), 3)


def energy(grid: Float[Tensor, "*B L P D"]) -> Float[Tensor, "*B LP"]:
    """Compute the amount of motion by place and time: lengths of the centred patches minus their mean, unit vector."""
    length = torch.linalg.vector_norm(centered(grid), dim=-1).flatten(-2)
    return unit(length - length.mean(-1, keepdim=True))


def motionmap(grid: Float[Tensor, "*B L P D"]) -> Float[Tensor, "*B PD"]:
    """Compute motion by place, without order: ``sqrt(mean_t x^2)`` of the centred patches, as a unit vector."""
    # vector_norm has gradient 0 at 0; the root of a sum of squares has NaN. `unit` removes the factor 1 / sqrt(L).
    return unit(torch.linalg.vector_norm(centered(grid), dim=-3).flatten(-2))


def meanpatch(grid: Float[Tensor, "*B L P D"]) -> Float[Tensor, "*B PD"]:
    """Compute the appearance: the mean over time of the patches (not centred), as a unit vector."""
    (grid,) = at_least_float32(grid)
    return unit(grid.mean(-3).flatten(-2))


def ridge(
    support: Float[Tensor, "*B N K F"],
    query: Float[Tensor, "*B Q F"],
    rho: float = 1.0,
    shot_mask: Tensor | None = None,
) -> Float[Tensor, "*B Q N"]:
    """Ridge regression from clips to one-hot labels in closed form (R2-D2: Bertinetto et al., ICLR 2019).

    ``A = (V V^T + rho I)^-1 Y`` over the support clips, ``logits = v_q V^T A``.

    Args:
        support: support clips as unit vectors (`unit`).
        query: queries as unit vectors.
        rho: weight of the penalty.
        shot_mask: ``[..., N, K]``, true where a clip is present. Absent clips are ignored.

    Returns:
        Logits, ``[..., Q, N]``.

    Raises:
        InputError: ``rho`` is below 0, or so small that linearly dependent clips make the system singular (not checked
            in compiled code); the mask does not fit the support.
    """
    check_not_negative(rho=rho)
    if shot_mask is not None:
        check_shot_mask(shot_mask, support.shape[-3:-1])
    clips, query = at_least_float32(zero_absent(support, shot_mask).flatten(-3, -2), query)
    return ridge_of_products(
        inner_products(clips, clips), inner_products(clips, query), support.shape[-3], rho, shot_mask
    )


def ridge_of_products(
    own: Float[Tensor, "*B S S"],
    cross: Float[Tensor, "*B Q S"],
    way: int,
    rho: float = 1.0,
    shot_mask: Tensor | None = None,
) -> Float[Tensor, "*B Q N"]:
    """Compute `ridge` from inner products.

    Args:
        own: inner products of the support clips, ordered by class: ``S = N K``. Rows and columns of absent clips are 0.
        cross: inner products of the queries and support clips.
        way: number of classes N.
        rho: weight of the penalty.
        shot_mask: ``[..., N, K]``, true where a clip is present.

    Raises:
        InputError: see `ridge`.
    """
    check_not_negative(rho=rho)
    present = _present(own, shot_mask)
    # An absent clip has a row of zeros; 1 on the diagonal keeps the system regular for any rho.
    penalty = torch.full_like(own[..., 0], rho).masked_fill(~present, 1)
    _check_regular(own, rho, penalty)
    solution = _solve(own, penalty, _one_hot(way, present, own.dtype))
    with no_autocast(own):
        return cross @ solution


def weighted_kernel_ridge(
    support: Sequence[Float[Tensor, "*B S S"]],
    query: Sequence[Float[Tensor, "*B Q S"]],
    way: int,
    shot_mask: Tensor | None = None,
    ridge: float = 0.1,
) -> Float[Tensor, "*B Q N"]:
    """Kernel ridge regression to one-hot labels on a weighted sum of kernels, for several shots.

    Each kernel is centred on the support (`center_kernels`) and weighted by `kernel_weights`; negative eigenvalues of
    the sum are set to 0; the penalty is ``ridge`` times its mean diagonal. Logits depend on all classes of the episode.
    The correction of negative eigenvalues is treated as a constant in the gradient, because repeated eigenvalues have
    no gradient.

    Args:
        support: for each kernel, similarities between support clips, ordered by class: ``S = N K``.
        query: for each kernel, similarities between queries and support clips.
        way: number of classes N.
        shot_mask: ``[..., N, K]``, true where a clip is present. Rows and columns of absent clips are ignored.
        ridge: penalty as a fraction of the mean diagonal.

    Returns:
        Logits, ``[..., Q, N]``.

    Raises:
        InputError: there is no kernel, support and query have different numbers of kernels, ``ridge`` is not positive,
            or the mask does not fit the support.
    """
    if not support or len(support) != len(query):
        raise InputError(f"{len(support)} support kernels and {len(query)} query kernels: give at least one of each")
    check_positive(ridge=ridge)
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
        # If all clips are equal, every kernel and every logit is 0.
        penalty = torch.where(present & (penalty > 0), penalty, 1)
        return cross @ _solve(own, penalty, _one_hot(way, present, own.dtype))


def center_kernels(
    own: Float[Tensor, "*B S S"], cross: Float[Tensor, "*B Q S"], present: Tensor
) -> tuple[Float[Tensor, "*B S S"], Float[Tensor, "*B Q S"]]:
    """Centre similarities on the support (in feature space: subtract the mean of the support) and scale them.

    ``k(a, b) - mean_s k(a, s) - mean_s k(s, b) + mean_ss' k(s, s')``, divided by the mean diagonal over the support.
    Rows and columns of clips that are not ``present`` ``[..., S]`` are 0. A kernel that is constant up to rounding
    becomes 0.
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
    """Compute a weight for each kernel by how well it separates the support classes: ``max(0, d')^2 + 0.001``.

    d' is the mean similarity within classes minus that between classes, over all pairs of present support clips,
    divided by the pooled standard deviation of both groups. It is 0 if a group has no pair (one shot, or one class).
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
    """Sum the logits of several methods, each z-scored over the classes of a query (one shot: lag + energy).

    The z-score uses the population standard deviation over the N classes. Logits that are equal for all classes
    become 0.

    Raises:
        InputError: there are no logits.
    """
    if not logits:
        raise InputError("z_sum got no logits: give those of at least one method")
    return torch.stack([_z_score(each) for each in at_least_float32(*logits)]).sum(0)


def _z_score(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(-1, keepdim=True)
    deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / logits.shape[-1] ** 0.5
    rounding = torch.finfo(logits.dtype).eps * logits.abs().amax(-1, keepdim=True)
    return torch.where(deviation > rounding, safe_ratio(centred, deviation), 0)


def _present(clips: Tensor, shot_mask: Tensor | None) -> Tensor:
    """Return the mask of present clips, ``[..., S]``, for clips ``[..., S, *]``."""
    if shot_mask is not None:
        return shot_mask.flatten(-2)
    return torch.ones(clips.shape[:-1], dtype=torch.bool, device=clips.device)


def _one_hot(way: int, present: Tensor, dtype: torch.dtype) -> Tensor:
    """Return targets ``[..., S, N]`` of clips ordered by class; rows of absent clips are 0."""
    classes = torch.arange(way, device=present.device)
    label = classes.repeat_interleave(present.shape[-1] // way)
    return ((label.unsqueeze(-1) == classes) & present.unsqueeze(-1)).to(dtype)


def _solve(gram: Tensor, penalty: Tensor, targets: Tensor) -> Tensor:
    """Compute ``(gram + diag(penalty))^-1 targets`` by LU, which also works with eigenvalues slightly below 0."""
    with no_autocast(gram):
        solution: Tensor = torch.linalg.solve_ex(gram + torch.diag_embed(penalty), targets)[0]
        return solution


def _check_regular(gram: Tensor, rho: float, penalty: Tensor) -> None:
    """Check that the smallest eigenvalue is above the rounding error of the largest."""
    if torch.compiler.is_compiling():
        return
    rounding = gram.shape[-1] * torch.finfo(gram.dtype).eps
    largest = gram.detach().diagonal(dim1=-2, dim2=-1).sum(-1).amax().item()  # the trace bounds the eigenvalues
    if rho > rounding * largest:
        return
    values = torch.linalg.eigvalsh((gram + torch.diag_embed(penalty)).detach())
    if bool((values[..., 0] <= rounding * values[..., -1]).any()):
        raise InputError(
            f"rho is {rho}: the support clips are linearly dependent, so the system is singular; "
            "give a larger rho, for example 1"
        )


def _negative_part(kernel: Tensor) -> Tensor:
    """Return what to add to a symmetric matrix to set its negative eigenvalues to 0; without gradient."""
    values, vectors = torch.linalg.eigh(kernel.detach())
    return (vectors * (-values).clamp_min(0).unsqueeze(-2)) @ vectors.mT


def _moments(own: Tensor, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, sum of squared deviations, and number of the selected entries of each matrix."""
    count = members.sum((-2, -1))
    mean = torch.where(members, own, 0).sum((-2, -1)) / count.clamp_min(1)
    squares = torch.where(members, own - mean[..., None, None], 0).square().sum((-2, -1))
    return mean, squares, count
