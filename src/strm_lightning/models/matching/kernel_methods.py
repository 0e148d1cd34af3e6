"""Matching methods that compare one vector for each clip, lag, and kernel ridge regression."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from strm_lightning.episode import VideoFeatures
from strm_lightning.errors import InputError
from strm_lightning.messages import check_choice, check_not_negative, check_positive
from strm_lightning.models.matching import kernels
from strm_lightning.models.matching.base import Encoded, Evidence, FeatureSpec, Matching, register_matching
from strm_lightning.models.matching.frame_methods import FeatureChoice
from strm_lightning.models.matching.lag import lag_matches, lag_similarity, soft_normalize
from strm_lightning.models.matching.precision import at_least_float32, inner_products, safe_ratio
from strm_lightning.models.matching.shots import mean_over_shots, zero_absent


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

    def floats_per_pair(self, encoded: Encoded) -> int:
        return self.spec.steps**2

    def similarity(
        self, support: Float[Tensor, "*B V L P D"], query: Float[Tensor, "*B Q L P D"]
    ) -> Float[Tensor, "*B Q V"]:
        """Compute the score of each query and support clip."""
        return self.scale * lag_similarity(support, query, self.max_lag, *self._constants())

    def matches(self, support: Float[Tensor, "K L P D"], query: Float[Tensor, "L P D"]) -> Float[Tensor, "K L L"]:
        """Compute the contributions of pairs of frames to `similarity`, see `lag_matches`."""
        return self.scale * lag_matches(support, query, self.max_lag, *self._constants())

    def explain(
        self, support: Encoded, query: Encoded, label: int, shot_mask: Bool[Tensor, "N K"] | None = None
    ) -> dict[str, Evidence]:
        clips = support["patches"][label]
        clips = clips if shot_mask is None else clips[shot_mask[label]]
        matches = self.matches(clips, query["patches"])
        logit = self.similarity(clips, query["patches"][None]).mean()
        return {"lag": _evidence(matches / len(clips), matches, float(logit))}

    def _constants(self) -> tuple[float | Tensor, float | Tensor]:
        tau: float | Tensor = self.tau.clamp_min(1e-3) if isinstance(self.tau, Tensor) else self.tau
        decay: float | Tensor = self.decay.clamp_min(0) if isinstance(self.decay, Tensor) else self.decay
        return tau, decay


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
        return self.match_prepared(self.prepare(support, shot_mask), query)

    def prepare(self, support: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None) -> Encoded:
        """Fit the regression: the clips ``[..., S, F]``, absent ones 0, and their ``coefficients`` ``[..., S, N]``."""
        clips = zero_absent(support["clip"], shot_mask)
        coefficients = self.scale * kernels.fit_ridge(clips, self.rho, shot_mask)
        return {"clip": clips.flatten(-3, -2), "coefficients": coefficients}

    def match_prepared(
        self, prepared: Encoded, query: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> dict[str, Tensor]:
        return {"ridge": kernels.apply_ridge(prepared["clip"], query["clip"], prepared["coefficients"])}

    def without_absent(self, prepared: Encoded, shot_mask: Bool[Tensor, "N K"]) -> Encoded:
        present = shot_mask.flatten()
        return {name: tensor[present] for name, tensor in prepared.items()}

    def pair_scores(self, support: Encoded, query: Encoded) -> Encoded:
        return {"product": inner_products(support["clip"], query["clip"])}

    def match_scores(
        self, own: Encoded, cross: Encoded, way: int, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> Float[Tensor, "*B Q N"]:
        return self.scale * kernels.ridge_of_products(own["product"], cross["product"], way, self.rho, shot_mask)

    def floats_per_pair(self, encoded: Encoded) -> int:
        return 1


KERNELS = ("lag", "energy", "motionmap", "meanpatch")
_FLOATS_AT_ONCE = 2**24  # elements of the largest tensor of `leave_out`: 64 MB of float32
_ROWS_AT_ONCE = 32  # support clips compared with all others at a time, without gradient


def kernel_of(part: str) -> str:
    """Return the kernel of a part of a sum: ``lag`` for ``lag`` and ``lag_2``."""
    return part.partition("_")[0]


class _SeveralKernels(Matching):
    """Base of methods that combine several single-vector methods.

    If the backbone has several stages, each kernel is used for each stage; ``lag_2`` is ``lag`` of the second stage.
    """

    reads = frozenset({"patches"})
    per_class = False
    kinds: ClassVar[dict[str, type[Matching]]] = {
        "lag": Lag,
        "energy": Energy,
        "motionmap": MotionMap,
        "meanpatch": MeanPatch,
    }

    def __init__(self, spec: FeatureSpec, names: Sequence[str], mirror: bool) -> None:
        super().__init__(spec)
        for name in names:
            check_choice("kernels", name, KERNELS)
        if not names or len(set(names)) < len(names):
            raise InputError(f"kernels {list(names)}: give one or more of {', '.join(KERNELS)}, each once")
        stages = spec.stages or (spec.dim,)
        self.parts, self._channels = nn.ModuleDict(), dict[str, slice]()
        for number, dim in enumerate(stages, start=1):
            for name in names:
                part = name if number == 1 else f"{name}_{number}"
                self.parts[part] = self.kinds[name](replace(spec, dim=dim, stages=()))
                self._channels[part] = slice(sum(stages[: number - 1]), sum(stages[:number]))
        self.mirror = mirror
        if mirror and math.isqrt(spec.patches) ** 2 != spec.patches:
            raise InputError(f"mirror needs a square grid of patches, not {spec.patches} patches")

    def encode(self, clip: VideoFeatures) -> Encoded:
        assert clip.patches is not None
        encoded = {}
        part: Any
        for name, part in self.parts.items():
            of_stage = VideoFeatures(patches=clip.patches[..., self._channels[name]])
            (encoded[name],) = part.encode(of_stage).values()
        return encoded

    def pair_scores(self, support: Encoded, query: Encoded) -> Encoded:
        return {name: self.scores(name, support[name], query[name]) for name in self.parts}

    def scores(self, name: str, support: Tensor, query: Tensor) -> Float[Tensor, "*B Q V"]:
        """Compute the similarity of queries ``[..., Q]`` and clips ``[..., V]`` with one kernel.

        With ``mirror``, it is the larger one of the similarities of the query and of the mirrored query.
        """
        part = self.parts[name]
        compare = part.similarity if isinstance(part, Lag) else inner_products
        scores: Tensor = compare(support, query)
        return torch.maximum(scores, compare(support, self._mirrored(name, query))) if self.mirror else scores

    def matches(self, name: str, support: Tensor, query: Tensor) -> Float[Tensor, "K L L"]:
        """Compute the contributions of pairs of time steps (query, support) to the similarity of one query and K clips.

        ``motionmap`` and ``meanpatch`` do not depend on single steps: their similarity is spread over all pairs.
        """
        if self.mirror:
            mirrored = self._mirrored(name, query)
            part = self.parts[name]
            compare = part.similarity if isinstance(part, Lag) else inner_products
            better = (compare(support, mirrored[None]) > compare(support, query[None]))[0]
            of_both = [self._matches(name, support, each) for each in (query, mirrored)]
            return torch.where(better[:, None, None], of_both[1], of_both[0])
        return self._matches(name, support, query)

    def _matches(self, name: str, support: Tensor, query: Tensor) -> Float[Tensor, "K L L"]:
        part, steps = self.parts[name], self.spec.steps
        if isinstance(part, Lag):
            return part.matches(support, query)
        support, query = at_least_float32(support, query)
        if kernel_of(name) == "energy":
            by_step = (support * query).unflatten(-1, (steps, -1)).sum(-1)
            return torch.diag_embed(by_step)
        spread = support.new_full((steps, steps), 1 / steps**2)
        return (support @ query)[:, None, None] * spread

    def _explain(
        self,
        prepared: Encoded,
        query: Encoded,
        label: int,
        logits: Mapping[str, Tensor],
        factors: Mapping[str, Float[Tensor, " S"]],
    ) -> dict[str, Evidence]:
        """Build the evidence of each named logit; ``factors`` weigh the support clips."""
        members = prepared["label"] == label
        found = {}
        for name, factor in factors.items():
            matches = self.matches(name, prepared[name][members], query[name])
            found[name] = _evidence(factor[members, None, None] * matches, matches, float(logits[name][0, label]))
        return found

    def _mirrored(self, name: str, clips: Tensor) -> Tensor:
        """Exchange left and right in the descriptors of clips."""
        side = math.isqrt(self.spec.patches)
        if kernel_of(name) == "lag":
            return clips.unflatten(-2, (side, side)).flip(-2).flatten(-3, -2)
        if kernel_of(name) == "energy":
            return clips.unflatten(-1, (self.spec.steps * side, side)).flip(-1).flatten(-2)
        return clips.unflatten(-1, (side, side, -1)).flip(-2).flatten(-3)

    def _axis_of_way(self, name: str) -> int:
        return -5 if kernel_of(name) == "lag" else -3  # lag has separate axes for time steps and patches

    def _way_and_shot(self, support: Encoded) -> tuple[int, int]:
        name = next(iter(self.parts))
        axis = self._axis_of_way(name)
        return support[name].shape[axis], support[name].shape[axis + 1]

    def _arrange(self, support: Encoded, shot_mask: Tensor | None) -> Encoded:
        """Reshape the clips ``[..., N, K, *features] -> [..., S, *features]``.

        Absent clips of a single episode are removed; those of several episodes are set to 0.

        Returns:
            The clips of each kernel; ``label`` ``[S]``, their classes; ``present`` ``[..., S]`` if absent clips remain.
        """
        way, shot = self._way_and_shot(support)
        device = next(iter(support.values())).device
        label = torch.arange(way, device=device).repeat_interleave(shot)
        if shot_mask is not None and shot_mask.ndim == 2 and not torch.compiler.is_compiling():
            present = {name: support[name][shot_mask] for name in self.parts}
            return {**present, "label": label[shot_mask.flatten()]}
        clips = {"label": label} if shot_mask is None else {"label": label, "present": shot_mask.flatten(-2)}
        for name in self.parts:
            axis = self._axis_of_way(name)
            clips[name] = zero_absent(support[name], shot_mask).flatten(axis, axis + 1)
        return clips

    def floats_per_pair(self, encoded: Encoded) -> int:
        return self.spec.steps**2 * (1 + self.mirror)


@register_matching("lag_energy")
class LagEnergy(_SeveralKernels):
    """Sum of ``lag`` and ``energy``, each z-scored over the classes: for one shot.

    With several stages of the backbone, both are added for each stage.

    Args:
        spec: sizes of the features.
        mirror: a clip also matches its mirror image (left and right exchanged).
    """

    temperature = 1.0

    def __init__(self, spec: FeatureSpec, *, mirror: bool = False) -> None:
        super().__init__(spec, ("lag", "energy"), mirror)

    def match(
        self, support: Encoded, query: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> dict[str, Tensor]:
        clips, way = self._arrange(support, shot_mask), self._way_and_shot(support)[0]
        scores = {name: self.scores(name, clips[name], query[name]) for name in self.parts}
        return lag_energy_logits(scores, clips["label"], way, clips.get("present"))

    def match_scores(
        self, own: Encoded, cross: Encoded, way: int, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> Float[Tensor, "*B Q N"]:
        label = kernels.labels_by_class(cross["energy"], way)
        return _sum(lag_energy_logits(cross, label, way, None if shot_mask is None else shot_mask.flatten(-2)))

    def default_temperature(self, shots: Sequence[int]) -> float:
        return self.temperature * len(self.parts) / 2  # each z-score has the same spread

    def explain(
        self, support: Encoded, query: Encoded, label: int, shot_mask: Bool[Tensor, "N K"] | None = None
    ) -> dict[str, Evidence]:
        return explain_lag_energy(self, self._arrange(support, shot_mask), query, label)


def explain_lag_energy(method: _SeveralKernels, clips: Encoded, query: Encoded, label: int) -> dict[str, Evidence]:
    """`Matching.explain` of ``lag_energy`` for the clips of one episode, see `_SeveralKernels._arrange`."""
    alone = {name: query[name][None] for name in _motion_parts(method.parts)}
    scores = {name: method.scores(name, clips[name], alone[name]) for name in alone}
    labels = clips["label"]
    way, count = int(labels.max()) + 1, (labels == label).sum()
    factors = {}
    for name, score in scores.items():
        deviation = kernels.class_means(score, labels, way)[0].std(correction=0)
        factors[name] = safe_ratio(torch.ones_like(deviation), deviation * count).expand(len(labels))
    return method._explain(clips, query, label, lag_energy_logits(scores, labels, way), factors)


def lag_energy_logits(
    scores: Mapping[str, Float[Tensor, "*B Q S"]],
    label: Int[Tensor, " S"],
    way: int,
    present: Bool[Tensor, "*#B S"] | None = None,
) -> dict[str, Float[Tensor, "*B Q N"]]:
    """Compute the parts of the logits of `LagEnergy` from similarities of queries and support clips.

    Args:
        scores: similarities for each kernel; those of other kernels are ignored.
        label: class of each support clip.
        way: number of classes N.
        present: true where a clip is present; None if all are.
    """
    means = {name: kernels.class_means(scores[name], label, way, present) for name in _motion_parts(scores)}
    return {name: kernels.z_sum(mean) for name, mean in means.items()}


def _motion_parts(parts: Iterable[str]) -> list[str]:
    return [part for part in parts if kernel_of(part) in ("lag", "energy")]


@register_matching("kernel_ridge")
class KernelRidge(_SeveralKernels):
    """Kernel ridge regression on a weighted sum of kernels, see `weighted_kernel_ridge`: for several shots.

    Args:
        spec: sizes of the features.
        kernels: some of ``lag``, ``energy``, ``motionmap`` and ``meanpatch``.
        ridge: penalty as a fraction of the mean diagonal.
        mirror: a clip also matches its mirror image (left and right exchanged).

    Raises:
        InputError: a kernel is unknown or listed twice, or ``ridge`` is not positive.
    """

    temperature = 0.1

    def __init__(
        self, spec: FeatureSpec, *, kernels: Sequence[str] = KERNELS, ridge: float = 0.1, mirror: bool = False
    ) -> None:
        super().__init__(spec, tuple(kernels), mirror)
        check_positive(ridge=ridge)
        self.ridge = ridge

    def prepare(self, support: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None) -> Encoded:
        """Fit the regression to the support.

        Returns:
            The clips of each kernel ``[..., S, *features]`` without absent ones; ``label`` ``[S]``, their classes;
            ``present`` ``[..., S]`` if several episodes have absent clips; ``similarities`` of the clips,
            ``[..., C, S, S]``; ``coefficients``, ``bias`` and ``weights`` of `KernelRidgeFit`.
        """
        clips, way = self._arrange(support, shot_mask), self._way_and_shot(support)[0]
        similarities = torch.stack([self._similarities(name, clips[name]) for name in self.parts], -3)
        fit = kernels.fit_kernel_ridge(similarities.unbind(-3), clips["label"], way, clips.get("present"), self.ridge)
        return {**clips, "similarities": similarities, **vars(fit)}

    def match_prepared(
        self, prepared: Encoded, query: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> dict[str, Tensor]:
        scores = {name: self.scores(name, prepared[name], query[name]) for name in self.parts}
        return self._logits(prepared, scores)

    def match(
        self, support: Encoded, query: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> dict[str, Tensor]:
        return self.match_prepared(self.prepare(support, shot_mask), query)

    def match_scores(
        self, own: Encoded, cross: Encoded, way: int, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> Float[Tensor, "*B Q N"]:
        label = kernels.labels_by_class(cross[next(iter(self.parts))], way)
        present = {} if shot_mask is None else {"present": shot_mask.flatten(-2)}
        fit = kernels.fit_kernel_ridge([own[name] for name in self.parts], label, way, ridge=self.ridge, **present)
        return _sum(self._logits({"label": label, **present, **vars(fit)}, cross))

    def explain(
        self, support: Encoded, query: Encoded, label: int, shot_mask: Bool[Tensor, "N K"] | None = None
    ) -> dict[str, Evidence]:
        prepared = support if "label" in support else self.prepare(support, shot_mask)
        logits = self.match_prepared(prepared, {name: query[name][None] for name in self.parts})
        factors = dict(zip(self.parts, prepared["coefficients"][..., label], strict=True))
        return self._explain(prepared, query, label, logits, factors)

    def without_absent(self, prepared: Encoded, shot_mask: Bool[Tensor, "N K"]) -> Encoded:
        names = (*self.parts, "coefficients", "bias")
        return {name: prepared[name] for name in names if name in prepared}  # `Auto` with one shot has no coefficients

    def leave_out(
        self, prepared: Encoded, folds: Int[Tensor, "N K"], shot_mask: Bool[Tensor, "N K"] | None = None
    ) -> Float[Tensor, "N K N"]:
        present = torch.ones_like(folds, dtype=torch.bool) if shot_mask is None else shot_mask
        own, label, way, fold = prepared["similarities"], prepared["label"], len(folds), folds[present]
        logits = own.new_zeros(len(fold), way)
        for part in fold[fold >= 0].unique().split(max(1, _FLOATS_AT_ONCE // own.numel())):
            left = fold != part[:, None]  # [F, S]
            similarities = [kernel.expand(len(part), -1, -1) for kernel in own]
            fit = kernels.fit_kernel_ridge(similarities, label, way, left, self.ridge)
            parts = self._logits(
                {"label": label, "present": left, **vars(fit)}, dict(zip(self.parts, similarities, strict=True))
            )
            found = _sum(parts).masked_fill(_clips_of_classes(label, way, left).unsqueeze(-2) == 0, -torch.inf)
            for row, number in enumerate(part):
                logits[fold == number] = found[row, fold == number]
        return logits.new_zeros(*folds.shape, way).masked_scatter(present.unsqueeze(-1), logits)

    def kernel_scores(self, prepared: Encoded) -> dict[str, Float[Tensor, "S N"]]:
        """Compute the mean similarity of each support clip with the other clips of each class, for each kernel.

        It is NaN for the own class of the only clip of a class.
        """
        own, label, way = prepared["similarities"], prepared["label"], prepared["bias"].shape[-1]
        members = F.one_hot(label, way).to(own.dtype)
        others = members.sum(0) - members  # [S, N]
        own = own - torch.diag_embed(own.diagonal(dim1=-2, dim2=-1))
        return dict(zip(self.parts, own @ members / others, strict=True))

    def _logits(self, fit: Encoded, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the parts of the logits from the similarities of queries and support clips."""
        cross = [scores[name] for name in self.parts]
        found = kernels.apply_kernel_ridge(fit["coefficients"], fit["bias"], cross, fit.get("present"))
        return dict(zip(self.parts, found.unbind(-3), strict=True))

    def _similarities(self, name: str, clips: Tensor) -> Float[Tensor, "*B S S"]:
        features = 3 if kernel_of(name) == "lag" else 1
        if clips.ndim > features + 1 or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.scores(name, clips, clips)
        own = clips.new_empty(len(clips), len(clips), dtype=torch.promote_types(clips.dtype, torch.float32))
        for start in range(0, len(clips), _ROWS_AT_ONCE):  # in blocks of bounded memory, one triangle
            rows = slice(start, start + _ROWS_AT_ONCE)
            block = self.scores(name, clips[start:], clips[rows])
            own[rows, start:], own[start:, rows] = block, block.mT
        return own


