"""95 % intervals of an accuracy over episodes, over clips and over classes.

An accuracy has three errors, one for each question:

- over episodes: other episodes of the same clips. This is the interval that papers give.
- over clips: other clips of the same classes.
- over classes: other classes, with other clips.

Lafargue et al. (arXiv 2409.02850) show how much intervals over episodes underestimate the error over clips.
`experiments/benchmarks/coverage.py` measures how often each interval contains the value that it is about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from strm_lightning.evaluation.jackknife import ClipDesign, Variance, variance_over_classes
from strm_lightning.evaluation.results import EpisodeResults, half_interval

_Z = 1.96
_FREEDOM = 8  # degrees of freedom below which the variance over clips is not trusted alone
_NOISE = 0.5  # largest relative standard error of a variance from the number of episodes

RIGHT_OR_WRONG = (0.0, 0.0, 1.0, 1.0)
"""Values of the pseudo-clips of an accuracy (Agresti and Coull, The American Statistician 52, 1998)."""
DIFFERENCE = (-1.0, 0.0, 0.0, 1.0)
"""Values of the pseudo-clips of a difference of two accuracies: each pair of right and wrong once."""


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


def all_intervals(results: EpisodeResults, right: Float[np.ndarray, "E Q"] | None = None) -> dict[str, dict[str, Any]]:
    """Compute the intervals of the accuracy over ``episodes``, ``clips`` and ``classes``, as plain values.

    Args:
        results: predictions of the episodes.
        right: share of several runs whose prediction of a query is right; None for the predictions of ``results``.
    """
    return _all(results.right if right is None else right, results, RIGHT_OR_WRONG)


def difference_intervals(first: EpisodeResults, second: EpisodeResults) -> dict[str, dict[str, Any]]:
    """Compute the intervals of the accuracy of ``second`` minus that of ``first``, query by query.

    Args:
        first: predictions of one model.
        second: predictions of another model on the same episodes.
    """
    known = first if first.support is not None else second
    return _all(second.right - first.right, known, DIFFERENCE)


def interval_rows(intervals: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return a line for each interval, by its name, for a printed summary.

    Args:
        intervals: see `all_intervals`.
    """
    about = {"episodes": "other episodes of the same clips", "clips": "other clips of the same classes"}
    about["classes"] = "other classes"
    rows = {}
    for name, found in intervals.items():
        width = "not known" if found["ci95"] is None else f"± {found['ci95']:.1%}"
        note = about[name] if found["ci95"] is not None else found["unknown"]
        rows[f"  over {name}"] = f"{width}  ({note}; {found['number']} {name})"
    return rows


def mean_intervals(values: Float[np.ndarray, "E Q"], results: EpisodeResults) -> dict[str, dict[str, Any]]:
    """Compute the three intervals of the mean of any values of the queries between -1 and 1.

    Args:
        values: value of each query, such as a difference of the means of several runs.
        results: classes and clips of the episodes.
    """
    return _all(values, results, DIFFERENCE)


def _all(
    values: Float[np.ndarray, "E Q"], results: EpisodeResults, pseudo: Sequence[float]
) -> dict[str, dict[str, Any]]:
    found = {
        "episodes": over_episodes(values),
        "clips": over_clips(values, clip_design(results), pseudo),
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


def over_clips(
    values: Float[np.ndarray, "E Q"], design: ClipDesign | None, pseudo: Sequence[float] = RIGHT_OR_WRONG
) -> Interval:
    """Compute the interval over other clips of the same classes. It contains the error of the episodes.

    If few clips decide the result, as at an accuracy near 1, the jackknife is often too small. Below 8 effective
    degrees of freedom, the variance is therefore raised towards that of a mean of independent clips, with four
    pseudo-clips added, by a share of ``1 - freedom / 8``.

    Args:
        values: value of each query.
        design: the clips of the episodes, see `clip_design`.
        pseudo: values of the pseudo-clips, `RIGHT_OR_WRONG` or `DIFFERENCE`.
    """
    if design is None:
        return Interval(None, 0, "the results do not contain the clips of the episodes")
    number = sum(design.clips.values())
    if problem := design.problem():
        return Interval(None, number, problem)
    found = design.variance(values)
    total = number + len(pseudo)
    mean = (number * values.mean() + sum(pseudo)) / total
    square = (number * np.square(values).mean() + np.square(pseudo).sum()) / total
    independent = (square - mean**2) / total
    share = max(0.0, 1 - found.freedom / _FREEDOM)
    raised = found.value + share * max(0.0, independent - found.value)
    return _interval(Variance(raised, found.error, found.freedom), values, number)


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
        return Interval(None, number, f"all episodes have the same {number} classes")
    return _interval(variance_over_classes(values, absent), values, number)


def _interval(variance: Variance, values: Float[np.ndarray, "E Q"], number: int) -> Interval:
    """Add the variance of the episodes."""
    if not variance.error <= _NOISE * variance.value:
        return Interval(None, number, f"{len(values)} episodes are too few; raise data.test_episodes")
    return Interval(float(_Z * (variance.value + values.mean(1).var() / len(values)) ** 0.5), number)
