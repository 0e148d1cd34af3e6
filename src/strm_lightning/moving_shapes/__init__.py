"""Moving shapes: a small data set of real video files, drawn on first use, whose actions are told by motion alone.

Things of random shape, texture and size, or hands that hold or point, move over random backdrops among things that
stand still, seen by an unsteady camera at an uneven pace. Only how they move is the class's: see `motions` for the
actions and their split, `scene` for what one clip holds, `dataset` for the files.
"""

from strm_lightning.moving_shapes.dataset import moving_shapes
from strm_lightning.moving_shapes.motions import ACTIONS, SPLIT
from strm_lightning.moving_shapes.scene import render_clip

__all__ = ["ACTIONS", "SPLIT", "moving_shapes", "render_clip"]
