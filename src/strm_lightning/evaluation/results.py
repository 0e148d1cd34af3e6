"""What a test found: predictions of every episode, and all that is derived from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from strm_lightning.episode import Episode


@dataclass(frozen=True)
class EpisodeResults:
    """Predictions of the queries of ``E`` episodes, in the order of the episodes' numbers.

    Attributes:
        index: number of each episode, ``[E]``.
        predicted: class of the video set that each query was given, ``[E, Q]``.
        actual: class that it is, ``[E, Q]``.
    """

    index: Int[np.ndarray, " E"]
    predicted: Int[np.ndarray, "E Q"]
    actual: Int[np.ndarray, "E Q"]

    @property
    def per_episode(self) -> Float[np.ndarray, " E"]:
        """Accuracy of each episode, a fraction, ``[E]``."""
        return (self.predicted == self.actual).mean(1)

    @property
    def accuracy(self) -> float:
        """Mean accuracy over episodes, a fraction."""
        return float(self.per_episode.mean())

    @property
    def ci95(self) -> float:
        """Half of the 95 % interval of the accuracy."""
        return half_interval(self.per_episode)

    def of_class(self, label: int) -> Float[np.ndarray, " e"]:
        """Accuracy on the queries of one class in each episode that has it."""
        mine = self.actual == label
        queries = mine.sum(1)
        there = queries > 0
        return ((self.predicted == label) & mine).sum(1)[there] / queries[there]

    def confusion(self, num_classes: int) -> Int[np.ndarray, "C C"]:
        """How often each class (row) was taken for each other one (column), counts ``[C, C]``."""
        counts = np.zeros((num_classes, num_classes), dtype=np.int64)
        np.add.at(counts, (self.actual.ravel(), self.predicted.ravel()), 1)
        return counts

    def summary(self) -> dict[str, Any]:
        """Accuracy, its interval, and the number of episodes, as plain values."""
        return {"accuracy": self.accuracy, "ci95": self.ci95, "episodes": len(self.index)}

    def by_class(self, class_names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Accuracy, its interval over episodes and the number of queries of each class that was tested."""
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
    """Half of the 95 % interval of a mean, as the field writes it: 1.96 sigma / sqrt(E)."""
    return float(1.96 * values.std() / len(values) ** 0.5)


class EpisodeRecord(Metric):
    """Collect the predictions of every episode, over all processes.

    Args:
        num_episodes: episodes to count; the ones beyond, which only even out the ranks' steps, are left out. None
            counts all.
    """

    full_state_update = False
    index: list[Tensor]
    predicted: list[Tensor]
    actual: list[Tensor]

    def __init__(self, num_episodes: int | None = None) -> None:
        super().__init__()
        self.num_episodes = num_episodes
        for name in ("index", "predicted", "actual"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Float[Tensor, "B Q N"], episode: Episode) -> None:
        """Record a batch of episodes and the combined logits of their queries."""
        self.index.append(episode.index)
        self.predicted.append(episode.class_ids.gather(1, logits.argmax(-1)))
        self.actual.append(episode.class_ids.gather(1, episode.query_labels))

    def compute(self) -> tuple[Int[Tensor, " E"], Int[Tensor, "E Q"], Int[Tensor, "E Q"]]:
        """Number, predicted and actual classes of all counted episodes, in the order of their numbers."""
        index, predicted, actual = (_joined(getattr(self, name)) for name in ("index", "predicted", "actual"))
        order = torch.argsort(index, stable=True)
        if self.num_episodes is not None:
            order = order[index[order] < self.num_episodes]
        return index[order], predicted[order], actual[order]

    def results(self) -> EpisodeResults:
        """`compute` as plain arrays, with all that is derived from them."""
        index, predicted, actual = self.compute()
        # torchmetrics removes the axes of a tensor with one element.
        episodes, queries = index.numel(), predicted.numel() // max(index.numel(), 1)
        return EpisodeResults(
            index.reshape(episodes).cpu().numpy(),
            predicted.reshape(episodes, queries).cpu().numpy(),
            actual.reshape(episodes, queries).cpu().numpy(),
        )


def _joined(parts: Tensor | list[Tensor]) -> Int[Tensor, "..."]:
    return parts if isinstance(parts, Tensor) else torch.cat(parts)
