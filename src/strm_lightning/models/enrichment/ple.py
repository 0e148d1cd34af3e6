"""PLE, patch-level enrichment: self-attention between the patches of one frame (STRM)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from strm_lightning.models.positions import PositionCode

Variant = Literal["paper", "official"]


class PatchEnrichment(nn.Module):
    """Self-attention between the patches of a frame, followed by an MLP with residual connection.

    ``a = softmax(q k^T / sqrt(D)) v + x`` and ``f = psi(a) + a``, with q, k, v = x W1, x W2, x W3.

    Args:
        dim: channels D of a patch.
        num_patches: patches of a frame, P*P.
        variant: ``paper`` follows the equations. ``official`` follows the official code: position code and dropout on
            the input, biases, unscaled attention, and a learned gate of the attention with initial value 0.
    """

    def __init__(self, dim: int, num_patches: int, *, variant: Variant = "paper") -> None:
        super().__init__()
        official = variant == "official"
        self.position = PositionCode(num_patches, dim) if official else nn.Identity()
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=official) for _ in range(3))
        self.scale = 1.0 if official else dim**-0.5
        self.gate = nn.Parameter(torch.zeros(1)) if official else None
        hidden = max(dim // 2, 1)
        self.psi = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, dim),
        )

    def attention(self, patches: Float[Tensor, "*B PP D"]) -> Float[Tensor, "*B PP PP"]:
        """Return the attention of each patch (row) to each patch (column); rows sum to 1."""
        return self._attend(self.position(patches))

    def forward(self, patches: Float[Tensor, "*B PP D"]) -> Float[Tensor, "*B PP D"]:
        x = self.position(patches)
        attended = self._attend(x) @ self.value(x)
        a = x + (attended if self.gate is None else self.gate * attended)
        return a + self.psi(a)

    def _attend(self, x: Tensor) -> Tensor:
        return torch.softmax(self.query(x) @ self.key(x).mT * self.scale, dim=-1)
