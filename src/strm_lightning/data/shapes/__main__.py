"""One of the processes that draw moving shapes; `dataset.moving_shapes` starts them."""

from strm_lightning.data.shapes.dataset import work

work()
