"""Matching methods: from the features of an episode to logits. Importing this package registers them.

`base` has the interface and the registry. Pure functions: `alignment` compares frames, with `otam` for OTAM's cost;
`kernels` has ridge regression and descriptions of whole clips; `lag` compares under shifts in time. The classes on them
are in `trm`, `qc`, `frame_methods` and `kernel_methods`.
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
