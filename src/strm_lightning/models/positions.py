"""The sinusoidal position code that TRX adds to frames (Vaswani et al., 2017, section 3.5; scaled by 0.1)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


def sinusoid(length: int, dim: int, *, scale: float = 0.1) -> Float[Tensor, "length dim"]:
    """Sines in the even channels and cosines in the odd ones, ``[length, dim]``.

    Computed in float32 in the order of the usual recipe, since the released weights were trained on those very digits.
    """
    position = torch.arange(length, dtype=torch.float32).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * -(math.log(10000.0) / dim))
    code = torch.zeros(length, dim)
    code[:, 0::2] = torch.sin(position * frequency) * scale
    code[:, 1::2] = torch.cos(position * frequency[: dim // 2]) * scale
    return code


class PositionCode(nn.Module):
    """Add a fixed code to the second last axis, then drop out: ``[..., length, dim]`` in and out."""

    code: Tensor

    def __init__(self, length: int, dim: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("code", sinusoid(length, dim), persistent=False)

    def forward(self, x: Float[Tensor, "*B length dim"]) -> Float[Tensor, "*B length dim"]:
        return self.dropout(x + self.code)
