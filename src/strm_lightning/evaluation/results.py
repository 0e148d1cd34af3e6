"""Predictions of test episodes, and accuracies with intervals computed from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class EpisodeResults:
    """Predictions of the queries of ``E`` episodes, sorted by index.

    Attributes:
        index: index of each episode, ``[E]``.
        predicted: predicted class of each query, as an index of the video set's classes, ``[E, Q]``.
        actual: true class of each query, ``[E, Q]``.
        classes: class of each label of the episode, ``[E, N]``; None if it is not known, like the two below.
        support: clips of each label, as indices of the video set's store, ``[E, N, K]``.
        query: clip of each query, ``[E, Q]``.
    """

    index: Int[np.ndarray, " E"]
    predicted: Int[np.ndarray, "E Q"]
    actual: Int[np.ndarray, "E Q"]
    classes: Int[np.ndarray, "E N"] | None = None
    support: Int[np.ndarray, "E N K"] | None = None
    query: Int[np.ndarray, "E Q"] | None = None

    @property
    def right(self) -> Float[np.ndarray, "E Q"]:
        """1 for each right prediction, else 0, ``[E, Q]``."""
        return (self.predicted == self.actual).astype(np.float64)

    @property
    def per_episode(self) -> Float[np.ndarray, " E"]:
        """Accuracy of each episode, a fraction, ``[E]``."""
        return self.right.mean(1)

    @property
    def accuracy(self) -> float:
        """Mean accuracy over episodes, a fraction."""
        return float(self.per_episode.mean())

    @property
    def ci95(self) -> float:
        """Half-width of the 95 % interval of the accuracy."""
        return half_interval(self.per_episode)

    def of_class(self, label: int) -> Float[np.ndarray, " e"]:
        """Accuracy on the queries of one class in each episode that contains it, ``[e]``."""
        mine = self.actual == label
        queries = mine.sum(1)
        there = queries > 0
        return ((self.predicted == label) & mine).sum(1)[there] / queries[there]

    def confusion(self, num_classes: int) -> Int[np.ndarray, "C C"]:
        """Confusion matrix: counts of each true class (row) and predicted class (column), ``[C, C]``."""
        counts = np.zeros((num_classes, num_classes), dtype=np.int64)
        np.add.at(counts, (self.actual.ravel(), self.predicted.ravel()), 1)
        return counts

    def summary(self) -> dict[str, Any]:
        """Accuracy, interval and number of episodes, as plain values."""
        return {"accuracy": self.accuracy, "ci95": self.ci95, "episodes": len(self.index)}

    def by_class(self, class_names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Accuracy, interval over episodes and number of queries of each tested class."""
        found = {}
        for label, name in enumerate(class_names):
            accuracies = self.of_class(label)
            if len(accuracies):
                queries = int((self.actual == label).sum())
                found[name] = {
                    "accuracy": float(accuracies.mean()), "ci95": half_interval(accuracies), "queries": queries
                }  # fmt: skip
        return found


def half_interval(values: Float[np.ndarray, " E"]) -> float:
    """Half-width of the 95 % interval of a mean, 1.96 sigma / sqrt(E)."""
    return float(1.96 * values.std() / len(values) ** 0.5)
