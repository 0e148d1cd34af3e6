"""TRM, temporal relationship modelling: TRX's temporal cross-transformer (paper, section 3.1; TRX, section 3.2)."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from strm_lightning.models.positions import PositionCode
from strm_lightning.models.tuples import TupleLinear, zero_absent


class TemporalCrossTransformer(nn.Module):
    """Keys and values of the tuples of one size; `cross_transform` matches a query's with a support set's.

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
        """Keys and values of the tuples of each clip: all that `cross_transform` needs of it."""
        frames = self.position(frames)
        return self.norm_key(self.key(frames)), self.value(frames)


def attend(
    query_keys: Float[Tensor, "*B Q T d"],
    support_keys: Float[Tensor, "*B N K T d"],
    shot_mask: Bool[Tensor, "*B N K"] | None = None,
) -> Float[Tensor, "*B N QT KT"]:
    """How much each query tuple looks at each support tuple of each class; sums to 1 over a class's tuples."""
    way, tuples = support_keys.shape[-4], support_keys.shape[-2]
    if shot_mask is not None:
        support_keys = zero_absent(support_keys, shot_mask)
    # One product for all classes: the queries' keys are read once, not once a class.
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
    """Logits of each query for each class from the tuples of one size.

    Each query tuple attends to all tuples of all support clips of a class, which makes that class's prototype for it.
    The logit of a class is minus the squared distance between the query's values and its prototypes, averaged over the
    query's tuples.
    """
    num_queries = query_keys.shape[-3]
    attention = attend(query_keys, support_keys, shot_mask)
    if shot_mask is not None:
        support_values = zero_absent(support_values, shot_mask)  # an attention of 0 does not silence NaN
    prototypes = attention.to(support_values.dtype) @ support_values.flatten(-3, -2)
    difference = query_values.flatten(-3, -2).unsqueeze(-3) - prototypes
    # A sum of a thousand squares does not fit bfloat16: summed in float32 at least.
    difference = difference.to(torch.promote_types(difference.dtype, torch.float32))
    distance = difference.square().sum(-1)
    return -rearrange(distance, "... n (q t) -> ... q n t", q=num_queries).mean(-1)
