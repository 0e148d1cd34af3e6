"""Frame-to-frame matching: OTAM, Bi-MHM, Chamfer and simpler scores, batched over all pairs of clips.

With ``cos(x, y) = <x, y> / (|x| |y| + eps)``, a query's frames q_i (i = 1..Lq), a support clip's frames s_j
(j = 1..Ls), ``S_ij = cos(q_i, s_j)`` and ``C = 1 - S``:

- ``mean``: ``cos(mean_i q_i, mean_j s_j)``; with ``squared``, ``-|mean_i q_i - mean_j s_j|^2``, which with
  ``shots="prototype"`` is ProtoNet (Snell et al., NeurIPS 2017).
- ``pairs``: ``mean_i sum_j S_ij``; the sum over j is as published, so the scale grows with Ls.
- ``max``: ``max_ij S_ij``.
- ``diagonal``: ``mean_i S_ii``.
- ``linear``: ``sum_ij w_ij S_ij``.
- ``chamfer``: ``1/2 (mean_i max_j S_ij + mean_j max_i S_ij)``, or one half. With ``shots="joint"`` on tuples of three
  projected frames it is Chamfer++.
- ``bi_mhm``: ``-(sum_i min_j C_ij + sum_j min_i C_ij)`` (HyRSM: Wang et al., CVPR 2022; published with ``eps=0``).
- ``otam``: ``-(d(C) + d(C^T))``, d of `otam.alignment_cost` (OTAM: Cao et al., CVPR 2020).

``pairs``, ``max``, ``diagonal``, ``linear``, ``chamfer`` and Chamfer++ follow the comparison matching_based_fsar
(2023); ``mean`` is the TSN head of few-shot-action-recognition and of CLIP-FSAR.
"""

from typing import Any, Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from strm_lightning.errors import InputError
from strm_lightning.messages import check_choice, check_not_negative
from strm_lightning.models.matching.otam import otam_cost
from strm_lightning.models.matching.precision import at_least_float32, inner_products
from strm_lightning.models.matching.shots import check_shot_mask, mean_over_shots, prototypes, zero_absent
from strm_lightning.models.matching.tuples import tuple_members

Shots = Literal["distance", "prototype", "joint"]
Direction = Literal["both", "query", "support"]

OPTIONS: dict[str, tuple[str, ...]] = {
    "mean": ("squared",),
    "pairs": (),
    "max": (),
    "diagonal": (),
    "linear": ("weight",),
    "chamfer": ("direction",),
    "bi_mhm": (),
    "otam": ("direction", "smoothing", "debias"),
}
"""Methods, and the options that not all of them have."""

JOINT = ("max", "chamfer", "bi_mhm")
"""Methods for which ``shots="joint"`` is defined."""


