"""Matching methods: compute logits from the features of an episode. Importing this package registers them.

`base` contains the interface and the registry; `trm`, `qc`, `frame_methods` and `kernel_methods` contain the methods.
Their functions are in `alignment` (frame-to-frame scores), `otam`, `kernels` (clip descriptors, ridge regression) and
`lag` (shifts in time).
"""

from strm_lightning.models.matching import frame_methods, kernel_methods, trm
from strm_lightning.models.matching.alignment import frame_alignment
from strm_lightning.models.matching.base import Encoded, Evidence, FeatureSpec, Matching, register_matching

__all__ = [
    "Encoded",
    "Evidence",
    "FeatureSpec",
    "Matching",
    "frame_alignment",
    "frame_methods",
    "kernel_methods",
    "register_matching",
    "trm",
]
