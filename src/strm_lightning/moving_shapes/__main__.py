"""One of the processes that draw moving shapes; `dataset.moving_shapes` starts them."""

from strm_lightning.moving_shapes.dataset import work

work()
