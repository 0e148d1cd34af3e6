"""PLE, patch-level enrichment: self-attention among the patches of one frame (paper, section 3.2)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from strm_lightning.models.positions import PositionCode

Variant = Literal["paper", "official"]


class PatchEnrichment(nn.Module):
    """Let each patch of a frame look at all others, so that features know which objects matter.

    ``a = softmax(q k^T / sqrt(D)) v + x`` and ``f = psi(a) + a``, with q, k, v = x W1, x W2, x W3.

    Args:
        dim: channels D of a patch.
        num_patches: patches of a frame, P*P.
        variant: ``paper`` follows the equations. ``official`` follows the released code: a position code and dropout on
            the patches first, biases, no scaling of the attention, and a learned gate on it that is 0 at the start.
    """

    def __init__(self, dim: int, num_patches: int, *, variant: Variant = "paper") -> None:
        super().__init__()
        official = variant == "official"
        self.position = PositionCode(num_patches, dim) if official else nn.Identity()
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=official) for _ in range(3))
        self.scale = 1.0 if official else dim**-0.5
        self.gate = nn.Parameter(torch.zeros(1)) if official else None
        hidden = max(dim // 2, 1)
        # In place, since nothing needs the value before a ReLU again.
        self.psi = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, dim),
        )

    def attention(self, patches: Float[Tensor, "*B PP D"]) -> Float[Tensor, "*B PP PP"]:
        """How much each patch (row) looks at each other one (column); rows sum to 1."""
        return self._attend(self.position(patches))

    def forward(self, patches: Float[Tensor, "*B PP D"]) -> Float[Tensor, "*B PP D"]:
        x = self.position(patches)
        attended = self._attend(x) @ self.value(x)
        a = x + (attended if self.gate is None else self.gate * attended)
        return a + self.psi(a)

    def _attend(self, x: Tensor) -> Tensor:
        return torch.softmax(self.query(x) @ self.key(x).mT * self.scale, dim=-1)
