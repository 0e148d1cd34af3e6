"""The heads of STRM on a backbone's maps: `enrich` sees one clip alone, `match` sees an episode."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from strm_lightning.episode import MatchLogits, PooledMaps, TupleFeatures, VideoFeatures
from strm_lightning.errors import InputError
from strm_lightning.models.fle import FrameEnrichment
from strm_lightning.models.ple import PatchEnrichment, Variant
from strm_lightning.models.pooling import LayoutCode, pool_maps
from strm_lightning.models.qc import TupleRelation, query_class_similarity
from strm_lightning.models.trm import TemporalCrossTransformer, cross_transform
from strm_lightning.models.tuples import check_sizes, num_tuples, zero_absent


class STRMHead(nn.Module):
    """PLE, FLE, TRM and QC (STRM, CVPR 2022, section 3), on maps of any backbone.

    With all three switches off this is TRX (CVPR 2021): the frame feature is the mean of the backbone's whole map.

    Args:
        dim: channels D of the backbone's maps.
        num_frames: frames L of a clip.
        patch_grid: rows and columns P of the grid to which a frame's map is pooled.
        tuple_sizes: Omega, the sizes of the frame tuples that are matched; any set of sizes up to ``num_frames``.
        match_dim: channels d of TRM's keys and values.
        qc_dim: channels of QC's z; None for D. ``D // 2`` is the released code's choice.
        variant: ``paper`` follows the equations; ``official`` follows the release in all that its checkpoints need.
        patch_enrichment: PLE on or off.
        frame_enrichment: FLE on or off.
        query_class: QC on or off.
        center_clip: subtract the clip's mean map from every frame's map first, so that what does not move goes away.
            Beyond the paper.
        scale_clip: divide each clip by the root mean square of its patches, so that a faint or small motion counts as
            much as a strong one. Beyond the paper.
        patch_pooling: ``mean`` over patches, or ``layout``: the mean plus a code that keeps where the patches are.
            Beyond the paper.
        proj_dim: reduce the maps to this many channels before everything else; None to keep D. Beyond the paper.

    Raises:
        ValueError: a size is not positive, or Omega does not fit ``num_frames``.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_frames: int = 8,
        patch_grid: int = 4,
        tuple_sizes: Sequence[int] = (2,),
        match_dim: int = 1152,
        qc_dim: int | None = None,
        variant: Variant = "paper",
        patch_enrichment: bool = True,
        frame_enrichment: bool = True,
        query_class: bool = True,
        center_clip: bool = False,
        scale_clip: bool = False,
        patch_pooling: Literal["mean", "layout"] = "mean",
        proj_dim: int | None = None,
    ) -> None:
        super().__init__()
        sizes = tuple(tuple_sizes)
        check_sizes(sizes, num_frames)
        _check_choice("variant", variant, "paper", "official")
        _check_choice("patch_pooling", patch_pooling, "mean", "layout")
        _check_positive(dim=dim, patch_grid=patch_grid, match_dim=match_dim, qc_dim=qc_dim, proj_dim=proj_dim)
        self.num_frames, self.patch_grid, self.variant = num_frames, patch_grid, variant
        self.center_clip, self.scale_clip = center_clip, scale_clip
        self.tuple_sizes, self.tuple_counts = sizes, num_tuples(sizes, num_frames)
        num_patches, self.in_dim = patch_grid**2, dim
        self.project: nn.Module = nn.Identity() if proj_dim is None else nn.Linear(dim, proj_dim, bias=False)
        dim = self.dim = proj_dim or dim
        self.ple = PatchEnrichment(dim, num_patches, variant=variant) if patch_enrichment else None
        self.layout = LayoutCode(dim, num_patches) if patch_pooling == "layout" else None
        self.fle: nn.Module = FrameEnrichment(dim, num_frames, variant=variant) if frame_enrichment else nn.Identity()
        self.trm = nn.ModuleList(TemporalCrossTransformer(w, num_frames, dim, match_dim) for w in sizes)
        dropout = 0.1 if variant == "official" else 0.0
        self.qc = (
            nn.ModuleList(TupleRelation(w, num_frames, dim, qc_dim or dim, dropout=dropout) for w in sizes)
            if query_class
            else None
        )

    def enrich(self, maps: Float[Tensor, "*B L D h w"]) -> VideoFeatures:
        """Features of clips from the backbone's maps, ``[..., L, D, h, w]``; each clip by itself.

        Raises:
            ValueError: the maps do not have the head's frames or channels.
        """
        return self.enrich_pooled(self.pool(maps))

    def pool(self, maps: Float[Tensor, "*B L D h w"]) -> PooledMaps:
        """The part of `enrich` in which nothing is learned; with a frozen backbone it is done once for each video."""
        if maps.ndim < 4 or maps.shape[-4] != self.num_frames or maps.shape[-3] != self.in_dim:
            raise InputError(
                f"maps of shape {list(maps.shape)}: this head takes [..., {self.num_frames}, {self.in_dim}, h, w] "
                "(frames, channels, rows, columns)"
            )
        return pool_maps(maps, self.patch_grid, center_clip=self.center_clip, scale_clip=self.scale_clip)

    def enrich_pooled(self, maps: PooledMaps) -> VideoFeatures:
        """The learned part of `enrich`: H by PLE and pooling over patches, E by FLE."""
        needs_grid = self.ple is not None or self.layout is not None
        patches = self.project(maps.grid) if needs_grid else maps.grid
        if self.ple is not None:
            patches = self.ple(patches)
            frames = patches.mean(-2)
        else:
            frames = self.project(maps.mean)
        if self.layout is not None:
            frames = frames + self.layout(patches)
        return VideoFeatures(patch_level=frames, frame_level=self.fle(frames))

    def tuples(self, features: VideoFeatures) -> TupleFeatures:
        """Keys, values and relations of every tuple of each clip: all that `match` needs of a clip by itself."""
        projected = [branch(features.frame_level) for branch in self.trm]
        relations = None if self.qc is None else [branch(features.patch_level) for branch in self.qc]
        return TupleFeatures(
            keys=torch.cat([keys for keys, _ in projected], -2),
            values=torch.cat([values for _, values in projected], -2),
            relations=None if relations is None else torch.cat(relations, -2),
        )

    def match(
        self, support: VideoFeatures, query: VideoFeatures, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> MatchLogits:
        """Match each query of an episode with each class.

        Args:
            support: features of ``[..., N, K]`` clips.
            query: features of ``[..., Q]`` clips.
            shot_mask: True where a support clip is there, for classes with different numbers of shots; every class
                needs one. The features of absent clips have no influence on logits and gradients, NaN included.

        Returns:
            Logits ``[..., Q, N]`` of TRM and of QC. TRM is averaged over Omega; QC is summed for ``variant="paper"``
            and averaged for ``variant="official"``.

        Raises:
            ValueError: the shapes do not fit the head or each other.
        """
        for name, features, axes in (("support", support, "N, K"), ("query", query, "Q")):
            shape = features.frame_level.shape
            if len(shape) < 3 + (name == "support") or shape[-2:] != (self.num_frames, self.dim):
                wanted = f"[..., {axes}, {self.num_frames}, {self.dim}]"
                raise InputError(f"{name} features of shape {list(shape)}: this head matches {wanted}")
        if shot_mask is not None:
            _check_mask(shot_mask, support.frame_level.shape[-4:-2])
            # Before anything is multiplied: a weight's gradient of zero times NaN is NaN.
            support = VideoFeatures(
                patch_level=zero_absent(support.patch_level, shot_mask),
                frame_level=zero_absent(support.frame_level, shot_mask),
            )
        return self.match_tuples(self.tuples(support), self.tuples(query), shot_mask)

    def match_tuples(
        self, support: TupleFeatures, query: TupleFeatures, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> MatchLogits:
        """`match` from what `tuples` made: ``[..., N, K, T, d]`` against ``[..., Q, T, d]``."""
        if shot_mask is not None:
            _check_mask(shot_mask, support.keys.shape[-4:-2])
        q_keys, q_values = self._by_size(query.keys), self._by_size(query.values)
        s_keys, s_values = self._by_size(support.keys), self._by_size(support.values)
        trm = [cross_transform(*branch, shot_mask) for branch in zip(q_keys, q_values, s_keys, s_values, strict=True)]
        qc = None
        if query.relations is not None and support.relations is not None:
            pairs = zip(self._by_size(query.relations), self._by_size(support.relations), strict=True)
            scores = torch.stack([query_class_similarity(q, s, shot_mask) for q, s in pairs])
            qc = scores.mean(0) if self.averages_qc else scores.sum(0)
        return MatchLogits(trm=torch.stack(trm).mean(0), qc=qc)

    @property
    def averages_qc(self) -> bool:
        """Whether QC is averaged over Omega, as in the released code; the paper's equation sums."""
        return self.variant == "official"

    def _by_size(self, tuples: Tensor) -> tuple[Tensor, ...]:
        return tuples.split(self.tuple_counts, dim=-2)


def _check_mask(mask: Tensor, way_and_shot: Sequence[int]) -> None:
    if mask.dtype != torch.bool or mask.shape[-2:] != way_and_shot:
        raise InputError(
            f"shot_mask of shape {list(mask.shape)} and type {mask.dtype}: this support wants booleans "
            f"[..., {way_and_shot[0]}, {way_and_shot[1]}], one for each clip"
        )
    if not torch.compiler.is_compiling() and not mask.any(-1).all():
        raise InputError("shot_mask leaves a class without any support clip")


def _check_choice(name: str, value: str, *choices: str) -> None:
    if value not in choices:
        raise InputError(f"{name} {value!r}: choose {' or '.join(map(repr, choices))}")


def _check_positive(**sizes: int | None) -> None:
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise InputError(f"{name} is {size}: give a positive number")
