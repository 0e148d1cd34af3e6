"""Collect the predictions of test episodes over all processes, as a metric of torchmetrics."""

from dataclasses import fields

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from strm_lightning.episode import Episode
from strm_lightning.evaluation.results import EpisodeResults


class EpisodeAccuracy(Metric):
    """Collect the predictions of all episodes over all processes.

    Args:
        num_episodes: number of episodes to count. Episodes with a higher index, which give all ranks the same number
            of steps, are left out. None counts all.
    """

    full_state_update = False

    def __init__(self, num_episodes: int | None = None) -> None:
        super().__init__()
        self.num_episodes = num_episodes
        self._shapes: dict[str, torch.Size] = {}
        for name in _FIELDS:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Float[Tensor, "B Q N"], episode: Episode) -> None:
        """Add a batch of episodes and the combined logits of their queries."""
        added = {
            "index": episode.index,
            "predicted": episode.class_ids.gather(1, logits.argmax(-1)),
            "actual": episode.class_ids.gather(1, episode.query_labels),
            "classes": episode.class_ids,
            "support": episode.support_ids,
            "query": episode.query_ids,
        }
        for name, tensor in added.items():
            getattr(self, name).append(tensor)
            self._shapes[name] = tensor.shape[1:]

    def compute(self) -> dict[str, Int[Tensor, "E ..."]]:
        """Return the fields of `EpisodeResults` for all counted episodes, sorted by index."""
        found = {name: _concatenate(getattr(self, name)) for name in _FIELDS}
        order = torch.argsort(found["index"], stable=True)
        if self.num_episodes is not None:
            order = order[found["index"][order] < self.num_episodes]
        return {name: tensor[order] for name, tensor in found.items()}

    def results(self) -> EpisodeResults:
        """Return the result of `compute` as an `EpisodeResults`."""
        # torchmetrics removes the axes of a tensor with one element.
        found = {name: tensor.reshape(-1, *self._shapes[name]) for name, tensor in self.compute().items()}
        return EpisodeResults(**{name: tensor.cpu().numpy() for name, tensor in found.items()})


_FIELDS = tuple(field.name for field in fields(EpisodeResults))


def _concatenate(parts: Tensor | list[Tensor]) -> Int[Tensor, "..."]:
    return parts if isinstance(parts, Tensor) else torch.cat(parts)
