"""What stands between clips and logits: the heads of a trained model, or a bare backbone's patches."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from strm_lightning.classifier.evidence import TupleEvidence
from strm_lightning.episode import MatchLogits, TupleFeatures, VideoFeatures
from strm_lightning.models.backbone import Backbone
from strm_lightning.models.enrichment.pooling import pool_maps
from strm_lightning.models.matching.trm import attend
from strm_lightning.models.state import hash_state
from strm_lightning.models.strm import STRM

Features = Mapping[str, Tensor]  # by name; the same leading axes in all


class Matcher(nn.Module, ABC):
    """Encodes each clip by itself, once, and matches encoded clips; holds all the weights there are.

    Attributes:
        temperature: divides the logits where no temperature was fitted.
        qc_weight: lambda, the weight of QC in the combined logits.
        average_qc: whether QC is averaged over Omega instead of summed.
        attends: whether frames are matched by attention; else each frame is compared with the one of the same number.
    """

    temperature: float = 1.0
    qc_weight: float = 0.0
    average_qc: bool = False
    attends: bool = True

    @abstractmethod
    def encode(self, clips: UInt8[Tensor, "n L 3 S S"]) -> Features:
        """All that matching needs of ``n`` clips."""

    @abstractmethod
    def match(self, support: Features, query: Features, shot_mask: Bool[Tensor, "N K"] | None = None) -> MatchLogits:
        """Logits ``[Q, N]`` of queries (leading axis ``Q``) for classes (leading axes ``N, K``)."""

    @abstractmethod
    def evidence(self, support: Features, query: Features) -> list[TupleEvidence]:
        """How one query (no leading axis) met the clips of one class (leading axis ``K``), by tuple size."""

    def patch_attention(self, clip: UInt8[Tensor, "L 3 S S"]) -> Float[np.ndarray, "L P P"] | None:
        """Where the model looked in each frame; sums to 1 over a frame. None where it does not attend to patches."""
        return None

    @abstractmethod
    def floats_per_class(self, features: Features) -> int:
        """Numbers that matching one query with one class of one clip needs at once."""

    @abstractmethod
    def feature_shapes(self, num_frames: int) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the features of one clip of ``num_frames`` frames, by name."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and of the features."""
        return next(self.parameters()).dtype

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What else makes the features, beside the weights and the preprocessing."""

    def fingerprint(self) -> str:
        """32 hexadecimal digits that differ between any two models whose features differ."""
        return hash_state(self.state_dict(), repr(sorted(self.settings.items())))[:32]


class HeadMatcher(Matcher):
    """A trained STRM or TRX: keys, values and relations of each clip, matched by its own heads.

    Args:
        model: the trained model.
        qc_weight: lambda of its training.
    """

    def __init__(self, model: STRM, qc_weight: float = 0.1) -> None:
        super().__init__()
        self.model, self.qc_weight, self.average_qc = model.eval(), qc_weight, model.head.averages_qc

    def encode(self, clips: UInt8[Tensor, "n L 3 S S"]) -> Features:
        return self._named(self.model.encode(clips))

    def _named(self, features: VideoFeatures) -> Features:
        tuples = self.model.head.tuples(features)
        return {f.name: getattr(tuples, f.name) for f in fields(tuples) if getattr(tuples, f.name) is not None}

    @torch.inference_mode()
    def feature_shapes(self, num_frames: int) -> Mapping[str, tuple[int, ...]]:
        blank = torch.zeros(num_frames, self.model.head.dim, device=self.device, dtype=self.dtype)
        named = self._named(VideoFeatures(patch_level=blank, frame_level=blank))
        return {name: tuple(tensor.shape) for name, tensor in named.items()}

    def match(self, support: Features, query: Features, shot_mask: Bool[Tensor, "N K"] | None = None) -> MatchLogits:
        return self.model.head.match_tuples(TupleFeatures(**support), TupleFeatures(**query), shot_mask)

    def evidence(self, support: Features, query: Features) -> list[TupleEvidence]:
        head = self.model.head
        by_size = {name: t.split(head.tuple_counts, -2) for name, t in support.items()}
        mine = {name: t.split(head.tuple_counts, -2) for name, t in query.items()}
        return [
            _evidence(
                torch.tensor(list(combinations(range(head.num_frames), size))),
                {name: parts[i] for name, parts in by_size.items()},
                {name: parts[i] for name, parts in mine.items()},
            )
            for i, size in enumerate(head.tuple_sizes)
        ]

    def patch_attention(self, clip: UInt8[Tensor, "L 3 S S"]) -> Float[np.ndarray, "L P P"] | None:
        head = self.model.head
        if head.ple is None:
            return None
        patches = head.project(self.model.pool(clip.to(self.device)).grid)
        received = head.ple.attention(patches).mean(-2)
        return received.unflatten(-1, (head.patch_grid, head.patch_grid)).float().cpu().numpy()

    @property
    def settings(self) -> Mapping[str, Any]:
        head = self.model.head
        names = ("num_frames", "patch_grid", "tuple_sizes", "center_clip", "scale_clip")
        return {**_pixels(self.model.backbone), **{name: getattr(head, name) for name in names}}

    def floats_per_class(self, features: Features) -> int:
        tuples, width = features["keys"].shape[-2:]
        return tuples * max(tuples, width)


class PatchMatcher(Matcher):
    """A backbone without any trained head: patches compared frame by frame, each minus its mean over the clip.

    What does not move is subtracted, so that motion decides and the scene does not; where a patch is, and when, is
    kept. The features of a clip are scaled to length 1, and the logit of a class is their mean product with those of
    its clips (a cosine). Nothing is learned: sound where the same motion is seen at the same place and pace, no
    replacement for training.

    Args:
        backbone: a pretrained backbone.
        patch_grid: rows and columns P of the grid of patches.
    """

    temperature = 0.02
    attends = False

    def __init__(self, backbone: Backbone, patch_grid: int = 4) -> None:
        super().__init__()
        self.backbone, self.patch_grid = backbone.eval(), patch_grid

    def encode(self, clips: UInt8[Tensor, "n L 3 S S"]) -> Features:
        grid = pool_maps(self.backbone(clips), self.patch_grid).grid
        moving = grid - grid.mean(1, keepdim=True)
        return {"patches": F.normalize(moving.flatten(1), dim=1).view_as(moving)}

    def feature_shapes(self, num_frames: int) -> Mapping[str, tuple[int, ...]]:
        return {"patches": (num_frames, self.patch_grid**2, self.backbone.dim)}

    def match(self, support: Features, query: Features, shot_mask: Bool[Tensor, "N K"] | None = None) -> MatchLogits:
        clips, queries = support["patches"].flatten(2), query["patches"].flatten(1)
        cosine = torch.einsum("q d, n k d -> q n k", queries, clips)
        if shot_mask is None:
            return MatchLogits(trm=cosine.mean(-1))
        return MatchLogits(trm=(cosine * shot_mask).sum(-1) / shot_mask.sum(-1))

    def evidence(self, support: Features, query: Features) -> list[TupleEvidence]:
        # A frame is compared with the frame of the same number of every clip, and all clips count alike. The negative
        # products stand where TRM has squared distances: minus their mean is the logit again.
        clips, frames = support["patches"].flatten(2), query["patches"].flatten(1)
        shots, length = clips.shape[:2]
        attention = torch.eye(length)[:, None].expand(length, shots, length) / shots
        products = torch.einsum("l d, k l d -> k l", frames, clips).cpu()
        distances = -length * products.mean(0)
        numbers = np.arange(length)[:, None]
        return [TupleEvidence(numbers, attention.numpy(), distances.numpy(), products.sum(1).numpy())]

    def patch_attention(self, clip: UInt8[Tensor, "L 3 S S"]) -> Float[np.ndarray, "L P P"] | None:
        moving = self.encode(clip[None].to(self.device))["patches"][0].square().sum(-1)
        shares = moving / moving.sum(-1, keepdim=True).clamp_min(1e-12)
        return shares.unflatten(-1, (self.patch_grid, self.patch_grid)).float().cpu().numpy()

    def floats_per_class(self, features: Features) -> int:
        return 1

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**_pixels(self.backbone), "patch_grid": self.patch_grid}


def _evidence(members: Tensor, support: Features, query: Features) -> TupleEvidence:
    attention = attend(query["keys"][None], support["keys"][None])[0].unflatten(-1, (-1, len(members)))
    prototypes = torch.einsum("t k j, k j d -> t d", attention, support["values"])
    distances = (query["values"] - prototypes).square().sum(-1)
    found: dict[str, Any] = {}
    if "relations" in query:
        apart = torch.cdist(query["relations"], support["relations"].flatten(0, 1))
        nearest_distances, nearest = apart.min(1)
        places = torch.stack([nearest // len(members), nearest % len(members)], 1)
        found = {"nearest": places.cpu().numpy(), "nearest_distances": nearest_distances.cpu().numpy()}
    shares = attention.sum(2).mean(0)
    return TupleEvidence(*(t.cpu().numpy() for t in (members, attention, distances, shares)), **found)


def _pixels(backbone: Backbone) -> Mapping[str, Any]:
    return {"backbone": backbone.name, "mean": backbone.mean.flatten().tolist(), "std": backbone.std.flatten().tolist()}
