"""QC, query-class similarity on the features before frame-level enrichment (STRM)."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from strm_lightning.episode import VideoFeatures
from strm_lightning.models.matching.base import Encoded, Evidence, FeatureSpec, spread_over_steps
from strm_lightning.models.matching.shots import zero_absent
from strm_lightning.models.matching.tuples import TupleLinear, TupleMatching

_ROWS_AT_ONCE = 128  # 1 MB of float32 with 2048 channels


class QueryClass(TupleMatching):
    """Query-class similarity on H, combined with any matching method (``query_class`` of `STRMHead`).

    Encodes z of all tuples, ``[..., T, Dz]``. Logits are summed over Omega (STRM); the official code
    (``variant="official"``) averages them.

    Args:
        spec: sizes of the features.
        tuple_sizes: Omega, sizes of the frame tuples.
        qc_dim: channels of z; None for D.
    """

    reads = frozenset({"patch_level"})

    def __init__(self, spec: FeatureSpec, *, tuple_sizes: Sequence[int] = (2,), qc_dim: int | None = None) -> None:
        official = spec.variant == "official"
        out, dropout = qc_dim or spec.dim, 0.1 if official else 0.0
        super().__init__(
            spec, tuple_sizes, lambda size: TupleRelation(size, spec.steps, spec.dim, out, dropout=dropout)
        )
        self.scale = 1 / len(self.tuple_sizes) if official else 1.0

    def encode(self, clip: VideoFeatures) -> Encoded:
        assert clip.patch_level is not None
        return {"relations": torch.cat([branch(clip.patch_level) for branch in self.branches], -2)}

    def match(
        self, support: Encoded, query: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> dict[str, Tensor]:
        parts = [self.by_size(tensors["relations"]) for tensors in (query, support)]
        logits = [query_class_similarity(q, s, shot_mask) for q, s in zip(*parts, strict=True)]
        return {"qc": torch.stack(logits).sum(0) * self.scale}

    def explain(
        self, support: Encoded, query: Encoded, label: int, shot_mask: Bool[Tensor, "N K"] | None = None
    ) -> dict[str, Evidence]:
        # The distance of a query tuple is assigned to its nearest support tuple.
        present = slice(None) if shot_mask is None else shot_mask[label]
        s_relations = self.by_size(support["relations"][label][present])
        q_relations = self.by_size(query["relations"])
        contributions: list[Tensor] = []
        weights: list[Tensor] = []
        for i, (branch, count) in enumerate(zip(self.branches, self.tuple_counts, strict=True)):
            distances = torch.cdist(q_relations[i].float(), s_relations[i].flatten(0, 1).float())
            nearest = torch.zeros_like(distances).scatter_(1, distances.argmin(1, keepdim=True), 1.0)
            share = nearest.unflatten(-1, (-1, count)) / count
            shortest = distances.amin(1)[:, None, None]
            members, steps = branch.linear.members, self.spec.steps
            contributions.append(-self.scale * spread_over_steps(share * shortest, members, steps))
            weights.append(spread_over_steps(share, members, steps) / len(self.tuple_counts))
        return {
            "qc": Evidence(
                contributions=torch.stack(contributions).sum(0),
                weights=torch.stack(weights).sum(0),
                kind="nearest tuples",
            )
        }

    def floats_per_pair(self, encoded: Encoded) -> int:
        tuples, width = encoded["relations"].shape[-2:]
        return tuples * max(tuples, width)


class TupleRelation(nn.Module):
    """Project every tuple of a clip for the query-class similarity: ``z_t = relu(W_cls^T l_t)``.

    Unlike the equation, the projection has a bias, as TRX's projections and the official code have.

    Args:
        size: frames of a tuple, w.
        num_frames: frames of a clip, L.
        dim: channels of a frame, D.
        out: channels of z: D in the paper, D/2 in the official code.
        dropout: dropout rate of H; 0 in the paper, 0.1 in the official code.
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
    """Compute ``M(Q, c) = 1/|Pi| sum_t max_j phi(z_t, z_j)``: the best match of each query tuple in a class, averaged.

    The paper does not specify the similarity phi; it is minus the Euclidean distance here, as in the official code.
    Clips that are absent in ``shot_mask`` are ignored.
    """
    num_queries, (way, shot, tuples) = query.shape[-3], support.shape[-4:-1]
    if shot_mask is not None:
        support = zero_absent(support, shot_mask)
    # Subtracting the mean of the support does not change distances and avoids cancellation in `cdist`.
    precise = torch.promote_types(query.dtype, torch.float32)
    q, s = query.flatten(-3, -2).to(precise), support.flatten(-4, -2).to(precise)
    if shot_mask is None:
        origin = s.mean(-2, keepdim=True).detach()
    else:
        present = shot_mask.flatten(-2).sum(-1)[..., None, None] * tuples
        origin = (s.sum(-2, keepdim=True) / present).detach()
    distance = _distances(q, s, origin)
    distance = rearrange(distance, "... (q t) (n k j) -> ... q t n k j", q=num_queries, n=way, k=shot, j=tuples)
    if shot_mask is not None:
        distance = distance.masked_fill(~shot_mask[..., None, None, :, :, None], torch.inf)
    return -distance.flatten(-2).amin(-1).mean(-2)


def _distances(
    x: Float[Tensor, "*B M Dz"], y: Float[Tensor, "*B S Dz"], origin: Float[Tensor, "*B 1 Dz"]
) -> Float[Tensor, "*B M S"]:
    """Compute Euclidean distances; without gradients without copies of y.

    ``|x - y|^2 = |x'|^2 + |y'|^2 - 2 (x' y - x' origin)``, where x' and y' are relative to the origin. Only the norm of
    y' is needed, and a few rows of it at a time stay in the processor's cache.
    """
    if torch.is_grad_enabled():
        # The default mode depends on the number of rows, which adds a guard to an exported graph.
        return torch.cdist(x - origin, y - origin, compute_mode="use_mm_for_euclid_dist")
    x = x - origin
    rows = (y,) if torch.compiler.is_compiling() else y.split(_ROWS_AT_ONCE, -2)
    x_squares = torch.linalg.vector_norm(x, dim=-1).square()
    y_squares = torch.cat([torch.linalg.vector_norm(part - origin, dim=-1).square() for part in rows], -1)
    products = (x @ y.mT).sub_(x @ origin.mT)
    return products.mul_(-2).add_(x_squares.unsqueeze(-1)).add_(y_squares.unsqueeze(-2)).clamp_(min=0).sqrt_()
