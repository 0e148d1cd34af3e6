"""Build a backbone by its name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from strm_lightning.errors import InputError
from strm_lightning.models.backbones.base import TORCHVISION_PREFIX, ClipBackbone, registered_backbone
from strm_lightning.models.backbones.timm import Backbone


def build_backbone(
    name: str,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    stage: int | Sequence[int] = -1,
    **options: Any,
) -> ClipBackbone:
    """Build a backbone.

    Args:
        name: a name given to `register_backbone`, ``torchvision/`` and a torchvision video model, or a timm model.
        pretrained: load pretrained weights, unless ``weights`` is set.
        weights: a local file of weights.
        stage: stage of a timm model whose map is used, or several, see `Backbone`.
        **options: options of `ClipBackbone`.

    Raises:
        InputError: there is no such backbone, or an option is wrong.
        MissingFileError: ``weights`` does not exist.
    """
    kind = registered_backbone(name) or _kind(name)
    if kind is Backbone:
        return Backbone(name, pretrained=pretrained, weights=weights, stage=stage, **options)
    if stage not in (-1, [-1], (-1,)):
        raise InputError(f"backbone_stage {stage}: {name!r} is not a timm model; use -1, the output of the network")
    backbone: ClipBackbone = kind(name, pretrained=pretrained, weights=weights, **options)
    return backbone


def _kind(name: str) -> Any:  # each class has further arguments
    if not name.startswith(TORCHVISION_PREFIX):
        return Backbone
    from strm_lightning.models.backbones.torchvision import VideoBackbone  # torchvision takes long to import

    return VideoBackbone
