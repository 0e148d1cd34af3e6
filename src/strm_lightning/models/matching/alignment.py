"""Frame-to-frame matching: OTAM, Bi-MHM, Chamfer and the simple scores beside them, for whole batches of pairs.

With ``cos(x, y) = <x, y> / (|x| |y| + eps)``, a query's frames q_i (i = 1..Lq), a support clip's frames s_j
(j = 1..Ls), ``S_ij = cos(q_i, s_j)`` and ``C = 1 - S``:

- ``mean``: ``cos(mean_i q_i, mean_j s_j)``; with ``squared``, ``-|mean_i q_i - mean_j s_j|^2``, which with
  ``shots="prototype"`` is ProtoNet (Snell et al., NeurIPS 2017).
- ``pairs``: ``mean_i sum_j S_ij``; a sum over j as published, so the scale grows with Ls.
- ``max``: ``max_ij S_ij``.
- ``diagonal``: ``mean_i S_ii``.
- ``linear``: ``sum_ij w_ij S_ij``.
- ``chamfer``: ``1/2 (mean_i max_j S_ij + mean_j max_i S_ij)``, or one half. With ``shots="joint"`` on tuples of three
  projected frames it is Chamfer++.
- ``bi_mhm``: ``-(sum_i min_j C_ij + sum_j min_i C_ij)`` (HyRSM: Wang et al., CVPR 2022; published with ``eps=0``).
- ``otam``: ``-(d(C) + d(C^T))``, d of `otam.alignment_cost` (OTAM: Cao et al., CVPR 2020).

``pairs``, ``max``, ``diagonal``, ``linear``, ``chamfer`` and Chamfer++ are those of the comparison
matching_based_fsar (2023); ``mean`` is the TSN head of few-shot-action-recognition and of CLIP-FSAR.
"""

from difflib import get_close_matches
from itertools import combinations
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from strm_lightning.errors import InputError
from strm_lightning.models.matching.otam import otam_cost
from strm_lightning.models.matching.precision import at_least_float32, inner_products
from strm_lightning.models.matching.shots import check_shot_mask, mean_over_shots, prototypes, zero_absent

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
"""Methods, and the options that only some of them have."""

JOINT = ("max", "chamfer", "bi_mhm")
"""Methods for which ``shots="joint"`` is defined."""


