"""PLE, patch-level enrichment: self-attention between the patches of one frame (STRM)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from strm_lightning.models.enrichment.products import Products, ProductsOfWeights, is_plain
from strm_lightning.models.positions import PositionCode

Variant = Literal["paper", "official"]


class PatchEnrichment(nn.Module):
    """Self-attention between the patches of a frame, followed by an MLP with residual connection.

    ``a = softmax(q k^T / sqrt(D)) v + x`` and ``f = psi(a) + a``, with q, k, v = x W1, x W2, x W3.

    STRM reads only the mean of f over the patches, which ``pooled=True`` computes with about half of the
    multiplications.

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
        self._kept = ProductsOfWeights()

    def attention(self, patches: Float[Tensor, "*B PP D"]) -> Float[Tensor, "*B PP PP"]:
        """Return the attention of each patch (row) to each patch (column); rows sum to 1."""
        return self._attend(self.position(patches))

    def forward(self, patches: Float[Tensor, "*B PP D"], *, pooled: bool = False) -> Float[Tensor, "... D"]:
        """Compute f of each patch, or with ``pooled`` its mean over the patches, ``[..., D]``."""
        x = self.position(patches)
        if pooled:
            return self._pooled(x)
        a = self._attended(x)
        return a + self.psi(a)

    def _pooled(self, x: Float[Tensor, "*B PP D"]) -> Float[Tensor, "*B D"]:
        """Compute the mean of f, equal to ``forward(patches).mean(-2)`` up to rounding.

        The mean commutes with psi's last layer. With W4 of psi's first layer, ``x W1 (x W2)^T = x (W1 W2^T) x^T`` and
        ``(A x W3 + x) W4 = A x (W3 W4) + x W4``, so that a patch takes 2.3 D^2 multiplications instead of 4.25 D^2. The
        products of weights take 1.5 D^3. Where weights do not change, they are kept; otherwise they are computed if
        there are more than D patches.
        """
        products = self._products(x)
        if products is None:
            a = self._attended(x)
            return a.mean(-2) + self.psi[-1](self.psi[:-1](a).mean(-2))
        # Without gradient, a product of a view that is not contiguous and a matrix runs as one small product per frame.
        x = x.contiguous()
        scores = F.linear(x, products.scores, products.scores_bias) @ x.mT
        if products.rows is not None:
            scores = scores + F.linear(x, products.rows, products.rows_bias)
        attention = torch.softmax(scores * self.scale, dim=-1)
        hidden = self.psi[0](x) + self._gated(attention @ F.linear(x, products.values), products.values_bias)
        mean_value = F.linear(attention.mean(-2, keepdim=True) @ x, self.value.weight, self.value.bias).squeeze(-2)
        return x.mean(-2) + self._gated(mean_value) + self.psi[-1](self.psi[1:-1](hidden).mean(-2))

    def _attend(self, x: Tensor) -> Tensor:
        return torch.softmax(self.query(x) @ self.key(x).mT * self.scale, dim=-1)

    def _attended(self, x: Tensor) -> Tensor:
        return x + self._gated(self._attend(x) @ self.value(x))

    def _gated(self, attended: Tensor, bias: Tensor | None = None) -> Tensor:
        attended = attended if bias is None else attended + bias
        return attended if self.gate is None else self.gate * attended

    def _products(self, x: Tensor) -> Products | None:
        psi = self.psi[0]
        if not (isinstance(psi, nn.Linear) and all(map(is_plain, (self.query, self.key, self.value, psi)))):
            return None
        many = x.shape[:-1].numel() > x.shape[-1]
        return self._kept.get(self.query, self.key, self.value, psi, many=many)
