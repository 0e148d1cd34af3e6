"""Picture of an episode: support clips, queries, labels and predictions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from strm_lightning.episode import Episode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RIGHT, _WRONG, _QUIET = "#15803d", "#b91c1c", "#7b8794"
_FRAMES = 4  # of each clip, evenly spaced


def episode_figure(episode: Episode, class_names: Sequence[str], predicted: Sequence[int], title: str) -> "Figure":
    """Draw one episode: a row for each class with its first support clip and its first query.

    Args:
        episode: one episode with clips, without leading axis.
        class_names: names of the classes of the video set.
        predicted: predicted label of each query, 0 .. N-1.
        title: title of the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert episode.support is not None
    assert episode.query is not None
    labels = [class_names[i] for i in episode.class_ids.tolist()]
    way, shot = episode.support.shape[:2]
    steps = min(_FRAMES, episode.support.shape[2])
    figure = Figure(figsize=(2 * steps + 2.4, 1.05 * way + 0.6), dpi=100)
    FigureCanvasAgg(figure)
    top = 1 - 0.55 / (1.05 * way + 0.6)
    grid = figure.add_gridspec(
        way, 2 * steps + 1, left=0.16, right=0.99, bottom=0.01, top=top, wspace=0.05, hspace=0.25
    )
    answers = episode.query_labels.tolist()
    for row, name in enumerate(labels):
        first = _draw(figure, grid, row, 0, frames(episode.support[row, 0], steps))
        first.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8, labelpad=6)
        if row not in answers:  # a batch of queries may leave a class out
            continue
        query = answers.index(row)
        guess = predicted[query]
        first = _draw(figure, grid, row, steps + 1, frames(episode.query[query], steps))
        colour = _RIGHT if guess == row else _WRONG
        first.set_title(f"predicted: {labels[guess]}", fontsize=8, loc="left", color=colour, pad=3)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    clips = "support" if shot == 1 else f"support (1 of {shot} clips)"
    figure.text(0.16, top + 0.04 * (1 - top) + 0.25 * (1 - top), clips, fontsize=8, color=_QUIET)
    return figure


def frames(clip: UInt8[Tensor, "L 3 H W"], count: int) -> list[UInt8[np.ndarray, "H W 3"]]:
    """Return evenly spaced frames of a clip, the first and the last included."""
    chosen = np.linspace(0, len(clip) - 1, count).round().astype(int)
    return [clip[int(i)].permute(1, 2, 0).cpu().numpy() for i in chosen]


def _draw(figure: "Figure", grid: Any, row: int, column: int, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> Any:
    """Draw frames from a column on; return the axes of the first."""
    drawn = []
    for offset, image in enumerate(images):
        axes = figure.add_subplot(grid[row, column + offset])
        axes.imshow(image)
        axes.set(xticks=[], yticks=[])
        drawn.append(axes)
    return drawn[0]
