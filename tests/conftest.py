"""Shapes in signatures are checked by beartype under pytest only."""

import os

from jaxtyping import install_import_hook

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MPLBACKEND", "Agg")

_hook = install_import_hook("strm_lightning", "beartype.beartype")
