"""Matching methods: from the features of an episode to logits. Importing this package registers them."""

from strm_lightning.models.matching import patches, qc, trm
from strm_lightning.models.matching.base import Encoded, Evidence, FeatureSpec, Matching, register_matching

__all__ = ["Encoded", "Evidence", "FeatureSpec", "Matching", "patches", "qc", "register_matching", "trm"]
