"""Matching methods that compare one vector for each clip, lag, and kernel ridge regression."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from strm_lightning.episode import VideoFeatures
from strm_lightning.errors import InputError
from strm_lightning.messages import check_choice, check_not_negative, check_positive
from strm_lightning.models.matching import kernels
from strm_lightning.models.matching.base import Encoded, Evidence, FeatureSpec, Matching, register_matching
from strm_lightning.models.matching.frame_methods import FeatureChoice
from strm_lightning.models.matching.lag import lag_similarity, soft_normalize
from strm_lightning.models.matching.precision import inner_products
from strm_lightning.models.matching.shots import mean_over_shots


class _VectorMatching(Matching):
    """Base of methods with the inner product of unit vectors as score; a logit is the mean over shots."""

    name: ClassVar[str]
    reads = frozenset({"patches"})
    temperature = 0.02

    def encode(self, clip: VideoFeatures) -> Encoded:
        assert clip.patches is not None
        return {self.name: self.describe(clip.patches)}

    def describe(self, patches: Float[Tensor, "*B L P D"]) -> Tensor:
        """Compute the unit vector of each clip; it may have several axes."""
        raise NotImplementedError

    def match(
        self, support: Encoded, query: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> dict[str, Tensor]:
        own, other = _vectors(support[self.name], self._axes), _vectors(query[self.name], self._axes)
        scores = inner_products(own.flatten(-3, -2), other)
        return {self.name: mean_over_shots(scores, own.shape[-3], shot_mask)}

    def clip_scores(self, support: Encoded, query: Encoded) -> Float[Tensor, "Q V"]:
        return inner_products(_vectors(support[self.name], self._axes), _vectors(query[self.name], self._axes))

    def floats_per_pair(self, encoded: Encoded) -> int:
        return 1

    @property
    def _axes(self) -> int:
        return 1


@register_matching("patches")
class Patches(_VectorMatching):
    """Cosine of two clips, each as one vector of all patches of all time steps minus their mean over the clip.

    Static content is subtracted; position and order are kept. It suits actions at the same place and speed, and has no
    parameters.
    """

    name = "patches"

    def describe(self, patches: Float[Tensor, "*B L P D"]) -> Tensor:
        return kernels.unit_patches(patches)

    def explain(
        self, support: Encoded, query: Encoded, label: int, shot_mask: Bool[Tensor, "N K"] | None = None
    ) -> dict[str, Evidence]:
        clips = support["patches"][label]
        clips = clips if shot_mask is None else clips[shot_mask[label]]
        products = torch.einsum("lpd,klpd->kl", query["patches"].float(), clips.float()) / len(clips)
        contributions = torch.diag_embed(products)
        weights = contributions.clamp_min(0)
        return {"patches": Evidence(contributions=contributions, weights=weights, kind="similarity")}

    def patch_weights(self, clip: Encoded) -> Float[Tensor, "L PP"]:
        return _shares(clip["patches"])

    @property
    def _axes(self) -> int:
        return 3


@register_matching("energy")
class Energy(_VectorMatching):
    """Cosine of the amount of motion by place and time, see `kernels.energy`."""

    name = "energy"

    def describe(self, patches: Float[Tensor, "*B L P D"]) -> Tensor:
        return kernels.energy(patches)


@register_matching("motionmap")
class MotionMap(_VectorMatching):
    """Cosine of motion by place, without order, see `kernels.motionmap`."""

    name = "motionmap"

    def describe(self, patches: Float[Tensor, "*B L P D"]) -> Tensor:
        return kernels.motionmap(patches)


@register_matching("meanpatch")
class MeanPatch(_VectorMatching):
    """Cosine of appearance, see `kernels.meanpatch`."""

    name = "meanpatch"

    def describe(self, patches: Float[Tensor, "*B L P D"]) -> Tensor:
        return kernels.meanpatch(patches)


@register_matching("lag")
class Lag(Matching):
    """Similarity of patches with tolerance to small shifts in time, see `lag_similarity`.

    Without ``proj_dim`` it has no parameters. With it, patches are projected (after channel dropout) and normalised
    (`soft_normalize`), and tau and lambda are learned.

    Args:
        spec: sizes of the features.
        max_lag: R, the largest shift in time steps.
        tau: sharpness of the soft maximum over shifts.
        decay: lambda, the penalty of a shift.
        proj_dim: channels of the learned projection; None for no projection.
        dropout: dropout rate of channels before the projection.
        scale: factor of the logits.

    Raises:
        InputError: an option is out of range.
    """

    reads = frozenset({"patches"})
    temperature = 0.02

    def __init__(
        self,
        spec: FeatureSpec,
        *,
        max_lag: int = 7,
        tau: float = 30.0,
        decay: float = 0.35,
        proj_dim: int | None = None,
        dropout: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__(spec)
        check_positive(proj_dim=proj_dim, tau=tau, scale=scale)
        check_not_negative(max_lag=max_lag, decay=decay)
        if not 0 <= dropout < 1 or (dropout and proj_dim is None):
            raise InputError(f"dropout is {dropout}: give 0 or more and below 1; above 0 only with proj_dim")
        self.max_lag, self.scale, self.dropout = max_lag, scale, dropout
        self.project = nn.Linear(spec.dim, proj_dim, bias=False) if proj_dim else None
        learned = proj_dim is not None
        self.tau: float | nn.Parameter = nn.Parameter(torch.tensor(float(tau))) if learned else tau
        self.decay: float | nn.Parameter = nn.Parameter(torch.tensor(float(decay))) if learned else decay

    def encode(self, clip: VideoFeatures) -> Encoded:
        assert clip.patches is not None
        moving = kernels.centered(clip.patches)
        if self.project is not None:
            if self.training and self.dropout:
                ones = torch.ones_like(moving[..., :1, :1, :])  # one mask for all patches of a clip
                moving = moving * F.dropout(ones, self.dropout)
            moving = soft_normalize(self.project(moving.to(self.project.weight.dtype)))
        return {"patches": kernels.unit(moving, 3)}

    def match(
        self, support: Encoded, query: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> dict[str, Tensor]:
        clips = support["patches"]
        scores = self.similarity(clips.flatten(-5, -4), query["patches"])
        return {"lag": mean_over_shots(scores, clips.shape[-5], shot_mask)}

    def clip_scores(self, support: Encoded, query: Encoded) -> Float[Tensor, "Q V"]:
        return self.similarity(support["patches"], query["patches"])

    def patch_weights(self, clip: Encoded) -> Float[Tensor, "L PP"]:
        return _shares(clip["patches"])

    def floats_per_pair(self, encoded: Encoded) -> int:
        return self.spec.steps**2

    def similarity(
        self, support: Float[Tensor, "*B V L P D"], query: Float[Tensor, "*B Q L P D"]
    ) -> Float[Tensor, "*B Q V"]:
        """Compute the score of each query and support clip."""
        tau: float | Tensor = self.tau.clamp_min(1e-3) if isinstance(self.tau, Tensor) else self.tau
        decay: float | Tensor = self.decay.clamp_min(0) if isinstance(self.decay, Tensor) else self.decay
        return self.scale * lag_similarity(support, query, self.max_lag, tau, decay)


@register_matching("ridge")
class Ridge(Matching):
    """Ridge regression from clips to one-hot labels in closed form (R2-D2: Bertinetto et al., ICLR 2019).

    Each clip is one unit vector of all time steps. The logit of a class depends on all classes of the episode.

    Args:
        spec: sizes of the features.
        features: ``frames``: E; ``patches``: the patches minus their mean over the clip.
        rho: weight of the penalty.
        scale: factor of the logits.

    Raises:
        InputError: an option is unknown or out of range.
    """

    per_class = False
    temperature = 0.1

    def __init__(
        self, spec: FeatureSpec, *, features: FeatureChoice = "frames", rho: float = 1.0, scale: float = 1.0
    ) -> None:
        super().__init__(spec)
        check_choice("features", features, ("frames", "patches"))
        check_not_negative(rho=rho)
        check_positive(scale=scale)
        self.features, self.rho, self.scale = features, rho, scale
        self.reads = frozenset({"frame_level" if features == "frames" else "patches"})

    def encode(self, clip: VideoFeatures) -> Encoded:
        if self.features == "frames":
            assert clip.frame_level is not None
            return {"clip": kernels.unit(clip.frame_level.flatten(-2))}
        assert clip.patches is not None
        return {"clip": kernels.unit_patches(clip.patches).flatten(-3)}

    def match(
        self, support: Encoded, query: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> dict[str, Tensor]:
        return {"ridge": self.scale * kernels.ridge(support["clip"], query["clip"], self.rho, shot_mask)}

    def pair_scores(self, support: Encoded, query: Encoded) -> Encoded:
        return {"product": inner_products(support["clip"], query["clip"])}

    def match_scores(
        self, own: Encoded, cross: Encoded, way: int, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> Float[Tensor, "*B Q N"]:
        return self.scale * kernels.ridge_of_products(own["product"], cross["product"], way, self.rho, shot_mask)

    def floats_per_pair(self, encoded: Encoded) -> int:
        return 1


KERNELS = ("lag", "energy", "motionmap", "meanpatch")


class _SeveralKernels(Matching):
    """Base of methods that combine several single-vector methods."""

    name: ClassVar[str]
    needs_own: ClassVar[bool] = True  # scores of the support clips with each other
    reads = frozenset({"patches"})
    per_class = False
    kinds: ClassVar[dict[str, type[Matching]]] = {
        "lag": Lag,
        "energy": Energy,
        "motionmap": MotionMap,
        "meanpatch": MeanPatch,
    }

    def __init__(self, spec: FeatureSpec, names: Sequence[str]) -> None:
        super().__init__(spec)
        for name in names:
            check_choice("kernels", name, KERNELS)
        if not names or len(set(names)) < len(names):
            raise InputError(f"kernels {list(names)}: give one or more of {', '.join(KERNELS)}, each once")
        self.parts = nn.ModuleDict({name: self.kinds[name](spec) for name in names})

    def encode(self, clip: VideoFeatures) -> Encoded:
        encoded = {}
        part: Any
        for name, part in self.parts.items():
            (encoded[name],) = part.encode(clip).values()
        return encoded

    def match(
        self, support: Encoded, query: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> dict[str, Tensor]:
        clips, way = {}, 1
        for name in self.parts:
            clips[name], way = self._flatten_shots(name, support)
        own = self.pair_scores(clips, clips) if self.needs_own else {}
        return {self.name: self.match_scores(own, self.pair_scores(clips, query), way, shot_mask)}

    def pair_scores(self, support: Encoded, query: Encoded) -> Encoded:
        return {name: self.scores(name, support[name], query[name]) for name in self.parts}

    def scores(self, name: str, support: Tensor, query: Tensor) -> Float[Tensor, "*B Q V"]:
        """Compute the similarity of queries ``[..., Q]`` and clips ``[..., V]`` with one kernel."""
        part = self.parts[name]
        return part.similarity(support, query) if isinstance(part, Lag) else inner_products(support, query)

    @staticmethod
    def _flatten_shots(name: str, support: Encoded) -> tuple[Tensor, int]:
        """Reshape clips of one kernel, ``[..., N, K, *features] -> [..., N K, *features]``; return them and N."""
        axis = -3 - (2 if name == "lag" else 0)  # lag has separate axes for time steps and patches
        return support[name].flatten(axis, axis + 1), support[name].shape[axis]

    def floats_per_pair(self, encoded: Encoded) -> int:
        return self.spec.steps**2


@register_matching("lag_energy")
class LagEnergy(_SeveralKernels):
    """Sum of ``lag`` and ``energy``, each z-scored over the classes: for one shot."""

    name = "lag_energy"
    needs_own = False
    temperature = 1.0

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__(spec, ("lag", "energy"))

    def match_scores(
        self, own: Encoded, cross: Encoded, way: int, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> Float[Tensor, "*B Q N"]:
        return kernels.z_sum(*(mean_over_shots(cross[name], way, shot_mask) for name in self.parts))


@register_matching("kernel_ridge")
class KernelRidge(_SeveralKernels):
    """Kernel ridge regression on a weighted sum of kernels, see `weighted_kernel_ridge`: for several shots.

    Args:
        spec: sizes of the features.
        kernels: some of ``lag``, ``energy``, ``motionmap`` and ``meanpatch``.
        ridge: penalty as a fraction of the mean diagonal.

    Raises:
        InputError: a kernel is unknown or listed twice, or ``ridge`` is not positive.
    """

    name = "kernel_ridge"
    temperature = 0.1

    def __init__(self, spec: FeatureSpec, *, kernels: Sequence[str] = KERNELS, ridge: float = 0.1) -> None:
        super().__init__(spec, tuple(kernels))
        check_positive(ridge=ridge)
        self.ridge = ridge

    def match_scores(
        self, own: Encoded, cross: Encoded, way: int, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> Float[Tensor, "*B Q N"]:
        of_support, of_queries = ([scores[name] for name in self.parts] for scores in (own, cross))
        return kernels.weighted_kernel_ridge(of_support, of_queries, way, shot_mask, self.ridge)


def _vectors(tensor: Tensor, axes: int) -> Tensor:
    return tensor.flatten(-axes) if axes > 1 else tensor


def _shares(patches: Float[Tensor, "L PP D"]) -> Float[Tensor, "L PP"]:
    energy = patches.float().square().sum(-1)
    return energy / energy.sum(-1, keepdim=True).clamp_min(1e-12)
