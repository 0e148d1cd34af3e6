"""QC, query-class similarity on the features before frame-level enrichment (paper, section 3.4)."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from strm_lightning.models.tuples import TupleLinear, zero_absent


class TupleRelation(nn.Module):
    """Describe every tuple of a clip for the query-class similarity: ``z_t = relu(W_cls^T l_t)``.

    With a bias, which the equation does not name: TRX's projections of tuples and the released code have one.

    Args:
        size: frames of a tuple, w.
        num_frames: frames of a clip, L.
        dim: channels of a frame, D.
        out: channels of z: D in the paper, D/2 in the released code.
        dropout: share of H that is dropped first; 0 in the paper, 0.1 in the released code.
    """

    def __init__(self, size: int, num_frames: int, dim: int, out: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = TupleLinear(size, num_frames, dim, out)

    def forward(self, frames: Float[Tensor, "*B L D"]) -> Float[Tensor, "*B T Dz"]:
        return torch.relu_(self.linear(self.dropout(frames)))


def query_class_similarity(
    query: Float[Tensor, "*B Q T Dz"],
    support: Float[Tensor, "*B N K T Dz"],
    shot_mask: Bool[Tensor, "*B N K"] | None = None,
) -> Float[Tensor, "*B Q N"]:
    """``M(Q, c) = 1/|Pi| sum_t max_j phi(z_t, z_j)``: the best match of each query tuple among a class's tuples.

    The paper leaves the similarity phi open; this is minus the Euclidean distance, as in the released code. Only tuples
    of clips that ``shot_mask`` says are there count.
    """
    num_queries, (way, shot, tuples) = query.shape[-3], support.shape[-4:-1]
    if shot_mask is not None:
        support = zero_absent(support, shot_mask)
    # In float32 at least, and from the mean of the support: distances stay the same, and the differences of squares
    # below keep their digits.
    precise = torch.promote_types(query.dtype, torch.float32)
    q, s = query.flatten(-3, -2).to(precise), support.flatten(-4, -2).to(precise)
    if shot_mask is None:
        origin = s.mean(-2, keepdim=True).detach()
    else:
        present = shot_mask.flatten(-2).sum(-1)[..., None, None] * tuples
        origin = (s.sum(-2, keepdim=True) / present).detach()
    # Always by matrix products: the default chooses by the number of rows, which would be a guard in an exported graph.
    distance = torch.cdist(q - origin, s - origin, compute_mode="use_mm_for_euclid_dist")
    distance = rearrange(distance, "... (q t) (n k j) -> ... q t n k j", q=num_queries, n=way, k=shot, j=tuples)
    if shot_mask is not None:
        distance = distance.masked_fill(~shot_mask[..., None, None, :, :, None], torch.inf)
    return -distance.flatten(-2).amin(-1).mean(-2)
