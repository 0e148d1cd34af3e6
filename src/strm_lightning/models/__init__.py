"""STRM and TRX as plain modules: they know nothing of files, episodes' sampling or training."""

from strm_lightning.models.backbone import Backbone
from strm_lightning.models.head import STRMHead
from strm_lightning.models.strm import STRM

__all__ = ["STRM", "Backbone", "STRMHead"]
