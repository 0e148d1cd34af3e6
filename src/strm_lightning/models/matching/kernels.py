"""Clip descriptors (one vector for each clip), ridge regression, and kernel ridge regression on weighted kernels.

Except for `ridge`, these methods are not from a paper. `energy` ignores what moves, `motionmap` ignores order,
`meanpatch` ignores motion. Similarities are inner products of descriptors, and `lag.lag_similarity`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
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
    support, query = at_least_float32(support, query)
    coefficients = fit_ridge(support, rho, shot_mask)  # checks the mask
    return apply_ridge(zero_absent(support, shot_mask).flatten(-3, -2), query, coefficients)


def fit_ridge(
    support: Float[Tensor, "*B N K F"], rho: float = 1.0, shot_mask: Tensor | None = None
) -> Float[Tensor, "*B S N"]:
    """Compute the coefficients A of `ridge`, with ``S = N K``; rows of absent clips are 0."""
    check_not_negative(rho=rho)
    if shot_mask is not None:
        check_shot_mask(shot_mask, support.shape[-3:-1])
    (clips,) = at_least_float32(zero_absent(support, shot_mask).flatten(-3, -2))
    return _fit_ridge(inner_products(clips, clips), support.shape[-3], rho, shot_mask)


def _fit_ridge(own: Tensor, way: int, rho: float, shot_mask: Tensor | None) -> Tensor:
    label = labels_by_class(own, way)
    present = torch.ones_like(own[..., 0], dtype=torch.bool) if shot_mask is None else shot_mask.flatten(-2)
    # An absent clip has a row of zeros; 1 on the diagonal keeps the system regular for any rho.
    penalty = torch.full_like(own[..., 0], rho).masked_fill(~present, 1)
    _check_regular(own, rho, penalty)
    return _solve(own, penalty, _one_hot(label, way, present, own.dtype))


def apply_ridge(
    clips: Float[Tensor, "*B S F"], query: Float[Tensor, "*B Q F"], coefficients: Float[Tensor, "*B S N"]
) -> Float[Tensor, "*B Q N"]:
    """Compute the logits of `ridge` from the coefficients of `fit_ridge`."""
    cross, coefficients = at_least_float32(inner_products(clips, query), coefficients)
    with no_autocast(cross):
        return cross @ coefficients


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
    solution = _fit_ridge(own, way, rho, shot_mask)
    with no_autocast(own):
        return cross @ solution


@dataclass(frozen=True)
class KernelRidgeFit:
    """A kernel ridge regression that is fitted to the support: ``logits = sum_c (k_c(q, s) A_c + b_c)``.

    Attributes:
        coefficients: A, for each kernel c and support clip s, ``[..., C, S, N]``; centring and weights are included.
        bias: b, ``[..., C, N]``.
        weights: weight of each kernel, ``[..., C]``, see `kernel_weights`.
    """

    coefficients: Tensor
    bias: Tensor
    weights: Tensor


def weighted_kernel_ridge(
    support: Sequence[Float[Tensor, "*B S S"]],
    query: Sequence[Float[Tensor, "*B Q S"]],
    way: int,
    shot_mask: Tensor | None = None,
    ridge: float = 0.1,
) -> Float[Tensor, "*B Q N"]:
    """Kernel ridge regression to one-hot labels on a weighted sum of kernels, for several shots.

    `fit_kernel_ridge` to the support, then `apply_kernel_ridge` to the queries. Logits depend on all classes of the
    episode.

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
    if shot_mask is not None:
        check_shot_mask(shot_mask, (way, support[0].shape[-1] // way))
    label = labels_by_class(support[0], way)
    present = None if shot_mask is None else shot_mask.flatten(-2)
    fit = fit_kernel_ridge(support, label, way, present, ridge)
    return apply_kernel_ridge(fit.coefficients, fit.bias, query, present).sum(-3)


def fit_kernel_ridge(
    support: Sequence[Float[Tensor, "*B S S"]],
    label: Int[Tensor, " S"],
    way: int,
    present: Bool[Tensor, "*#B S"] | None = None,
    ridge: float = 0.1,
) -> KernelRidgeFit:
    """Fit kernel ridge regression to the support clips.

    Each kernel is centred on the support and scaled to a mean diagonal of 1 (`center_kernels`), and weighted by
    `kernel_weights`; negative eigenvalues of the sum are set to 0; the penalty is ``ridge`` times its mean diagonal.
    The correction of negative eigenvalues is treated as a constant in the gradient, because repeated eigenvalues have
    no gradient.

    Args:
        support: for each kernel, similarities between support clips.
        label: class of each support clip, 0 .. N-1.
        way: number of classes N. Logits of a class without any present clip have no meaning.
        present: true where a clip is present; None if all are. Rows and columns of absent clips are ignored.
        ridge: penalty as a fraction of the mean diagonal.

    Raises:
        InputError: ``ridge`` is not positive.
    """
    check_positive(ridge=ridge)
    own = torch.stack(at_least_float32(*support), -3)
    if present is None:
        present = torch.ones(own.shape[:-3] + own.shape[-1:], dtype=torch.bool, device=own.device)
    with no_autocast(own):
        own, offset, scale = center_kernels(own, present.unsqueeze(-2))
        weights = kernel_weights(own, label, present.unsqueeze(-2))
        gram = (weights[..., None, None] * own).sum(-3)
        gram = gram + _negative_part(gram)
        count = present.sum(-1, keepdim=True)
        penalty = ridge * gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) / count
        # If all clips are equal, every kernel and every logit is 0.
        penalty = torch.where(present & (penalty > 0), penalty, 1)
        dual = _solve(gram, penalty, _one_hot(label, way, present, gram.dtype))
        # Centring of a query's similarities is linear in them, so it is moved into the coefficients:
        # sum_s (k_s - mean(k) - offset_s) dual_s = sum_s k_s (dual_s - mean(dual)) - sum_s offset_s dual_s.
        gain = weights / scale
        centered = torch.where(present.unsqueeze(-1), dual - dual.sum(-2, keepdim=True) / count.unsqueeze(-1), 0)
        bias = -gain.unsqueeze(-1) * (offset @ dual)
        return KernelRidgeFit(gain[..., None, None] * centered.unsqueeze(-3), bias, weights)


def apply_kernel_ridge(
    coefficients: Float[Tensor, "*B C S N"],
    bias: Float[Tensor, "*B C N"],
    query: Sequence[Float[Tensor, "*B Q S"]],
    present: Bool[Tensor, "*#B S"] | None = None,
) -> Float[Tensor, "*B C Q N"]:
    """Compute the part of the logits of each kernel from the similarities of queries and support clips.

    See `KernelRidgeFit`; the sum over the kernels is the logit.
    """
    cross = torch.stack(at_least_float32(*query), -3)
    cross, coefficients, bias = at_least_float32(cross, coefficients, bias)
    if present is not None:
        cross = torch.where(present[..., None, None, :], cross, 0)
    with no_autocast(cross):
        return cross @ coefficients + bias.unsqueeze(-2)


def center_kernels(own: Float[Tensor, "*B S S"], present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre similarities on the support (in feature space: subtract the mean of the support) and scale them.

    ``k(a, b) - mean_s k(a, s) - mean_s k(s, b) + mean_ss' k(s, s')``, divided by the mean diagonal over the support.
    Rows and columns of clips that are not ``present`` ``[..., S]`` are 0. A kernel that is constant up to rounding
    becomes 0.

    Returns:
        The centred and scaled kernels; ``mean_s k(s, b) - mean_ss' k(s, s')`` of each support clip b, ``[..., S]``;
        the scale, ``[...]``, infinite for a constant kernel.
    """
    count = present.sum(-1)[..., None, None].clamp_min(1)
    both = present.unsqueeze(-2) & present.unsqueeze(-1)
    own = torch.where(both, (own + own.mT) / 2, 0)
    mean = own.sum(-2, keepdim=True) / count
    offset = mean - mean.sum(-1, keepdim=True) / count
    size = own.abs().amax((-2, -1))
    own = torch.where(both, own - mean.mT - offset, 0)
    scale = own.diagonal(dim1=-2, dim2=-1).sum(-1) / count[..., 0, 0]
    rounding = own.shape[-1] * torch.finfo(own.dtype).eps * size
    scale = torch.where(scale > rounding, scale, torch.inf)
    return own / scale[..., None, None], offset.squeeze(-2), scale


def kernel_weights(
    own: Float[Tensor, "*B S S"], label: Int[Tensor, " S"], present: Bool[Tensor, "*#B S"]
) -> Float[Tensor, "*B"]:
    """Compute a weight for each kernel by how well it separates the support classes: ``max(0, d')^2 + 0.001``.

    d' is the mean similarity within classes minus that between classes, over all pairs of present support clips,
    divided by the pooled standard deviation of both groups. It is 0 if a group has no pair (one shot, or one class).
    """
    size = own.shape[-1]
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


def labels_by_class(scores: Float[Tensor, "*B Q S"], way: int) -> Int[Tensor, " S"]:
    """Return the class of each support clip if the clips are ordered by class and each class has S / N clips."""
    return torch.arange(way, device=scores.device).repeat_interleave(scores.shape[-1] // way)


def class_means(
    scores: Float[Tensor, "*B Q S"],
    label: Int[Tensor, " S"],
    way: int,
    present: Bool[Tensor, "*#B S"] | None = None,
) -> Float[Tensor, "*B Q N"]:
    """Compute the mean score over the clips of each class, as `mean_over_shots` for clips in any order."""
    if present is None:
        present = torch.ones_like(label, dtype=torch.bool)
    (scores,) = at_least_float32(scores)
    members = _one_hot(label, way, present, scores.dtype)
    with no_autocast(scores):
        sums = torch.where(present.unsqueeze(-2), scores, 0) @ members
    return sums / members.sum(-2).clamp_min(1).unsqueeze(-2)


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


def _one_hot(label: Tensor, way: int, present: Tensor, dtype: torch.dtype) -> Tensor:
    """Return targets ``[..., S, N]`` of clips; rows of absent clips are 0."""
    classes = torch.arange(way, device=label.device)
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
