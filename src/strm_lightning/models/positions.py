"""Sinusoidal position code of TRX (Vaswani et al., 2017, section 3.5; scaled by 0.1)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


def sinusoid(length: int, dim: int, *, scale: float = 0.1) -> Float[Tensor, "length dim"]:
    """Compute the code: sines in even channels, cosines in odd channels, ``[length, dim]``.

    The float32 operations and their order are those of the common recipe, so that the code equals, to the last digit,
    the one that official checkpoints were trained with.
    """
    position = torch.arange(length, dtype=torch.float32).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * -(math.log(10000.0) / dim))
    code = torch.zeros(length, dim)
    code[:, 0::2] = torch.sin(position * frequency) * scale
    code[:, 1::2] = torch.cos(position * frequency[: dim // 2]) * scale
    return code


class PositionCode(nn.Module):
    """Add a fixed position code and apply dropout, ``[..., length, dim] -> [..., length, dim]``."""

    code: Tensor

    def __init__(self, length: int, dim: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("code", sinusoid(length, dim), persistent=False)

    def forward(self, x: Float[Tensor, "*B length dim"]) -> Float[Tensor, "*B length dim"]:
        return self.dropout(x + self.code)
