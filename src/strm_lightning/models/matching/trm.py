"""TRM, temporal relationship modelling: the temporal cross-transformer of TRX (Perrett et al., CVPR 2021)."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from strm_lightning.episode import VideoFeatures
from strm_lightning.models.matching.base import (
    Encoded,
    Evidence,
    FeatureSpec,
    register_matching,
    spread_over_steps,
)
from strm_lightning.models.matching.shots import zero_absent
from strm_lightning.models.matching.tuples import TupleLinear, TupleMatching
from strm_lightning.models.positions import PositionCode


@register_matching("trm")
class TRM(TupleMatching):
    """Temporal relationship modelling on E, with one cross-transformer for each tuple size in Omega.

    Encodes keys and values of all tuples, ``[..., T, d]``, with the tuple sizes concatenated along ``T``. Logits are
    averaged over Omega.

    Args:
        spec: sizes of the features.
        tuple_sizes: Omega, sizes of the frame tuples.
        match_dim: channels d of keys and values.
    """

    def __init__(self, spec: FeatureSpec, *, tuple_sizes: Sequence[int] = (2,), match_dim: int = 1152) -> None:
        super().__init__(
            spec, tuple_sizes, lambda size: TemporalCrossTransformer(size, spec.steps, spec.dim, match_dim)
        )

    def encode(self, clip: VideoFeatures) -> Encoded:
        assert clip.frame_level is not None
        encoded = [branch(clip.frame_level) for branch in self.branches]
        return {
            "keys": torch.cat([keys for keys, _ in encoded], -2),
            "values": torch.cat([values for _, values in encoded], -2),
        }

    def match(
        self, support: Encoded, query: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> dict[str, Tensor]:
        q_keys, q_values, s_keys, s_values = (
            self.by_size(tensors[name]) for tensors in (query, support) for name in _NAMES
        )
        branches = zip(q_keys, q_values, s_keys, s_values, strict=True)
        logits = [cross_transform(*branch, shot_mask) for branch in branches]
        return {"trm": torch.stack(logits).mean(0)}

    def explain(
        self, support: Encoded, query: Encoded, label: int, shot_mask: Bool[Tensor, "N K"] | None = None
    ) -> dict[str, Evidence]:
        # A distance is distributed over the support tuples in proportion to their attention.
        present = slice(None) if shot_mask is None else shot_mask[label]
        s_tuples = {name: self.by_size(support[name][label][present]) for name in _NAMES}
        q_tuples = {name: self.by_size(query[name]) for name in _NAMES}
        contributions: list[Tensor] = []
        weights: list[Tensor] = []
        strongest = []
        for i, branch in enumerate(self.branches):
            members, tuples = branch.key.members, self.tuple_counts[i]
            attention = attend(q_tuples["keys"][i][None], s_tuples["keys"][i][None])[0].unflatten(-1, (-1, tuples))
            prototypes = torch.einsum("tkj,kjd->td", attention, s_tuples["values"][i])
            distances = (q_tuples["values"][i] - prototypes).float().square().sum(-1)
            share = attention.float() / tuples / len(self.tuple_sizes)
            cost = share * distances[:, None, None]
            contributions.append(spread_over_steps(-cost, members, self.spec.steps))
            weights.append(spread_over_steps(share, members, self.spec.steps))
            strongest.append(_strongest(attention, members))
        return {
            "trm": Evidence(
                contributions=torch.stack(contributions).sum(0),
                weights=torch.stack(weights).sum(0),
                kind="attention",
                strongest=max(strongest, key=lambda match: match[3]),
            )
        }

    def floats_per_pair(self, encoded: Encoded) -> int:
        tuples, width = encoded["keys"].shape[-2:]
        return tuples * max(tuples, width)


_NAMES = ("keys", "values")


def _strongest(
    attention: Float[Tensor, "T K J"], members: Int[Tensor, "w T"]
) -> tuple[tuple[int, ...], int, tuple[int, ...], float]:
    t, clip, j = (int(i) for i in torch.unravel_index(attention.argmax(), attention.shape))
    steps = [tuple(members[:, i].tolist()) for i in (t, j)]
    return steps[0], clip, steps[1], float(attention[t, clip, j])


class TemporalCrossTransformer(nn.Module):
    """Compute keys and values of the tuples of one size, for `cross_transform`.

    Args:
        size: frames of a tuple, w.
        num_frames: frames of a clip, L.
        dim: channels of a frame, D.
        match_dim: channels d of keys and values (1152 in the paper).
    """

    def __init__(self, size: int, num_frames: int, dim: int, match_dim: int) -> None:
        super().__init__()
        self.position = PositionCode(num_frames, dim)
        self.key = TupleLinear(size, num_frames, dim, match_dim)
        self.value = TupleLinear(size, num_frames, dim, match_dim)
        self.norm_key = nn.LayerNorm(match_dim)

    def forward(self, frames: Float[Tensor, "*B L D"]) -> tuple[Float[Tensor, "*B T d"], Float[Tensor, "*B T d"]]:
        """Compute keys and values of the tuples of each clip."""
        frames = self.position(frames)
        return self.norm_key(self.key(frames)), self.value(frames)


def attend(
    query_keys: Float[Tensor, "*B Q T d"],
    support_keys: Float[Tensor, "*B N K T d"],
    shot_mask: Bool[Tensor, "*B N K"] | None = None,
) -> Float[Tensor, "*B N QT KT"]:
    """Compute the attention of each query tuple to each support tuple; it sums to 1 over the tuples of a class."""
    way, tuples = support_keys.shape[-4], support_keys.shape[-2]
    support_keys = zero_absent(support_keys, shot_mask)
    # One product for all classes reads the queries' keys once instead of once per class.
    scores = query_keys.flatten(-3, -2) @ support_keys.flatten(-4, -2).mT
    scores = rearrange(scores, "... qt (n kt) -> ... n qt kt", n=way) * query_keys.shape[-1] ** -0.5
    if shot_mask is not None:
        absent = ~shot_mask.repeat_interleave(tuples, dim=-1)
        scores = scores.masked_fill(absent.unsqueeze(-2), -torch.inf)
    return torch.softmax(scores, dim=-1)


def cross_transform(
    query_keys: Float[Tensor, "*B Q T d"],
    query_values: Float[Tensor, "*B Q T d"],
    support_keys: Float[Tensor, "*B N K T d"],
    support_values: Float[Tensor, "*B N K T d"],
    shot_mask: Bool[Tensor, "*B N K"] | None = None,
) -> Float[Tensor, "*B Q N"]:
    """Compute the logits of each query for each class from the tuples of one size.

    The prototype of a class for a query tuple is the attention-weighted mean of the values of all tuples of all support
    clips of the class. The logit of a class is minus the squared distance between the query's values and their
    prototypes, averaged over the query's tuples.
    """
    num_queries = query_keys.shape[-3]
    attention = attend(query_keys, support_keys, shot_mask)
    support_values = zero_absent(support_values, shot_mask)  # 0 * NaN is NaN
    prototypes = attention.to(support_values.dtype) @ support_values.flatten(-3, -2)
    query_values = query_values.flatten(-3, -2).unsqueeze(-3)
    # Without gradients the difference takes the place of the prototypes; new memory of this size costs more than the
    # subtraction.
    in_place = not torch.is_grad_enabled() and prototypes.dtype == query_values.dtype
    difference = prototypes.sub_(query_values) if in_place else prototypes - query_values
    # bfloat16 is too imprecise for a sum of a thousand squares.
    difference = difference.to(torch.promote_types(difference.dtype, torch.float32))
    distance = torch.linalg.vector_norm(difference, dim=-1).square()
    return -rearrange(distance, "... n (q t) -> ... q n t", q=num_queries).mean(-1)
