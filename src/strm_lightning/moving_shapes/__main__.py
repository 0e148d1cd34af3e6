"""Worker process that draws moving shapes; started by `dataset.moving_shapes`."""

from strm_lightning.moving_shapes.dataset import work

work()
