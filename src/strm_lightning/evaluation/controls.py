"""Controls of a test: the same episodes with reversed queries, and with static clips.

If the accuracy with reversed queries is the same, the order of the frames does not matter on this data. If the accuracy
with static clips is the same, motion does not matter.
"""

from typing import Any, Literal, get_args

from jaxtyping import Float, UInt8
from torch import Tensor

from strm_lightning.episode import PooledMaps, VideoFeatures
from strm_lightning.models.strm import STRM

Control = Literal["reversed", "static"]
CONTROLS: tuple[Control, ...] = get_args(Control)
"""``reversed``: the frames of the queries in reverse order; ``static``: the mean frame of each clip at all steps."""


def reversed_maps(maps: PooledMaps) -> PooledMaps:
    """Reverse the time steps of pooled maps ``[..., L, P*P, D]`` and ``[..., L, D]``."""
    return PooledMaps(grid=maps.grid.flip(-3), mean=maps.mean.flip(-2))


def static_maps(maps: PooledMaps) -> PooledMaps:
    """Replace every time step of pooled maps by their mean over the L steps.

    With `center_clip` the mean is that of the centred and pooled maps. It still contains where something moves, but not
    when.
    """
    return PooledMaps(grid=_mean_over(maps.grid, -3), mean=_mean_over(maps.mean, -2))


def reversed_clips(clips: Tensor) -> Tensor:
    """Reverse the frames of clips ``[..., L, 3, H, W]``."""
    return clips.flip(-4)


def static_clips(clips: Tensor) -> Tensor:
    """Replace every frame of clips ``[..., L, 3, H, W]`` by the mean frame."""
    mean = clips.float().mean(-4, keepdim=True)
    mean = mean if clips.is_floating_point() else mean.round()
    return mean.to(clips.dtype).expand_as(clips)


def control_features(
    model: STRM, clips: UInt8[Tensor, "*B L 3 H W"] | Float[Tensor, "*B L 3 H W"]
) -> dict[Control, VideoFeatures]:
    """Compute the features of clips for each control.

    If the backbone looks at single frames (``backbone.frame_wise``, True if absent), both are computed from the pooled
    maps of one pass. A video backbone encodes the changed clips.

    Args:
        model: the model.
        clips: pixels, see `STRM.encode`.
    """
    if frame_wise(model):
        return control_features_of_maps(model, model.pool(clips))
    return {"reversed": model.encode(reversed_clips(clips)), "static": model.encode(static_clips(clips))}


def control_features_of_maps(model: STRM, maps: PooledMaps) -> dict[Control, VideoFeatures]:
    """Compute the features for each control from the pooled maps of clips, for a backbone that looks at single frames.

    Args:
        model: the model.
        maps: pooled maps of clips in their own order.
    """
    head = model.head
    return {"reversed": head.enrich_pooled(reversed_maps(maps)), "static": head.enrich_pooled(static_maps(maps))}


def frame_wise(model: Any) -> bool:
    """Return whether each map of the backbone depends on one frame only."""
    return bool(getattr(model.backbone, "frame_wise", True))


def _mean_over(tensor: Tensor, axis: int) -> Tensor:
    return tensor.mean(axis, keepdim=True).expand_as(tensor)