@register_matching("auto")
class Auto(KernelRidge):
    """``lag_energy`` where no class has several clips, otherwise ``kernel_ridge`` with all four kernels.

    The default for own videos: which kernel separates the classes can be estimated from several clips of a class, and
    cannot be known from one.

    Args:
        spec: sizes of the features.
        mirror: a clip also matches its mirror image (left and right exchanged).
    """

    def __init__(self, spec: FeatureSpec, *, mirror: bool = False) -> None:
        super().__init__(spec, mirror=mirror)

    def prepare(self, support: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None) -> Encoded:
        if self._way_and_shot(support)[1] > 1:
            return super().prepare(support, shot_mask)
        return self._arrange(support, shot_mask)

    def match_prepared(
        self, prepared: Encoded, query: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> dict[str, Tensor]:
        if "coefficients" in prepared:
            return super().match_prepared(prepared, query, shot_mask)
        scores = {name: self.scores(name, prepared[name], query[name]) for name in _motion_parts(self.parts)}
        return {name: kernels.z_sum(score) for name, score in scores.items()}  # one clip is the mean of its class

    def explain(
        self, support: Encoded, query: Encoded, label: int, shot_mask: Bool[Tensor, "N K"] | None = None
    ) -> dict[str, Evidence]:
        prepared = support if "label" in support else self.prepare(support, shot_mask)
        if "coefficients" in prepared and len(prepared["label"]) > prepared["bias"].shape[-1]:
            return super().explain(prepared, query, label)
        return explain_lag_energy(self, prepared, query, label)

    def match_scores(
        self, own: Encoded, cross: Encoded, way: int, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> Float[Tensor, "*B Q N"]:
        if cross["energy"].shape[-1] == way:
            return _sum({name: kernels.z_sum(cross[name]) for name in _motion_parts(cross)})
        return super().match_scores(own, cross, way, shot_mask)

    def default_temperature(self, shots: Sequence[int]) -> float:
        if max(shots) > 1:
            return KernelRidge.temperature
        return LagEnergy.temperature * len(_motion_parts(self.parts)) / 2

    def _logits(self, fit: Encoded, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = super()._logits(fit, scores)
        way, present = fit["bias"].shape[-1], fit.get("present")
        if present is None and fit["coefficients"].shape[-2] > way:
            return logits
        several = (_clips_of_classes(fit["label"], way, present) > 1).any(-1)[..., None, None]
        one = lag_energy_logits(scores, fit["label"], way, present)
        return {name: torch.where(several, part, one.get(name, 0)) for name, part in logits.items()}


def _clips_of_classes(label: Tensor, way: int, present: Tensor | None) -> Int[Tensor, "*B N"]:
    """Count the present clips of each class."""
    members = label.unsqueeze(-1) == torch.arange(way, device=label.device)
    return (members if present is None else members & present.unsqueeze(-1)).sum(-2)


def _sum(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(tuple(parts.values())).sum(0)


def _evidence(contributions: Tensor, matches: Tensor, logit: float) -> Evidence:
    offset = logit - float(contributions.double().sum())
    return Evidence(contributions=contributions, weights=matches.clamp_min(0), kind="similarity", offset=offset)


def _vectors(tensor: Tensor, axes: int) -> Tensor:
    return tensor.flatten(-axes) if axes > 1 else tensor
