"""FLE, frame-level enrichment: one MLP-mixer layer over the frames of a clip (STRM)."""

from jaxtyping import Float
from torch import Tensor, nn

from strm_lightning.models.enrichment.ple import Variant
from strm_lightning.models.positions import PositionCode


def _mlp(dim: int, *, bias: bool) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim, bias=bias), nn.ReLU(inplace=True), nn.Linear(dim, dim, bias=bias))


class FrameEnrichment(nn.Module):
    """Mix the frames, then the channels, of a clip with learned weights.

    ``H* = relu(H^T W_t1) W_t2 + H^T`` and ``E = relu(H*^T W_r1) W_r2 + H*^T``.

    Args:
        dim: channels D of a frame.
        num_frames: frames L of a clip: the size of W_t1 and W_t2.
        variant: ``paper`` follows the equations; ``official`` adds a position code, dropout and biases.
    """

    def __init__(self, dim: int, num_frames: int, *, variant: Variant = "paper") -> None:
        super().__init__()
        official = variant == "official"
        self.position = PositionCode(num_frames, dim) if official else nn.Identity()
        self.mix_frames = _mlp(num_frames, bias=official)
        self.mix_channels = _mlp(dim, bias=official)

    def forward(self, frames: Float[Tensor, "*B L D"]) -> Float[Tensor, "*B L D"]:
        h = self.position(frames)
        h = h + self.mix_frames(h.mT).mT
        return h + self.mix_channels(h)
