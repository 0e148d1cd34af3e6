"""95 % intervals of an accuracy over episodes, over clips and over classes.

An accuracy has three errors, one for each question:

- over episodes: other episodes of the same clips. This is the interval that papers give.
- over clips: other clips of the same classes.
- over classes: other classes, with other clips.

Lafargue et al. (arXiv 2409.02850) show how much intervals over episodes underestimate the error over clips.
`experiments/benchmarks/coverage.py` measures how often each interval contains the value that it is about.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from strm_lightning.evaluation.jackknife import Block, ClipDesign, class_blocks, variance_of
from strm_lightning.evaluation.results import EpisodeResults, half_interval

_Z = 1.96
_NOISE = 0.5  # largest relative standard error of a variance that comes from the number of episodes


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of a mean, or the reason why it is not known.

    Attributes:
        ci95: half-width, a fraction; None if it is not known.
        number: number of episodes, clips or classes.
        unknown: the reason if ``ci95`` is None.
    """

    ci95: float | None
    number: int
    unknown: str = ""


def all_intervals(results: EpisodeResults, values: Float[np.ndarray, "E Q"] | None = None) -> dict[str, dict[str, Any]]:
    """Compute the intervals over ``episodes``, ``clips`` and ``classes``, as plain values.

    Args:
        results: predictions of the episodes.
        values: value of each query whose mean has the intervals, such as the difference of two models; None for 1 if
            the prediction is right, else 0.
    """
    values = results.right if values is None else values
    found = {
        "episodes": over_episodes(values),
        "clips": over_clips(values, clip_design(results)),
        "classes": over_classes(values, results),
    }
    return {name: asdict(interval) for name, interval in found.items()}


def over_episodes(values: Float[np.ndarray, "E Q"]) -> Interval:
    """Compute the interval over other episodes of the same clips, 1.96 sigma / sqrt(episodes).

    Args:
        values: value of each query.
    """
    return Interval(half_interval(values.mean(1)), len(values))


def clip_design(results: EpisodeResults) -> ClipDesign | None:
    """Return which clips each episode uses; None if the results do not contain it."""
    if results.classes is None or results.support is None or results.query is None:
        return None
    return ClipDesign(results.classes, results.support, results.query, results.actual)


def over_clips(values: Float[np.ndarray, "E Q"], design: ClipDesign | None) -> Interval:
    """Compute the interval over other clips of the same classes. It contains the error of the episodes.

    Args:
        values: value of each query.
        design: the clips of the episodes, see `clip_design`.
    """
    if design is None:
        return Interval(None, 0, "the results do not contain the clips of the episodes")
    number = sum(design.clips.values())
    if problem := design.problem():
        return Interval(None, number, problem)
    return _interval(design.blocks(values), values, number)


def over_classes(values: Float[np.ndarray, "E Q"], results: EpisodeResults) -> Interval:
    """Compute the interval over other classes with other clips. It contains the errors of clips and episodes.

    It is not known if every episode has the same classes.

    Args:
        values: value of each query.
        results: classes of the episodes.
    """
    labels, place = np.unique(results.actual, return_inverse=True)
    absent = np.ones((len(values), len(labels)))
    np.put_along_axis(absent, place.reshape(results.actual.shape), 0.0, 1)
    number, way = len(labels), int(len(labels) - absent[0].sum())
    if number <= way:
        return Interval(None, number, f"{number} test classes in {way}-way episodes: every episode has all classes")
    return _interval(class_blocks(values.mean(1), absent, way), values, number)


def _interval(blocks: Iterator[Block], values: Float[np.ndarray, "E Q"], number: int) -> Interval:
    """Add the error of the episodes to the variance of the blocks."""
    variance, error = variance_of(blocks)
    if not error <= _NOISE * variance:
        return Interval(None, number, f"{len(values)} episodes are too few; raise data.test_episodes")
    return Interval(float(_Z * (variance + values.mean(1).var() / len(values)) ** 0.5), number)
