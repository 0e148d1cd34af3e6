"""Controls of a test: the same episodes with reversed queries, and with static clips.

If the accuracy with reversed queries is the same, the order of the frames does not matter on this data. If the accuracy
with static clips is the same, motion does not matter.
"""

from collections.abc import Mapping
from typing import Literal, get_args

from jaxtyping import Float, UInt8
from torch import Tensor

from strm_lightning.episode import PooledMaps, VideoFeatures
from strm_lightning.evaluation.bank import FeatureBank
from strm_lightning.models.head import STRMHead
from strm_lightning.models.matching.base import Encoded
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
) -> dict[str, VideoFeatures]:
    """Compute the features of clips as they are (``own``) and for each control.

    If the backbone looks at single frames (``backbone.frame_wise``, True if absent), all are computed from the pooled
    maps of one pass. A video backbone encodes the changed clips.

    Args:
        model: the model.
        clips: pixels, see `STRM.encode`.
    """
    if frame_wise(model):
        return control_features_of_maps(model.head, model.pool(clips))
    changed = {"own": clips, "reversed": reversed_clips(clips), "static": static_clips(clips)}
    return {name: model.encode(pixels) for name, pixels in changed.items()}


def control_features_of_maps(head: STRMHead, maps: PooledMaps) -> dict[str, VideoFeatures]:
    """Compute `control_features` from the pooled maps of clips, for a backbone that looks at single frames.

    Args:
        head: head of the model.
        maps: pooled maps of the clips.
    """
    changed = {"own": maps, "reversed": reversed_maps(maps), "static": static_maps(maps)}
    return {name: head.enrich_pooled(pooled) for name, pooled in changed.items()}


def encode_controls(head: STRMHead, features: Mapping[str, VideoFeatures]) -> Encoded:
    """Encode the features of `control_features` to tensors ``NAME/TENSOR``, for one bank."""
    return {
        f"{name}/{tensor}": value for name, found in features.items() for tensor, value in head.encode(found).items()
    }


def split_bank(bank: FeatureBank) -> dict[str, FeatureBank]:
    """Split a bank of `encode_controls` into a bank for each name, which share its memory."""
    found: dict[str, FeatureBank] = {}
    for name in ("own", *CONTROLS):
        part = found[name] = FeatureBank(bank.rows.tolist(), views=bank.views, limit_gb=bank.limit_gb)
        tensors = {
            key.removeprefix(f"{name}/"): t for key, t in (bank.tensors or {}).items() if key.startswith(f"{name}/")
        }
        part.tensors, part.place = tensors, bank.place
    return found


def frame_wise(model: STRM) -> bool:
    """Return whether each map of the backbone depends on one frame only."""
    return bool(getattr(model.backbone, "frame_wise", True))


def _mean_over(tensor: Tensor, axis: int) -> Tensor:
    return tensor.mean(axis, keepdim=True).expand_as(tensor)