def frame_alignment(
    support: Float[Tensor, "*B N K Ls D"],
    query: Float[Tensor, "*B Q Lq D"],
    method: str,
    *,
    shots: str = "distance",
    eps: float | int = 0.01,
    shot_mask: Tensor | None = None,
    direction: str = "both",
    smoothing: float | int = 0.1,
    squared: bool = False,
    weight: Tensor | None = None,
    tuple_size: int = 1,
    debias: bool = False,
) -> Float[Tensor, "*B Q N"]:
    """Logits of each query for each class by comparing frames (methods and equations: the module's docstring).

    Args:
        support: frame features of the support clips. Ls may differ from Lq except for ``diagonal`` and ``linear``.
        query: frame features of the queries.
        method: ``mean``, ``pairs``, ``max``, ``diagonal``, ``linear``, ``chamfer``, ``bi_mhm`` or ``otam``.
        shots: how the clips of a class come together. ``distance``: the mean of their scores. ``prototype``: the mean
            of their features, frame by frame. ``joint``: all their frames side by side on the support axis, defined
            for ``max``, ``chamfer`` and ``bi_mhm``.
        eps: added to the product of lengths in the cosine. 0 is the exact cosine; a zero vector then has cosine 0.
        shot_mask: ``[..., N, K]``, true where a clip is present; None if all are. Absent clips may hold anything, NaN
            included, and get no gradient.
        direction: of ``chamfer`` and ``otam``. ``query``: each query frame looks for support frames (for OTAM the
            query's frames are the rows of C); ``support``: the reverse; ``both``: their mean (Chamfer), their sum
            (OTAM).
        smoothing: OTAM's lambda of the soft minimum; 0 is the hard minimum.
        squared: minus the squared distance instead of the cosine (``mean``).
        weight: ``w_ij`` of ``linear``, ``[Lq, Ls]`` or flat with j running faster (with tuples, T for L).
        tuple_size: compare the concatenated ordered tuples of this many frames instead of single frames.
        debias: OTAM's soft minimum subtracts up to lambda log 3 a step, so two still clips cost less than two equal
            moving ones. Replace ``D(q, s)`` by ``D(q, s) - 1/2 (D(q, q) + D(s, s))``.

    Returns:
        Logits, float32 at least. Logits of ``distance`` are the mean of `alignment_scores` over a class's clips.

    Raises:
        InputError: an option is unknown, out of range, or of another method; ``diagonal`` or ``linear`` with Lq other
            than Ls; the mask does not fit.
    """
    way_and_shot = support.shape[-4:-2]
    _check_choice("shots", shots, get_args(Shots))
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
    eps: float | int = 0.01,
    direction: str = "both",
    smoothing: float | int = 0.1,
    squared: bool = False,
    weight: Tensor | None = None,
    tuple_size: int = 1,
    debias: bool = False,
) -> Float[Tensor, "*B Q S"]:
    """One score for each query and support clip; arguments, equations and errors are those of `frame_alignment`."""
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
    cosine = frame_cosines(support, query, eps, tuple_size)
    if method in JOINT:
        return _best_matches(cosine, method, direction)
    if method == "pairs":
        return cosine.sum(-1).mean(-1)
    if method == "otam":
        cost = otam_cost(1 - cosine, smoothing, direction)
        if debias:
            own = (_own_cost(clips, eps, tuple_size, smoothing, direction) for clips in (query, support))
            of_query, of_support = own
            cost = cost - (of_query.unsqueeze(-1) + of_support.unsqueeze(-2)) / 2
        return -cost
    rows, columns = cosine.shape[-2:]
    if rows != columns:
        frames = "frames" if tuple_size == 1 else "tuples"
        raise InputError(f"{method!r} needs as many {frames} in a query as in a support clip, not {rows} and {columns}")
    if method == "diagonal":
        return cosine.diagonal(dim1=-2, dim2=-1).mean(-1)
    return _weighted(cosine, weight)


def frame_cosines(
    support: Float[Tensor, "*B S Ls D"], query: Float[Tensor, "*B Q Lq D"], eps: float | int = 0.01, tuple_size: int = 1
) -> Float[Tensor, "*B Q S Tq Ts"]:
    """``S_ij`` of every query with every support clip, by one matrix product of ``[Q Lq, D]`` and ``[S Ls, D]``.

    Concatenated tuples are never written out: the inner product of two tuples is the sum of the inner products of
    their frames, and the squared length of a tuple is the sum of its frames' squared lengths.

    Raises:
        InputError: ``tuple_size`` is not from 1 to the number of frames.
    """
    _check_tuple_size(tuple_size, support.shape[-2], query.shape[-2])
    support, query = at_least_float32(support, query)
    products = inner_products(support.flatten(-3, -2), query.flatten(-3, -2))
    products = rearrange(products, "... (q i) (s j) -> ... q s i j", i=query.shape[-2], j=support.shape[-2])
    q_length, s_length = (torch.linalg.vector_norm(x, dim=-1) for x in (query, support))
    if tuple_size > 1:
        rows, columns = (_members(x.shape[-2], tuple_size, x) for x in (query, support))
        places = zip(rows, columns, strict=True)
        first, *others = (products.index_select(-2, i).index_select(-1, j) for i, j in places)
        products = sum(others, start=first)
        q_length, s_length = _tuple_length(q_length, rows), _tuple_length(s_length, columns)
    lengths = q_length[..., :, None, :, None] * s_length[..., None, :, None, :]
    return products / _denominator(lengths, eps)


def check_method(method: str) -> None:
    """Refuse the name of a method that does not exist.

    Raises:
        InputError: with near names, or all names.
    """
    _check_choice("method", method, tuple(OPTIONS))