def frame_alignment(
    support: Float[Tensor, "*B N K Ls D"],
    query: Float[Tensor, "*B Q Lq D"],
    method: str,
    *,
    shots: str = "distance",
    eps: float = 0.01,
    shot_mask: Tensor | None = None,
    direction: str = "both",
    smoothing: float = 0.1,
    squared: bool = False,
    weight: Tensor | None = None,
    tuple_size: int = 1,
    debias: bool = False,
) -> Float[Tensor, "*B Q N"]:
    """Compute logits by comparing frames; the docstring of the module lists methods and equations.

    Args:
        support: frame features of the support clips. Ls may differ from Lq except for ``diagonal`` and ``linear``.
        query: frame features of the queries.
        method: ``mean``, ``pairs``, ``max``, ``diagonal``, ``linear``, ``chamfer``, ``bi_mhm`` or ``otam``.
        shots: how to combine the clips of a class. ``distance``: the mean of their scores. ``prototype``: the mean of
            their features, frame by frame. ``joint``: the frames of all clips, concatenated on the support axis; only
            for ``max``, ``chamfer`` and ``bi_mhm``.
        eps: added to the product of lengths in the cosine. With 0 (exact cosine), a zero vector has cosine 0.
        shot_mask: ``[..., N, K]``, true where a clip is present; None if all are. Absent clips are ignored, NaN
            included, and get no gradient.
        direction: for ``chamfer`` and ``otam``. ``query``: match each query frame to support frames (for OTAM the
            query's frames are the rows of C); ``support``: the reverse; ``both``: the mean of both (Chamfer) or their
            sum (OTAM).
        smoothing: lambda of OTAM's soft minimum; 0 for the hard minimum.
        squared: minus the squared distance instead of the cosine (``mean``).
        weight: ``w_ij`` of ``linear``, ``[Lq, Ls]`` or flattened in row-major order (with tuples, T instead of L).
        tuple_size: compare concatenated ordered tuples of this many frames instead of single frames.
        debias: OTAM's soft minimum subtracts up to lambda log 3 per step, so two still clips cost less than two equal
            moving clips. Replace ``D(q, s)`` by ``D(q, s) - 1/2 (D(q, q) + D(s, s))``.

    Returns:
        Logits, ``[..., Q, N]``, float32 or float64. With ``distance`` they are the mean of `alignment_scores` over the
        clips of a class.

    Raises:
        InputError: an option is unknown, out of range, or of another method; ``diagonal`` or ``linear`` with different
            Lq and Ls; the mask does not fit the support.
    """
    way_and_shot = support.shape[-4:-2]
    check_choice("shots", shots, get_args(Shots))
    check_method(method)
    if shots == "joint" and method not in JOINT:
        raise InputError(f"shots 'joint' is not defined for {method!r}, only for {', '.join(JOINT)}")
    if shot_mask is not None:
        check_shot_mask(shot_mask, way_and_shot)
    options: dict[str, Any] = {
        "direction": direction,
        "smoothing": smoothing,
        "squared": squared,
        "weight": weight,
        "debias": debias,
    }
    support, query = at_least_float32(zero_absent(support, shot_mask), query)
    if shots == "prototype":
        return alignment_scores(
            prototypes(support, shot_mask), query, method, eps=eps, tuple_size=tuple_size, **options
        )
    clips = support.flatten(-4, -3)
    if shots == "distance":
        scores = alignment_scores(clips, query, method, eps=eps, tuple_size=tuple_size, **options)
        return mean_over_shots(scores, way_and_shot[0], shot_mask)
    _check_options(method, eps, options)
    cosine = rearrange(
        frame_cosines(clips, query, eps, tuple_size), "... q (n k) i j -> ... q n i (k j)", n=way_and_shot[0]
    )
    present = None
    if shot_mask is not None:
        present = shot_mask.repeat_interleave(cosine.shape[-1] // way_and_shot[1], dim=-1).unsqueeze(-3)
    return _best_matches(cosine, method, direction, present)


def alignment_scores(
    support: Float[Tensor, "*B S Ls D"],
    query: Float[Tensor, "*B Q Lq D"],
    method: str,
    *,
    eps: float = 0.01,
    direction: str = "both",
    smoothing: float = 0.1,
    squared: bool = False,
    weight: Tensor | None = None,
    tuple_size: int = 1,
    debias: bool = False,
) -> Float[Tensor, "*B Q S"]:
    """Compute one score for each query and support clip; see `frame_alignment` for arguments and errors."""
    check_method(method)
    _check_options(
        method,
        eps,
        {"direction": direction, "smoothing": smoothing, "squared": squared, "weight": weight, "debias": debias},
    )
    support, query = at_least_float32(support, query)
    _check_tuple_size(tuple_size, support.shape[-2], query.shape[-2])
    if method == "mean":
        return _mean_scores(_mean_tuple(support, tuple_size), _mean_tuple(query, tuple_size), eps, squared)
    scores = scores_of_cosines(
        frame_cosines(support, query, eps, tuple_size), method, direction=direction, smoothing=smoothing, weight=weight
    )
    if debias:
        q_cost, s_cost = (_self_cost(clips, eps, tuple_size, smoothing, direction) for clips in (query, support))
        scores = scores + (q_cost.unsqueeze(-1) + s_cost.unsqueeze(-2)) / 2
    return scores


def scores_of_cosines(
    cosine: Float[Tensor, "*B i j"],
    method: str,
    *,
    direction: str = "both",
    smoothing: float = 0.1,
    weight: Tensor | None = None,
) -> Float[Tensor, "*B"]:
    """Compute the score of each pair of clips from its matrix S, for every method but ``mean``.

    Raises:
        InputError: ``diagonal`` or ``linear`` with different numbers of query and support frames.
    """
    if method in JOINT:
        return _best_matches(cosine, method, direction)
    if method == "pairs":
        return cosine.sum(-1).mean(-1)
    if method == "otam":
        return -otam_cost(1 - cosine, smoothing, direction)
    rows, columns = cosine.shape[-2:]
    if rows != columns:
        raise InputError(f"{method!r} needs as many frames in queries as in support clips, not {rows} and {columns}")
    if method == "diagonal":
        return cosine.diagonal(dim1=-2, dim2=-1).mean(-1)
    return _weighted(cosine, weight)


def frame_cosines(
    support: Float[Tensor, "*B S Ls D"], query: Float[Tensor, "*B Q Lq D"], eps: float = 0.01, tuple_size: int = 1
) -> Float[Tensor, "*B Q S Tq Ts"]:
    """Compute ``S_ij`` for every query and support clip with one matrix product of ``[Q Lq, D]`` and ``[S Ls, D]``.

    Tuples are not concatenated in memory: the inner product of two tuples is the sum of the inner products of their
    frames, and the squared length of a tuple is the sum of the squared lengths of its frames.

    Raises:
        InputError: ``tuple_size`` is below 1 or above the number of frames.
    """
    _check_tuple_size(tuple_size, support.shape[-2], query.shape[-2])
    support, query = at_least_float32(support, query)
    products = inner_products(support.flatten(-3, -2), query.flatten(-3, -2))
    products = rearrange(products, "... (q i) (s j) -> ... q s i j", i=query.shape[-2], j=support.shape[-2])
    q_length, s_length = (torch.linalg.vector_norm(x, dim=-1) for x in (query, support))
    if tuple_size > 1:
        rows, columns = (tuple_members(tuple_size, x.shape[-2]).to(x.device) for x in (query, support))
        positions = zip(rows, columns, strict=True)
        first, *others = (products.index_select(-2, i).index_select(-1, j) for i, j in positions)
        products = sum(others, start=first)
        q_length, s_length = _tuple_length(q_length, rows), _tuple_length(s_length, columns)
    lengths = q_length[..., :, None, :, None] * s_length[..., None, :, None, :]
    return products / _denominator(lengths, eps)


def check_method(method: str) -> None:
    """Check the name of a method.

    Raises:
        InputError: there is no such method.
    """
    check_choice("method", method, tuple(OPTIONS))


def _self_cost(clips: Tensor, eps: float, tuple_size: int, smoothing: float, direction: str) -> Tensor:
    """Compute D(x, x) of each clip."""
    clips = clips.unsqueeze(-3)
    return otam_cost(1 - frame_cosines(clips, clips, eps, tuple_size).squeeze(-3).squeeze(-3), smoothing, direction)


def _best_matches(cosine: Tensor, method: str, direction: str = "both", present: Tensor | None = None) -> Tensor:
    """Compute Max, Chamfer or Bi-MHM from S ``[..., i, j]``, ignoring columns that are not ``present`` ``[..., j]``."""
    for_query = cosine if present is None else cosine.masked_fill(~present.unsqueeze(-2), -torch.inf)
    if method == "max":
        return for_query.amax((-2, -1))
    best_of_query, best_of_support = for_query.amax(-1), cosine.amax(-2)
    columns = cosine.shape[-1] if present is None else present.sum(-1).clamp_min(1)
    if method == "bi_mhm":
        missing = 1 - best_of_support if present is None else torch.where(present, 1 - best_of_support, 0)
        return -((1 - best_of_query).sum(-1) + missing.sum(-1))
    found = best_of_support if present is None else torch.where(present, best_of_support, 0)
    by_query, by_support = best_of_query.mean(-1), found.sum(-1) / columns
    return {"query": by_query, "support": by_support, "both": (by_query + by_support) / 2}[direction]


def _mean_scores(support: Tensor, query: Tensor, eps: float, squared: bool) -> Tensor:
    """Compute scores of mean features ``[..., S, D]`` and ``[..., Q, D]``."""
    if squared:
        # Subtracting the mean of the support avoids cancellation in the differences of squares.
        origin = support.mean(-2, keepdim=True).detach()
        support, query = support - origin, query - origin
        lengths = query.square().sum(-1).unsqueeze(-1) + support.square().sum(-1).unsqueeze(-2)
        return (2 * inner_products(support, query) - lengths).clamp_max(0)
    q_length, s_length = (torch.linalg.vector_norm(x, dim=-1) for x in (query, support))
    return inner_products(support, query) / _denominator(q_length.unsqueeze(-1) * s_length.unsqueeze(-2), eps)


def _mean_tuple(clips: Tensor, size: int) -> Tensor:
    """Compute the mean of the concatenated ordered tuples, ``[..., L, D] -> [..., size D]``."""
    if size == 1:
        return clips.mean(-2)
    members = tuple_members(size, clips.shape[-2]).to(clips.device)
    return torch.cat([clips.index_select(-2, frames).mean(-2) for frames in members], dim=-1)


def _weighted(cosine: Tensor, weight: Tensor | None) -> Tensor:
    rows, columns = cosine.shape[-2:]
    if weight is None or tuple(weight.shape) not in ((rows, columns), (rows * columns,)):
        problem = "is missing" if weight is None else f"has the shape {list(weight.shape)}"
        raise InputError(f"weight of 'linear' {problem}: give [{rows}, {columns}] or [{rows * columns}]")
    cosine, weight = at_least_float32(cosine, weight.reshape(rows, columns))
    return (cosine * weight).sum((-2, -1))


def _denominator(lengths: Tensor, eps: float) -> Tensor:
    """Return ``lengths + eps``; with eps = 0, 1 for zero vectors, so that cosine and gradients are finite."""
    return lengths + eps if eps else torch.where(lengths == 0, 1, lengths)


def _tuple_length(lengths: Tensor, members: Tensor) -> Tensor:
    # vector_norm has gradient 0 at zero vectors; the root of a sum of squares has NaN.
    return torch.linalg.vector_norm(lengths[..., members], dim=-2)


def _check_options(method: str, eps: float, options: dict[str, Any]) -> None:
    check_choice("direction", options["direction"], get_args(Direction))
    check_not_negative(eps=eps, smoothing=options["smoothing"])
    defaults = {"direction": "both", "smoothing": 0.1, "squared": False, "debias": False}
    changed = [name for name, default in defaults.items() if options[name] != default]
    changed += [] if options["weight"] is None else ["weight"]
    for name in changed:
        if name not in OPTIONS[method]:
            others = ", ".join(other for other, names in OPTIONS.items() if name in names)
            raise InputError(f"{name} is no option of {method!r}, only of {others}")


def _check_tuple_size(size: int, *lengths: int) -> None:
    if not 1 <= size <= min(lengths):
        raise InputError(f"tuple_size is {size}: give 1 to {min(lengths)}, the number of frames")
