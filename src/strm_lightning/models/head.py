"""STRMHead: enrichment of clips and matching of episodes, from the maps of any backbone."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from strm_lightning.episode import MatchLogits, PooledMaps, VideoFeatures
from strm_lightning.errors import InputError
from strm_lightning.messages import check_choice, check_positive
from strm_lightning.models.enrichment.fle import FrameEnrichment
from strm_lightning.models.enrichment.ple import PatchEnrichment, Variant
from strm_lightning.models.enrichment.pooling import LayoutCode, pool_maps
from strm_lightning.models.matching.base import Encoded, Evidence, FeatureSpec, Matching, build_matching
from strm_lightning.models.matching.qc import QueryClass
from strm_lightning.models.matching.shots import check_shot_mask, zero_absent
from strm_lightning.models.matching.tuples import check_sizes

_QC = "qc."  # prefix of QC's tensors among the encoded ones


class STRMHead(nn.Module):
    """Enrichment and matching, from the maps of any backbone.

    The default, ``matching="trm"``, is STRM (CVPR 2022): PLE, FLE, TRM and QC. With these three switches off it is TRX
    (CVPR 2021); the frame feature is then the mean of the backbone's whole map. With other methods, all switches are
    off by default.

    The method is a submodule with its own name, such as ``head.trm``; `matching` returns it.

    Args:
        dim: channels D of the backbone's maps; the channels of each stage, if the maps of several stages are
            concatenated. Sums of kernels compare stages separately.
        num_frames: time steps L of a clip.
        patch_grid: rows and columns P of the grid to which the map of a frame is pooled.
        tuple_sizes: Omega, sizes of the frame tuples of TRM and QC, each from 1 to ``num_frames``.
        match_dim: channels d of TRM's keys and values.
        qc_dim: channels of QC's z; None for D. The official code uses ``D // 2``.
        variant: ``paper`` follows the equations; ``official`` follows the official code where its checkpoints need it.
        patch_enrichment: PLE; None for on with ``trm``, off with other methods.
        frame_enrichment: FLE; None as above.
        query_class: QC in addition to the method; None as above.
        center_clip: first subtract the mean map of the clip from the map of every frame, which removes static content.
            Not part of STRM.
        scale_clip: divide each clip by the root mean square of its patches, so that weak and strong motion have the
            same scale. Not part of STRM.
        patch_pooling: ``mean`` over patches, or ``layout``: the mean plus a code of the layout (`LayoutCode`). Not part
            of STRM.
        proj_dim: project the maps to this many channels first; None keeps D. Not part of STRM.
        matching: name of the matching method, see `matching_names`.
        matching_options: options of the method. ``tuple_sizes`` and ``match_dim`` of ``trm`` are options of the head.

    Raises:
        InputError: a size is not positive, Omega does not fit ``num_frames``, the method or an option does not exist,
            or a switch has no effect with the method.
    """

    def __init__(
        self,
        dim: int | Sequence[int],
        *,
        num_frames: int = 8,
        patch_grid: int = 4,
        tuple_sizes: Sequence[int] = (2,),
        match_dim: int = 1152,
        qc_dim: int | None = None,
        variant: Variant = "paper",
        patch_enrichment: bool | None = None,
        frame_enrichment: bool | None = None,
        query_class: bool | None = None,
        center_clip: bool = False,
        scale_clip: bool = False,
        patch_pooling: Literal["mean", "layout"] = "mean",
        proj_dim: int | None = None,
        matching: str = "trm",
        matching_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        stages = (dim,) if isinstance(dim, int) else tuple(dim)
        dim = sum(stages)
        is_trm = matching == "trm"
        patch_enrichment, frame_enrichment, query_class = (
            is_trm if switch is None else switch for switch in (patch_enrichment, frame_enrichment, query_class)
        )
        check_choice("variant", variant, ("paper", "official"))
        check_choice("patch_pooling", patch_pooling, ("mean", "layout"))
        check_positive(
            dim=dim, num_frames=num_frames, patch_grid=patch_grid, match_dim=match_dim, qc_dim=qc_dim, proj_dim=proj_dim
        )
        self.num_frames, self.patch_grid = num_frames, patch_grid
        self.center_clip, self.scale_clip = center_clip, scale_clip
        num_patches, self.in_dim = patch_grid**2, dim
        self.project: nn.Module = nn.Identity() if proj_dim is None else nn.Linear(dim, proj_dim, bias=False)
        dim = self.dim = proj_dim or dim
        self.ple = PatchEnrichment(dim, num_patches, variant=variant) if patch_enrichment else None
        self.layout = LayoutCode(dim, num_patches) if patch_pooling == "layout" else None
        self.fle: nn.Module = FrameEnrichment(dim, num_frames, variant=variant) if frame_enrichment else nn.Identity()
        spec = FeatureSpec(dim, num_frames, num_patches, variant, (dim,) if proj_dim is not None else stages)
        self.tuple_sizes = tuple(tuple_sizes)
        if is_trm or query_class:
            check_sizes(self.tuple_sizes, num_frames)
        self.matching_name = matching
        method = build_matching(matching, spec, _options(matching, matching_options, tuple_sizes, match_dim))
        if (
            matching in ("qc", "reads")
            or matching in self._modules
            or matching in self.__dict__
            or hasattr(type(self), matching)
        ):
            raise InputError(f"matching {matching!r}: the head has an attribute of that name; choose another name")
        self.add_module(matching, method)
        self.qc = QueryClass(spec, tuple_sizes=self.tuple_sizes, qc_dim=qc_dim) if query_class else None
        self.reads = self.matching.reads | (self.qc.reads if self.qc is not None else frozenset())
        self._check_switches()

    @property
    def matching(self) -> Matching:
        """Matching method."""
        method = getattr(self, self.matching_name)
        assert isinstance(method, Matching)
        return method

    @property
    def learns(self) -> bool:
        """Whether the head has trainable parameters."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def _check_switches(self) -> None:
        # DDP fails in the first step if a module is not used.
        used = {
            "patch_enrichment": (self.ple, {"patches", "patch_level", "frame_level"}),
            "frame_enrichment": (None if isinstance(self.fle, nn.Identity) else self.fle, {"frame_level"}),
            "patch_pooling: layout": (self.layout, {"patch_level", "frame_level"}),
            "proj_dim": (
                None if isinstance(self.project, nn.Identity) else self.project,
                {"patches", "patch_level", "frame_level"},
            ),
        }
        for name, (module, readers) in used.items():
            if module is not None and not self.reads & readers:
                raise InputError(
                    f"{name} has no effect with matching {self.matching_name!r}, which reads "
                    f"{', '.join(sorted(self.reads))}; switch it off or choose another matching"
                )

    def enrich(self, maps: Float[Tensor, "*B L D h w"]) -> VideoFeatures:
        """Compute the features of clips, each clip separately.

        Args:
            maps: maps of the backbone, ``[..., L, D, h, w]``.

        Raises:
            InputError: the maps do not have the time steps or channels of the head.
        """
        return self.enrich_pooled(self.pool(maps))

    def pool(self, maps: Float[Tensor, "*B L D h w"]) -> PooledMaps:
        """Pool maps: the part of `enrich` without weights. With a frozen backbone its result can be stored."""
        if maps.ndim < 4 or maps.shape[-4] != self.num_frames or maps.shape[-3] != self.in_dim:
            raise InputError(
                f"maps of shape {list(maps.shape)}: this head takes [..., {self.num_frames}, {self.in_dim}, h, w] "
                "(time steps, channels, rows, columns)"
            )
        return pool_maps(maps, self.patch_grid, center_clip=self.center_clip, scale_clip=self.scale_clip)

    def enrich_pooled(self, maps: PooledMaps) -> VideoFeatures:
        """Compute features from pooled maps: H by PLE and pooling over patches, E by FLE.

        Only features that the matching methods read are computed.
        """
        steps = bool(self.reads & {"patch_level", "frame_level"})
        needs_patches = "patches" in self.reads or (steps and self.layout is not None)
        patches = self.project(maps.grid) if needs_patches else None
        if patches is not None and self.ple is not None:
            patches = self.ple(patches)
        frames = None
        if steps:
            if self.ple is None:
                frames = self.project(maps.mean)
            else:
                frames = self.ple(self.project(maps.grid), pooled=True) if patches is None else patches.mean(-2)
            if self.layout is not None:
                frames = frames + self.layout(patches)
        return VideoFeatures(
            patch_level=frames,
            frame_level=self.fle(frames) if "frame_level" in self.reads else None,
            patches=patches if "patches" in self.reads else None,
            maps=maps if "maps" in self.reads else None,
        )

    def encode(self, features: VideoFeatures) -> Encoded:
        """Compute the tensors that `match_encoded` needs of each clip, by name; those of QC have the prefix ``qc.``.

        Raises:
            InputError: a feature that the methods read is None.
        """
        for name in sorted(self.reads):
            if getattr(features, name) is None:
                raise InputError(f"features have no {name!r}, which matching {self.matching_name!r} reads")
        encoded = dict(self.matching.encode(features))
        if self.qc is not None:
            encoded |= {_QC + name: tensor for name, tensor in self.qc.encode(features).items()}
        return encoded

    def match(
        self, support: VideoFeatures, query: VideoFeatures, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> MatchLogits:
        """Compute the logits of each query for each class.

        Args:
            support: features of ``[..., N, K]`` clips.
            query: features of ``[..., Q]`` clips.
            shot_mask: True where a support clip exists, for classes with different numbers of shots; every class needs
                one. Absent clips have no effect on logits and gradients, even if they contain NaN.

        Returns:
            Logits ``[..., Q, N]`` of the matching method and of QC.

        Raises:
            InputError: the shapes of features or mask are wrong, or a feature that the methods read is None.
        """
        for name, features, axes in (("support", support, "N, K"), ("query", query, "Q")):
            level = features.patch_level if features.frame_level is None else features.frame_level
            least = 3 + (name == "support")
            if level is not None and (level.ndim < least or level.shape[-2:] != (self.num_frames, self.dim)):
                wanted = f"[..., {axes}, {self.num_frames}, {self.dim}]"
                raise InputError(f"{name} features of shape {list(level.shape)}: this head matches {wanted}")
        if shot_mask is not None:
            check_shot_mask(shot_mask, support.tensors()[0].shape[: shot_mask.ndim])
            # A product with NaN of an absent clip would have the gradient NaN.
            support = support.map(lambda tensor: zero_absent(tensor, shot_mask))
        return self.match_encoded(self.encode(support), self.encode(query), shot_mask)

    def match_encoded(
        self, support: Encoded, query: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> MatchLogits:
        """Compute `match` from encoded clips with leading axes ``[..., N, K]`` and ``[..., Q]``."""
        return self.match_prepared(self.prepare(support, shot_mask), query, shot_mask)

    def prepare(self, support: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None) -> Encoded:
        """Compute what depends only on the support, see `Matching.prepare`."""
        if shot_mask is not None:
            check_shot_mask(shot_mask, next(iter(support.values())).shape[: shot_mask.ndim])
            if torch.is_grad_enabled():  # methods ignore absent values, but their gradient of NaN would be NaN
                support = {name: zero_absent(tensor, shot_mask) for name, tensor in support.items()}
        of_qc = {name: tensor for name, tensor in support.items() if name.startswith(_QC)}
        return {**self.matching.prepare(_of_method(support), shot_mask), **of_qc}

    def match_prepared(
        self, prepared: Encoded, query: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> MatchLogits:
        """Compute `match` from the result of `prepare` with the same ``shot_mask``, and encoded queries."""
        logits = self.matching.match_prepared(_of_method(prepared), _of_method(query), shot_mask)
        first, *others = logits.values()
        qc = None
        if self.qc is not None:
            qc = self.qc.match(_of_qc(prepared), _of_qc(query), shot_mask)["qc"]
        return MatchLogits(trm=sum(others, start=first), qc=qc)

    def clip_scores(self, support: Encoded, query: Encoded) -> Float[Tensor, "Q V"] | None:
        """Return `Matching.clip_scores` of the method; None with QC, whose logit is not a mean over clips."""
        return None if self.qc is not None else self.matching.clip_scores(support, query)

    def explain(
        self, support: Encoded, query: Encoded, label: int, shot_mask: Bool[Tensor, "N K"] | None = None
    ) -> dict[str, Evidence]:
        """Decompose each named logit of one query for one class, see `Matching.explain`; empty if not supported."""
        evidence = self.matching.explain(_of_method(support), _of_method(query), label, shot_mask) or {}
        if self.qc is not None:
            evidence |= self.qc.explain(_of_qc(support), _of_qc(query), label, shot_mask)
        return evidence

    def patch_weights(self, maps: PooledMaps) -> Float[Tensor, "L P P"] | None:
        """Return the attention of PLE to each patch of one clip: the mean over all patches of the frame.

        It says how PLE mixes the patches of a frame, not which ones matter for the logits.

        Args:
            maps: pooled maps of the clip, without leading axes.

        Returns:
            Weights ``[L, P, P]`` with sum 1 over a time step, or None if the head has no PLE.
        """
        if self.ple is None:
            return None
        weights = self.ple.attention(self.project(maps.grid)).mean(-2)
        return weights.unflatten(-1, (self.patch_grid, self.patch_grid))

    def floats_per_pair(self, encoded: Encoded) -> int:
        """Return the maximum of `Matching.floats_per_pair` over the method and QC."""
        floats = self.matching.floats_per_pair(_of_method(encoded))
        return floats if self.qc is None else max(floats, self.qc.floats_per_pair(_of_qc(encoded)))


def _options(
    matching: str, options: Mapping[str, Any] | None, tuple_sizes: Sequence[int], match_dim: int
) -> dict[str, Any]:
    options = dict(options or {})
    if matching != "trm":
        return options
    if options:
        raise InputError(
            f"matching_options {sorted(options)}: 'trm' has none; its options are model.tuple_sizes and "
            "model.match_dim (an earlier YAML may have set options of another method)"
        )
    return {"tuple_sizes": tuple(tuple_sizes), "match_dim": match_dim}


def _of_method(encoded: Encoded) -> Encoded:
    return {name: tensor for name, tensor in encoded.items() if not name.startswith(_QC)}


def _of_qc(encoded: Encoded) -> Encoded:
    return {name.removeprefix(_QC): tensor for name, tensor in encoded.items() if name.startswith(_QC)}