def _own_cost(clips: Tensor, eps: float | int, tuple_size: int, smoothing: float | int, direction: str) -> Tensor:
    """D(x, x) of each clip."""
    alone = clips.unsqueeze(-3)
    return otam_cost(1 - frame_cosines(alone, alone, eps, tuple_size).squeeze(-3).squeeze(-3), smoothing, direction)


def _best_matches(cosine: Tensor, method: str, direction: str = "both", present: Tensor | None = None) -> Tensor:
    """Max, Chamfer or Bi-MHM from S ``[..., i, j]``, without the columns that are not ``present`` ``[..., j]``."""
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


def _mean_scores(support: Tensor, query: Tensor, eps: float | int, squared: bool) -> Tensor:
    """Scores of mean features ``[..., S, D]`` and ``[..., Q, D]``."""
    if squared:
        # Around the support's mean the differences of squares keep their digits.
        origin = support.mean(-2, keepdim=True).detach()
        support, query = support - origin, query - origin
        lengths = query.square().sum(-1).unsqueeze(-1) + support.square().sum(-1).unsqueeze(-2)
        return (2 * inner_products(support, query) - lengths).clamp_max(0)
    q_length, s_length = (torch.linalg.vector_norm(x, dim=-1) for x in (query, support))
    return inner_products(support, query) / _denominator(q_length.unsqueeze(-1) * s_length.unsqueeze(-2), eps)


def _mean_tuple(clips: Tensor, size: int) -> Tensor:
    """The mean over the ordered tuples of their concatenated frames, ``[..., L, D] -> [..., size D]``."""
    if size == 1:
        return clips.mean(-2)
    members = _members(clips.shape[-2], size, clips)
    return torch.cat([clips.index_select(-2, place).mean(-2) for place in members], dim=-1)


def _weighted(cosine: Tensor, weight: Tensor | None) -> Tensor:
    rows, columns = cosine.shape[-2:]
    if weight is None or tuple(weight.shape) not in ((rows, columns), (rows * columns,)):
        given = "is missing" if weight is None else f"has the shape {list(weight.shape)}"
        raise InputError(f"weight of 'linear' {given}: give [{rows}, {columns}] or [{rows * columns}]")
    cosine, weight = at_least_float32(cosine, weight.reshape(rows, columns))
    return (cosine * weight).sum((-2, -1))


def _denominator(lengths: Tensor, eps: float | int) -> Tensor:
    """``lengths + eps``; with eps = 0, 1 for zero vectors: their cosine is 0 and their gradients are finite."""
    return lengths + eps if eps else torch.where(lengths == 0, 1, lengths)


def _members(length: int, size: int, like: Tensor) -> Tensor:
    """The frames of each ordered tuple, ``[size, T]``."""
    return torch.tensor(list(combinations(range(length), size)), device=like.device).T


def _tuple_length(lengths: Tensor, members: Tensor) -> Tensor:
    # vector_norm, not a root of squares: its gradient at zero vectors is 0, not NaN.
    return torch.linalg.vector_norm(lengths[..., members], dim=-2)


def _check_options(method: str, eps: float | int, options: dict[str, Any]) -> None:
    _check_choice("direction", options["direction"], get_args(Direction))
    for name, value in (("eps", eps), ("smoothing", options["smoothing"])):
        if not value >= 0:
            raise InputError(f"{name} is {value}: give 0 or a positive number")
    defaults = {"direction": "both", "smoothing": 0.1, "squared": False, "debias": False}
    changed = [name for name, default in defaults.items() if options[name] != default]
    changed += [] if options["weight"] is None else ["weight"]
    for name in changed:
        if name not in OPTIONS[method]:
            having = ", ".join(other for other, names in OPTIONS.items() if name in names)
            raise InputError(f"{name} is no option of {method!r}, only of {having}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = get_close_matches(str(value), choices, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(f"{name} {value!r} is unknown; {hint}choose one of {', '.join(choices)}")


def _check_tuple_size(size: int, *lengths: int) -> None:
    if not 1 <= size <= min(lengths):
        raise InputError(f"tuple_size is {size}: give 1 to {min(lengths)}, the number of frames")
