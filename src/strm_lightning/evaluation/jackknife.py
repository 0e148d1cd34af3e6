"""Delete-one jackknife of the mean accuracy of episodes, over clips and over classes.

The mean accuracy of all possible episodes is a U-statistic of the clips of each class, and also of the classes. The
jackknife takes the mean of those episodes and queries that do not use a clip (or a class), minus the mean of all. The
sum of the squares of these differences estimates the variance. Nothing is matched again. Interactions of clips count
more than once in it, so with few clips it is on average too large (Efron and Stein, Annals of Statistics 9, 1981).

The mean of a finite number of episodes is noisy, and the noise would add to the squares. The episodes are therefore
divided into groups, and squares are replaced by products of different groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

_GROUPS = 8


@dataclass(frozen=True)
class Variance:
    """Estimate of a variance.

    Attributes:
        value: the estimate; NaN if leaving out a clip or class leaves no episodes of a group.
        error: its standard error from the number of episodes.
        freedom: effective degrees of freedom, (sum of terms)^2 / sum of terms^2; small if few clips decide the result.
    """

    value: float
    error: float
    freedom: float


def variance_of(changes: Sequence[Float[np.ndarray, "G _"]]) -> Variance:
    """Return the jackknife variance of independent samples.

    Args:
        changes: for each sample the changes of the mean by leaving out one of its n members, in each of
            G groups of episodes, ``[G, n]``.
    """
    terms = np.concatenate([((c.shape[1] - 1) / c.shape[1]) ** 0.5 * c for c in changes], 1)
    groups = len(terms)
    products = terms @ terms.T
    own, rows = np.diag(products), products.sum(1)
    total = products.sum() - own.sum()
    without = (total - 2 * (rows - own)) / ((groups - 1) * (groups - 2))
    each = (terms.sum(0) ** 2 - (terms**2).sum(0)) / (groups * (groups - 1))
    squares = float((each**2).sum())
    return Variance(
        float(each.sum()),
        float(((groups - 1) * without.var()) ** 0.5),
        float(each.sum() ** 2 / squares) if squares else 0.0,
    )


class ClipDesign:
    """Which clips each episode uses.

    Args:
        classes: class of each label, ``[E, N]``.
        support: support clips of each label, ``[E, N, K]``.
        query: clip of each query, ``[E, Q]``.
        actual: true class of each query, ``[E, Q]``.

    Attributes:
        clips: number of clips of each class that the episodes use.
    """

    def __init__(
        self,
        classes: Int[np.ndarray, "E N"],
        support: Int[np.ndarray, "E N K"],
        query: Int[np.ndarray, "E Q"],
        actual: Int[np.ndarray, "E Q"],
    ) -> None:
        self.episodes, self.way, self.shot = support.shape
        self.queries = query.shape[1] // self.way  # of a class
        self.clips: dict[int, int] = {}
        self._groups: dict[int, list[_Group]] = {}
        for label in np.unique(classes).tolist():
            rows, slots = np.nonzero(classes == label)
            mine = actual[rows] == label
            if (mine.sum(1) != self.queries).any():
                self.queries = 0
                return
            own = np.nonzero(mine)[1].reshape(len(rows), -1)
            used = np.concatenate([query[rows[:, None], own], support[rows, slots]], 1)
            every, place = np.unique(used, return_inverse=True)
            asked, shown = np.split(place.reshape(used.shape), [self.queries], axis=1)
            keep = np.ones((len(rows), len(every)))
            np.put_along_axis(keep, shown, 0.0, 1)
            groups = [rows % _GROUPS == g for g in range(_GROUPS)]
            self._groups[label] = [_Group(rows[g], own[g], asked[g], keep[g]) for g in groups]
            self.clips[label] = len(every)

    def problem(self) -> str:
        """Return why the variance over clips cannot be estimated, or an empty string."""
        if not self.queries:
            return "the classes of an episode have different numbers of queries"
        if (few := min(self.clips.values())) < self.shot + 2:
            return f"a class has {few} clips; {self.shot}-shot needs {self.shot + 2}"
        return ""

    def variance(self, values: Float[np.ndarray, "E Q"]) -> Variance:
        """Estimate the variance of the mean over the choice of clips, in the limit of many episodes.

        Args:
            values: value of each query, such as 1 for a right prediction and 0 for a wrong one.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            return variance_of([self._changes(label, values) for label in self._groups])

    def _changes(self, label: int, values: Float[np.ndarray, "E Q"]) -> Float[np.ndarray, "G n"]:
        """Return the changes of the mean by leaving out each clip of a class.

        A clip is left out with different probability among the queries of its class and the other queries, so these
        are averaged separately.
        """
        found, number = [], 0
        for group in self._groups[label]:
            own = values[group.episodes[:, None], group.own]
            others = values[group.episodes].sum(1) - own.sum(1)
            kept, counts = own.sum(1) @ group.keep, self.queries * group.keep.sum(0)
            # A query clip is no support clip of the same episode.
            np.subtract.at(kept, group.place, own)
            np.subtract.at(counts, group.place, 1.0)
            episodes = np.float64(len(own))  # 0 gives NaN, without an exception
            change = (kept / counts - own.sum() / (self.queries * episodes)) / self.way
            if self.way > 1:
                without = (others @ group.keep) / group.keep.sum(0)
                change += (without - others.sum() / episodes) / (self.queries * self.way)
            found.append(change)
            number += len(group.episodes)
        return number / self.episodes * np.stack(found)


@dataclass(frozen=True, eq=False)
class _Group:
    """The episodes of a group that contain a class of n clips, with M queries of it.

    Attributes:
        episodes: numbers of the episodes, ``[e]``.
        own: columns of the queries of this class, ``[e, M]``.
        place: clip of each of these queries, ``[e, M]``.
        keep: 0 where a clip is a support clip of the episode, else 1, ``[e, n]``.
    """

    episodes: Int[np.ndarray, " e"]
    own: Int[np.ndarray, "e M"]
    place: Int[np.ndarray, "e M"]
    keep: Float[np.ndarray, "e n"]


def variance_over_classes(values: Float[np.ndarray, "E Q"], absent: Float[np.ndarray, "E C"]) -> Variance:
    """Estimate the variance of the mean over the choice of classes and clips, in the limit of many episodes.

    Args:
        values: value of each query.
        absent: 0 where an episode has a class, else 1.
    """
    accuracy = values.mean(1)
    groups = [slice(g, None, _GROUPS) for g in range(_GROUPS)]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = [accuracy[g].sum() / np.float64(len(accuracy[g])) for g in groups]
        changes = [accuracy[g] @ absent[g] / absent[g].sum(0) - mean for g, mean in zip(groups, means, strict=True)]
        return variance_of([np.stack(changes)])
