"""Frame-to-frame matching methods, registered under the names of `alignment`."""

from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from strm_lightning.episode import VideoFeatures
from strm_lightning.errors import InputError
from strm_lightning.messages import check_choice, check_not_negative, check_positive
from strm_lightning.models.matching.alignment import (
    JOINT,
    Direction,
    Shots,
    alignment_scores,
    frame_alignment,
    frame_cosines,
    scores_of_cosines,
)
from strm_lightning.models.matching.base import (
    Encoded,
    Evidence,
    FeatureSpec,
    Matching,
    register_matching,
    spread_over_steps,
)
from strm_lightning.models.matching.kernels import centered
from strm_lightning.models.matching.tuples import TupleLinear, tuple_members
from strm_lightning.models.positions import sinusoid

FeatureChoice = Literal["frames", "patches"]


class FrameMatching(Matching):
    """Base of the frame-to-frame methods: ``scale`` times `frame_alignment`.

    Encodes one vector for each time step (or projected tuple), ``steps [..., L, F]``.

    Args:
        spec: sizes of the features.
        features: ``frames``: E; ``patches``: the patches minus their mean over the clip, concatenated.
        shots: ``distance``, ``prototype`` or ``joint``, see `frame_alignment`.
        eps: added to the product of lengths in the cosine.
        tuple_size: compare ordered tuples of this many time steps.
        tuple_dim: project tuples to this many channels and apply layer norm; None compares concatenated tuples.
        positions: add TRX's position code to the features, for methods that ignore order.
        scale: factor of the logits.
        learn_scale: learn a further factor, with initial value 1.

    Raises:
        InputError: an option is unknown or out of range.
    """

    method: ClassVar[str]
    temperature = 0.05

    def __init__(
        self,
        spec: FeatureSpec,
        *,
        features: FeatureChoice = "frames",
        shots: Shots = "distance",
        eps: float = 0.01,
        tuple_size: int = 1,
        tuple_dim: int | None = None,
        positions: bool = False,
        scale: float = 1.0,
        learn_scale: bool = False,
    ) -> None:
        super().__init__(spec)
        check_choice("features", features, ("frames", "patches"))
        check_choice("shots", shots, ("distance", "prototype", "joint"))
        check_positive(tuple_dim=tuple_dim, scale=scale)
        check_not_negative(eps=eps)
        if shots == "joint" and self.method not in JOINT:
            raise InputError(f"shots 'joint' is not defined for {self.method!r}, only for {', '.join(JOINT)}")
        if not 1 <= tuple_size <= spec.steps:
            raise InputError(f"tuple_size is {tuple_size}: give 1 to {spec.steps}, the number of time steps")
        self.features, self.scale = features, scale
        self.reads = frozenset({"frame_level" if features == "frames" else "patches"})
        self.fixed_options: dict[str, Any] = {"eps": eps, "tuple_size": 1 if tuple_dim else tuple_size}
        self.shots = shots
        dim = spec.dim if features == "frames" else spec.patches * spec.dim
        code = sinusoid(spec.steps, dim) if positions else None
        self.code: Tensor | None
        self.register_buffer("code", code, persistent=False)
        self.project = TupleLinear(tuple_size, spec.steps, dim, tuple_dim) if tuple_dim else None
        self.norm = nn.LayerNorm(tuple_dim) if tuple_dim else None
        self.factor = nn.Parameter(torch.ones(())) if learn_scale else None

    def encode(self, clip: VideoFeatures) -> Encoded:
        if self.features == "frames":
            assert clip.frame_level is not None
            steps = clip.frame_level
        else:
            assert clip.patches is not None
            steps = centered(clip.patches).flatten(-2)
        if self.code is not None:
            steps = steps + self.code
        if self.project is not None and self.norm is not None:
            # Centred patches are in float32, also where the weights are in bfloat16.
            steps = self.norm(self.project(steps.to(self.project.weight.dtype)))
        return {"steps": steps}

    def match(
        self, support: Encoded, query: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> dict[str, Tensor]:
        options = self.alignment_options()
        logits = frame_alignment(
            support["steps"], query["steps"], self.method, shots=self.shots, shot_mask=shot_mask, **options
        )
        return {self.method: self._scaled(logits)}

    def clip_scores(self, support: Encoded, query: Encoded) -> Float[Tensor, "Q V"] | None:
        if self.shots != "distance":
            return None
        return self._scaled(alignment_scores(support["steps"], query["steps"], self.method, **self.alignment_options()))

    def explain(
        self, support: Encoded, query: Encoded, label: int, shot_mask: Bool[Tensor, "N K"] | None = None
    ) -> dict[str, Evidence] | None:
        # A logit is a function f of the cosines S. The weights are df/dS, the offset is f - sum(df/dS * S).
        if self.shots == "prototype" or self.method == "mean":
            return None
        clips = support["steps"][label]
        clips = clips if shot_mask is None else clips[shot_mask[label]]
        eps, size = self.fixed_options["eps"], self.fixed_options["tuple_size"]
        with torch.inference_mode(False), torch.enable_grad():
            cosine = frame_cosines(clips.detach().clone(), query["steps"][None].detach().clone(), eps, size)
            cosine = cosine[0].detach().requires_grad_()
            options = {name: value for name, value in self.alignment_options().items() if name in _OF_SCORES}
            joined = rearrange(cosine, "k i j -> i (k j)") if self.shots == "joint" else cosine
            score = self._scaled(scores_of_cosines(joined, self.method, **options).mean())
            (weights,) = torch.autograd.grad(score, cosine)
        logit = self.match({"steps": clips[None]}, {"steps": query["steps"][None]})[self.method].item()
        contributions = weights * cosine.detach()
        offset = logit - float(contributions.double().sum())
        of_tuples = self.project.size if self.project is not None else size
        if of_tuples > 1:
            members = tuple_members(of_tuples, self.spec.steps)
            weights, contributions = (
                spread_over_steps(rearrange(x, "k i j -> i k j"), members, self.spec.steps)
                for x in (weights, contributions)
            )
        weights = weights.clamp_min(0)
        return {self.method: Evidence(contributions=contributions, weights=weights, kind="alignment", offset=offset)}

    def floats_per_pair(self, encoded: Encoded) -> int:
        return int(encoded["steps"].shape[-2] ** 2)

    def alignment_options(self) -> dict[str, Any]:
        """Return the options of `frame_alignment` except ``shots``, with learned ones."""
        return self.fixed_options

    def _scaled(self, logits: Tensor) -> Tensor:
        logits = self.scale * logits
        return logits if self.factor is None else self.factor * logits


_OF_SCORES = ("direction", "smoothing", "weight")


@register_matching("mean")
class Mean(FrameMatching):
    """Cosine of the mean features; ``squared`` with ``shots="prototype"`` is ProtoNet (Snell et al., NeurIPS 2017)."""

    method = "mean"

    def __init__(
        self,
        spec: FeatureSpec,
        *,
        features: FeatureChoice = "frames",
        shots: Shots = "distance",
        eps: float = 0.01,
        squared: bool = False,
        scale: float = 1.0,
        learn_scale: bool = False,
    ) -> None:
        super().__init__(spec, features=features, shots=shots, eps=eps, scale=scale, learn_scale=learn_scale)
        self.fixed_options["squared"] = squared


@register_matching("pairs")
class Pairs(FrameMatching):
    """Mean over query steps of the sum over support steps of all cosines."""

    method = "pairs"


@register_matching("max")
class Max(FrameMatching):
    """Largest cosine of a query step and a support step."""

    method = "max"


@register_matching("diagonal")
class Diagonal(FrameMatching):
    """Mean cosine of time steps with the same index."""

    method = "diagonal"


@register_matching("linear")
class Linear(FrameMatching):
    """Sum of cosines with a learned weight for each pair of time steps, initialised as `Diagonal`."""

    method = "linear"

    def __init__(
        self,
        spec: FeatureSpec,
        *,
        features: FeatureChoice = "frames",
        shots: Shots = "distance",
        eps: float = 0.01,
        scale: float = 1.0,
    ) -> None:
        super().__init__(spec, features=features, shots=shots, eps=eps, scale=scale)
        self.weight = nn.Parameter(torch.eye(spec.steps) / spec.steps)

    def alignment_options(self) -> dict[str, Any]:
        return {**self.fixed_options, "weight": self.weight}


@register_matching("chamfer")
class Chamfer(FrameMatching):
    """Mean best cosine of each query step, of each support step, or of both.

    Chamfer++ (matching_based_fsar, 2023) is ``shots: joint, tuple_size: 3, tuple_dim: 1152, scale: 10, learn_scale:
    true``.
    """

    method = "chamfer"

    def __init__(
        self,
        spec: FeatureSpec,
        *,
        features: FeatureChoice = "frames",
        shots: Shots = "distance",
        eps: float = 0.01,
        direction: Direction = "both",
        tuple_size: int = 1,
        tuple_dim: int | None = None,
        positions: bool = False,
        scale: float = 1.0,
        learn_scale: bool = False,
    ) -> None:
        check_choice("direction", direction, ("both", "query", "support"))
        super().__init__(
            spec,
            features=features,
            shots=shots,
            eps=eps,
            tuple_size=tuple_size,
            tuple_dim=tuple_dim,
            positions=positions,
            scale=scale,
            learn_scale=learn_scale,
        )
        self.fixed_options["direction"] = direction


@register_matching("bi_mhm")
class BiMHM(FrameMatching):
    """Bidirectional mean Hausdorff metric of HyRSM (Wang et al., CVPR 2022).

    The score is independent of order unless features depend on it: use FLE, ``positions``, or tuples. HyRSM uses
    ``shots: prototype`` for 5 shots, and ``eps: 0``.
    """

    method = "bi_mhm"


@register_matching("otam")
class OTAM(FrameMatching):
    """Ordered temporal alignment (Cao et al., CVPR 2020): minus the cost of the best monotone path, in both directions.

    ``smoothing`` is lambda of the soft minimum (0: hard minimum); ``debias`` removes the advantage of still clips.
    """

    method = "otam"

    def __init__(
        self,
        spec: FeatureSpec,
        *,
        features: FeatureChoice = "frames",
        shots: Shots = "distance",
        eps: float = 0.01,
        smoothing: float = 0.1,
        debias: bool = False,
        direction: Direction = "both",
        tuple_size: int = 1,
        tuple_dim: int | None = None,
        scale: float = 1.0,
        learn_scale: bool = False,
    ) -> None:
        check_choice("direction", direction, ("both", "query", "support"))
        check_not_negative(smoothing=smoothing)
        super().__init__(
            spec,
            features=features,
            shots=shots,
            eps=eps,
            tuple_size=tuple_size,
            tuple_dim=tuple_dim,
            scale=scale,
            learn_scale=learn_scale,
        )
        self.fixed_options |= {"smoothing": smoothing, "debias": debias, "direction": direction}
