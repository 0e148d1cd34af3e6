"""Pooling of maps to patches, and the layout code."""

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from strm_lightning.episode import PooledMaps


def pool_maps(
    maps: Float[Tensor, "*B L D h w"], patch_grid: int, *, center_clip: bool = False, scale_clip: bool = False
) -> PooledMaps:
    """Pool the map of each frame to a grid of patches (adaptive max pooling) and to its mean.

    If a map is smaller than the grid, or not a multiple of it, the pooling windows overlap.

    Args:
        maps: maps of the backbone, ``[..., L, D, h, w]``.
        patch_grid: rows and columns P of the grid.
        center_clip: first subtract the mean map of the clip over its L frames, which removes static content.
        scale_clip: divide the clip by the root mean square of its patches, so that weak and strong motion have the same
            scale.
    """
    if center_clip:
        maps = maps - reduce(maps, "... l d h w -> ... 1 d h w", "mean")
    frames = maps.flatten(0, -4)
    if frames.shape[-2:] == (1, 1):
        # The same values without a pooling, whose memory format for 1x1 maps is another in torch.compile's shape
        # inference than in its kernel: the compiled graph then has views that do not fit.
        grid = rearrange(frames, "f d 1 1 -> f 1 d").expand(-1, patch_grid**2, -1)
    else:
        grid = rearrange(F.adaptive_max_pool2d(frames, patch_grid), "f d ph pw -> f (ph pw) d")
    pooled = PooledMaps(grid=grid.unflatten(0, maps.shape[:-3]), mean=reduce(maps, "... d h w -> ... d", "mean"))
    return scale(pooled) if scale_clip else pooled


def scale(maps: PooledMaps) -> PooledMaps:
    """Divide each clip by the root mean square of its patches; a clip of zeros is unchanged."""
    rms = reduce(maps.grid.square(), "... l pp d -> ... 1 1", "mean").sqrt()
    rms = torch.where(rms > 0, rms, 1.0)
    return PooledMaps(grid=maps.grid / rms.unsqueeze(-1), mean=maps.mean / rms)


class LayoutCode(nn.Module):
    """Encode the layout of a frame, which a mean over patches loses: ``W_out vec(W_in f)``.

    Each patch is reduced to few channels; the concatenated patches are projected to one code for the frame. Not part of
    STRM.

    Args:
        dim: channels D of a patch and of the result.
        num_patches: patches of a frame, P*P.
        patch_dim: channels of a reduced patch.
    """

    def __init__(self, dim: int, num_patches: int, *, patch_dim: int = 64) -> None:
        super().__init__()
        self.reduce = nn.Linear(dim, patch_dim)
        self.expand = nn.Linear(patch_dim * num_patches, dim)

    def forward(self, patches: Float[Tensor, "*B PP D"]) -> Float[Tensor, "*B D"]:
        return self.expand(torch.flatten(self.reduce(patches), -2))
