"""STRM and the other matching methods as plain PyTorch modules, without Lightning and data sets."""

from strm_lightning.models.backbones.base import ClipBackbone, register_backbone
from strm_lightning.models.backbones.timm import Backbone
from strm_lightning.models.head import STRMHead
from strm_lightning.models.matching import FeatureSpec, Matching, register_matching
from strm_lightning.models.strm import STRM

__all__ = [
    "STRM",
    "Backbone",
    "ClipBackbone",
    "FeatureSpec",
    "Matching",
    "STRMHead",
    "register_backbone",
    "register_matching",
]
