"""Delete-one jackknife of the mean accuracy of episodes, over clips and over classes.

The mean accuracy of all possible episodes is a U-statistic of the clips of each class, and also of the classes. The
jackknife takes the mean of those episodes and queries that do not use a clip (or a class), minus the mean of all. With
few clips and many shots it is too large by the interactions of two clips. They are estimated by leaving out two clips,
and subtracted (Efron and Stein, Annals of Statistics 9, 1981, section 5). Nothing is matched again.

The mean of a finite number of episodes is noisy, and the noise would add to the squares of these differences. The
episodes are therefore divided into groups, and squares are replaced by products of different groups.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

_GROUPS = 8
_MANY = 50  # clips of a class above which interactions of two clips are left out

Block = tuple[float, Float[np.ndarray, "G n"]]
"""Weight of a sum of squares, and its terms for each group of episodes."""


def variance_of(blocks: Iterator[Block]) -> tuple[float, float]:
    """Return the weighted sum of the blocks, and its standard error from the number of episodes.

    Both are NaN if the episodes are so few that leaving out leaves none.
    """
    products = np.zeros((_GROUPS, _GROUPS))
    with np.errstate(invalid="ignore", divide="ignore"):
        for weight, vectors in blocks:
            products += weight * vectors @ vectors.T
    return _mean_of_products(products)


def _mean_of_products(products: Float[np.ndarray, "G G"]) -> tuple[float, float]:
    """Return the mean product of two different groups, and its standard error by the jackknife over groups."""
    groups = len(products)
    own, rows = np.diag(products), products.sum(1)
    total = products.sum() - own.sum()
    without = (total - 2 * (rows - own)) / ((groups - 1) * (groups - 2))
    return total / (groups * (groups - 1)), float(((groups - 1) * without.var()) ** 0.5)


def _pairs_weight(n: int) -> float:
    """Weight of the squared second-order terms Q of a sample of size n.

    The sum of Q^2 over pairs is ``n^2 (n - 1) / (n - 3)`` times the variance of one interaction, whose share of the
    variance of U, ``n (n - 1) / 2`` times it, the jackknife counts ``2 (n - 1) / (n - 2)`` times instead of once.
    """
    return -(n - 3) / (n * (n - 1) * (n - 2))


def class_blocks(accuracy: Float[np.ndarray, " E"], absent: Float[np.ndarray, "E C"], way: int) -> Iterator[Block]:
    """Yield the blocks of the variance over classes."""
    n = absent.shape[1]
    groups = [slice(g, None, _GROUPS) for g in range(_GROUPS)]
    first = np.stack([accuracy[g] @ absent[g] / absent[g].sum(0) - accuracy[g].mean() for g in groups])
    yield (n - 1) / n, first
    if n - 2 >= way and n > 3:
        pairs = np.stack(
            [(absent[g].T @ (absent[g] * accuracy[g, None])) / (absent[g].T @ absent[g]) for g in groups]
        ) - np.stack([accuracy[g].mean() for g in groups]).reshape(-1, 1, 1)
        yield _pairs_weight(n), _second_order(first, pairs)


def _second_order(first: Float[np.ndarray, "G n"], pairs: Float[np.ndarray, "G n n"]) -> Float[np.ndarray, "G m"]:
    """Compute Q of each pair from the changes by leaving out one and two members of a sample."""
    n = first.shape[1]
    q = (n - 2) * pairs - (n - 1) * (first[:, :, None] + first[:, None])
    upper = np.triu_indices(n, 1)
    return q[:, upper[0], upper[1]]


@dataclass(frozen=True, eq=False)
class _Member:
    """The episodes that contain a class.

    Attributes:
        episodes: numbers of the episodes, ``[e]``.
        own: columns of the queries of this class, ``[e, M]``.
        place: clip of each of these queries, ``[e, M]``.
        keep: 0 where a clip is a support clip of the episode, else 1, ``[e, n]``.
        kept: number of queries of this class that do not use a clip, ``[e, n]``.
    """

    episodes: Int[np.ndarray, " e"]
    own: Int[np.ndarray, "e M"]
    place: Int[np.ndarray, "e M"]
    keep: Float[np.ndarray, "e n"]
    kept: Float[np.ndarray, "e n"]


class ClipDesign:
    """Which clips each episode uses, for the variance over clips of any values of the same episodes.

    Args:
        classes: class of each label, ``[E, N]``.
        support: support clips of each label, ``[E, N, K]``.
        query: clip of each query, ``[E, Q]``.
        actual: true class of each query, ``[E, Q]``.
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
        self.members: dict[int, _Member] = {}
        self.clips: dict[int, int] = {}
        for label in np.unique(classes):
            rows, slots = np.nonzero(classes == label)
            mine = actual[rows] == label
            if (mine.sum(1) != self.queries).any():
                self.queries = 0
                return
            own = np.nonzero(mine)[1].reshape(len(rows), -1)
            clips = query[rows[:, None], own]
            every, place = np.unique(np.concatenate([clips, support[rows, slots]], 1), return_inverse=True)
            place = place.reshape(len(rows), -1)
            n, asked = len(every), place[:, : self.queries]
            keep, kept = np.ones((2, len(rows), n))
            np.put_along_axis(keep, place[:, self.queries :], 0.0, 1)
            kept *= self.queries
            np.put_along_axis(kept, asked, self.queries - 1.0, 1)
            self.members[int(label)] = _Member(rows, own, asked, keep, kept * keep)
            self.clips[int(label)] = n

    def problem(self) -> str:
        """Return why the variance over clips cannot be estimated, or an empty string."""
        if not self.queries:
            return "the classes of an episode have different numbers of queries"
        if (few := min(self.clips.values())) < self.shot + 2:
            return f"a class has {few} clips; {self.shot}-shot needs {self.shot + 2}"
        return ""

    def blocks(self, values: Float[np.ndarray, "E Q"]) -> Iterator[Block]:
        """Yield the blocks of the variance over clips: each class, its pairs of clips, and pairs of two classes."""
        values = values.astype(np.float64)
        total = values.sum(1)
        sums = {label: np.take_along_axis(values[m.episodes], m.own, 1) for label, m in self.members.items()}
        for number, label in enumerate(self.members):
            yield from self._of_class(label, sums[label], total)
            for other in [*self.members][number + 1 :]:
                few = max(self.clips[label], self.clips[other]) <= _MANY
                if few and len(np.intersect1d(self.members[label].episodes, self.members[other].episodes)):
                    yield self._of_two(label, other, sums, total)

    def _of_class(self, label: int, own: Float[np.ndarray, "e M"], total: Float[np.ndarray, " E"]) -> Iterator[Block]:
        member, n = self.members[label], self.clips[label]
        pairs = n <= _MANY and n >= self.shot + 3 and n > 3
        first, second = [], []
        for g in _groups(member.episodes):
            keep, kept, mine = member.keep[g], member.kept[g], own[g]
            others = total[member.episodes[g]] - mine.sum(1)
            right = keep * mine.sum(1)[:, None]
            taken = right.copy()
            rows = np.arange(len(mine))[:, None]
            taken[rows, member.place[g]] -= mine
            means = mine.mean(), others.mean() / self._others
            first.append(
                self._mix(
                    taken.sum(0) / kept.sum(0) - means[0],
                    (others @ keep) / (keep.sum(0) * self._others) - means[1],
                )
            )
            if pairs:
                both = keep.T @ keep
                of_own = taken.T @ keep
                counts = kept.T @ keep
                second.append(
                    self._mix(
                        (of_own + of_own.T - keep.T @ right) / (counts + counts.T - self.queries * both) - means[0],
                        (keep.T @ (keep * others[:, None])) / (both * self._others) - means[1],
                    )
                )
        share = len(member.episodes) / self.episodes
        yield (n - 1) / n, share * np.stack(first)
        if pairs:
            yield _pairs_weight(n), share * _second_order(np.stack(first), np.stack(second))

    @property
    def _others(self) -> int:
        return self.queries * (self.way - 1)

    def _mix(self, own: Any, others: Any) -> Any:
        """Average over the queries of a class and those of the other classes of the episode."""
        return own / self.way + others * (1 - 1 / self.way) if self.way > 1 else own

    def _of_two(self, first: int, second: int, sums: Any, total: Any) -> Block:
        a, b = self.members[first], self.members[second]
        shared, at_a, at_b = np.intersect1d(a.episodes, b.episodes, assume_unique=True, return_indices=True)
        vectors = []
        for g in _groups(shared):
            ga, gb = at_a[g], at_b[g]
            keep_a, keep_b = a.keep[ga], b.keep[gb]
            mine_a, mine_b = sums[first][ga], sums[second][gb]
            rest = total[shared[g]] - mine_a.sum(1) - mine_b.sum(1)
            parts = [
                _interaction(_taken(keep_a, mine_a, a.place[ga]), a.kept[ga], mine_a, keep_b, self.queries),
                _interaction(_taken(keep_b, mine_b, b.place[gb]), b.kept[gb], mine_b, keep_a, self.queries).T,
            ]
            if self.way > 2:
                left = self.queries * (self.way - 2)
                parts.append(
                    (self.way - 2) * _interaction(keep_a * rest[:, None], keep_a * left, rest[:, None], keep_b, left)
                )
            vectors.append(sum(parts).ravel() / self.way)
        na, nb = self.clips[first], self.clips[second]
        weight = -(na - 1) / na * (nb - 1) / nb
        return weight, len(shared) / self.episodes * np.stack(vectors)


def _taken(keep: Any, mine: Any, place: Any) -> Any:
    taken = keep * mine.sum(1)[:, None]
    taken[np.arange(len(mine))[:, None], place] -= mine
    return taken


def _interaction(taken: Any, kept: Any, own: Any, keep: Any, count: int) -> Any:
    """Second difference of a mean by leaving out a clip of one class (rows) and of another class (columns)."""
    right = own.sum(1)
    both = (taken.T @ keep) / (kept.T @ keep)
    one = taken.sum(0) / kept.sum(0)
    other = (right @ keep) / (count * keep.sum(0))
    return both - one[:, None] - other + right.mean() / count


def _groups(episodes: Int[np.ndarray, " e"]) -> list[Int[np.ndarray, " g"]]:
    return [np.flatnonzero(episodes % _GROUPS == g) for g in range(_GROUPS)]
