"""Moving shapes: a small data set of video files, drawn on first use, whose classes differ only in motion.

Objects of random shape, texture and size, or hands that hold objects or point, move over random backdrops with static
objects, camera shake and varying speed. Only the motion depends on the class: see `motions` for the actions and their
split, `scene` for the contents of a clip, and `dataset` for the files.
"""

from strm_lightning.moving_shapes.dataset import moving_shapes
from strm_lightning.moving_shapes.motions import ACTIONS, SPLIT
from strm_lightning.moving_shapes.scene import render_clip

__all__ = ["ACTIONS", "SPLIT", "moving_shapes", "render_clip"]
