"""Data classes that models, data and evaluation share: episodes, features and logits."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

_T = TypeVar("_T", bound="_Tensors")


@dataclass(kw_only=True, eq=False)
class _Tensors:
    """Base of data classes of tensors; Lightning moves them between devices with ``to`` and ``pin_memory``.

    Not frozen, because Lightning's precision plugins set the fields of a copy (`apply_to_collection`). Equality is
    identity, because comparing tensors does not give a single boolean.
    """

    def map(self: _T, function: Callable[[Tensor], Tensor]) -> _T:
        """Apply a function to every tensor."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        mapped: dict[str, Any] = {k: function(v) for k, v in values.items() if isinstance(v, Tensor)}
        mapped |= {k: v.map(function) for k, v in values.items() if isinstance(v, _Tensors)}
        return replace(self, **mapped)

    def tensors(self) -> list[Tensor]:
        """Every tensor, those of nested groups too."""
        found: list[Tensor] = []
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                found.append(value)
            elif isinstance(value, _Tensors):
                found += value.tensors()
        return found

    def to(self: _T, *args: Any, **kwargs: Any) -> _T:
        """Move every tensor, as `torch.Tensor.to` does."""
        return self.map(lambda tensor: tensor.to(*args, **kwargs))

    def __getitem__(self: _T, index: Any) -> _T:
        """Index or slice the leading axes of every tensor."""
        return self.map(lambda tensor: tensor[index])

    def pin_memory(self: _T) -> _T:
        """Copy every tensor to page-locked memory."""
        return self.map(Tensor.pin_memory)


@dataclass(kw_only=True, eq=False)
class PooledMaps(_Tensors):
    """Pooled maps of the backbone: the input of the head, much smaller than the maps.

    Attributes:
        grid: patches of each frame, row by row, ``[..., L, P*P, D]``.
        mean: mean over the whole map, ``[..., L, D]``: TRX's frame feature.
    """

    grid: Float[Tensor, "*B L PP D"]
    mean: Float[Tensor, "*B L D"]


@dataclass(kw_only=True, eq=False)
class VideoFeatures(_Tensors):
    """Features of clips, computed for each clip separately; features that no matching method reads are None.

    Attributes:
        patch_level: H, frame features after patch-level enrichment, ``[..., L, D]``.
        frame_level: E, frame features after frame-level enrichment, ``[..., L, D]``.
        patches: patches of each frame after patch-level enrichment, ``[..., L, P*P, D]``.
        maps: pooled maps of the backbone.
    """

    patch_level: Float[Tensor, "*B L D"] | None = None
    frame_level: Float[Tensor, "*B L D"] | None = None
    patches: Float[Tensor, "*B L PP D"] | None = None
    maps: PooledMaps | None = None


@dataclass(kw_only=True, eq=False)
class MatchLogits(_Tensors):
    """Logits of each query for each class.

    Attributes:
        trm: logits of the matching method (TRM by default), ``[..., Q, N]``.
        qc: logits of the query-class similarity, ``[..., Q, N]``; None if it is off.
    """

    trm: Float[Tensor, "*B Q N"]
    qc: Float[Tensor, "*B Q N"] | None = None

    def combined(self, qc_weight: float = 0.1) -> Float[Tensor, "*B Q N"]:
        """Return ``trm + qc_weight * qc``; the arg max over classes is the prediction (STRM)."""
        return self.trm if self.qc is None else self.trm + qc_weight * self.qc


@dataclass(kw_only=True, eq=False)
class Episode(_Tensors):
    """An N-way K-shot task, or ``B`` of them with a leading axis.

    ``support_ids`` and ``query_ids`` identify the videos. The clips are None if features come from a bank.

    Attributes:
        support_ids: row of each support video in the store of its video set, ``[..., N, K]``.
        query_ids: row of each query video, ``[..., Q]``.
        query_labels: label of each query in the episode, 0 .. N-1, ``[..., Q]``.
        class_ids: class of the video set for each label of the episode, ``[..., N]``.
        index: index of the episode in its epoch, ``[...]``.
        support: pixel values 0 .. 255, ``[..., N, K, L, 3, H, W]``, or None.
        query: pixel values 0 .. 255, ``[..., Q, L, 3, H, W]``, or None.
        support_views: stored view of each support clip, ``[..., N, K]``; 0 unless a bank stores several.
        query_views: stored view of each query clip, ``[..., Q]``.
    """

    support_ids: Int[Tensor, "*B N K"]
    query_ids: Int[Tensor, "*B Q"]
    query_labels: Int[Tensor, "*B Q"]
    class_ids: Int[Tensor, "*B N"]
    index: Int[Tensor, "*B"]
    support_views: Int[Tensor, "*B N K"]
    query_views: Int[Tensor, "*B Q"]
    support: UInt8[Tensor, "*B N K L 3 H W"] | None = None
    query: UInt8[Tensor, "*B Q L 3 H W"] | None = None

    def batched(self) -> "Episode":
        """Return the episode with a leading axis; an axis of length 1 is added if it has none."""
        return self if self.index.ndim else self[None]

    @staticmethod
    def stack(episodes: "list[Episode]") -> "Episode":
        """Stack episodes of the same shape along a new leading axis ``B``."""
        values: dict[str, list[Any]] = {f.name: [getattr(e, f.name) for e in episodes] for f in fields(Episode)}
        stacked: dict[str, Any] = {k: None if v[0] is None else torch.stack(v) for k, v in values.items()}
        return Episode(**stacked)
