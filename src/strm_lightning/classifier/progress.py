"""Progress bars on stderr."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor
from tqdm import tqdm

from strm_lightning.classifier.videos import Video, duration_of, video_name

_T = TypeVar("_T")


def bar_options() -> dict[str, Any]:
    """Options of a progress bar on stderr; in a log file it prints a line every ten seconds instead of redrawing."""
    return {} if sys.stderr.isatty() else {"delay": 5.0, "mininterval": 10.0, "maxinterval": 10.0}


def over_video(items: Iterable[_T], seconds_of: Callable[[_T], float], video: Video, fps: float) -> Iterator[_T]:
    """Yield items of a video, and show in a bar how many of its seconds are read.

    Args:
        items: the items, in the order of their times.
        seconds_of: function of an item that returns its time from the start of the video.
        video: a file or an array.
        fps: frames per second of an array.
    """
    duration = len(video) / fps if isinstance(video, (np.ndarray, Tensor)) else duration_of(video)
    total = None if duration is None else math.ceil(duration)
    bar_format = "{desc}: {n_fmt} s [{elapsed}]"
    if total is not None:
        bar_format = "{l_bar}{bar}| {n_fmt}/{total_fmt} s [{elapsed}<{remaining}]"
    name = Path(video_name(video)).name
    # The bar disappears at the end, so that rows of a table that are printed meanwhile stand together.
    with tqdm(total=total, desc=name, bar_format=bar_format, leave=False, **bar_options()) as bar:
        for item in items:
            bar.update(math.floor(seconds_of(item)) - bar.n)
            yield item
