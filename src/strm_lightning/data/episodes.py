"""Episodes as a pure function of (seed, stage, epoch, index).

All workers, ranks, restarts and machines get the same episodes for the same list of videos.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch

from strm_lightning.data.splits.stages import Stage
from strm_lightning.episode import Episode

EpisodeKey = tuple[int, int]  # epoch, index


@dataclass(frozen=True)
class EpisodeGenerator:
    """Draw ``way`` classes, and ``shot`` + ``query_per_class`` different clips of each.

    The cost of a draw does not depend on the number of videos.

    Args:
        members: rows of the videos of each class.
        way: classes of an episode, N.
        shot: support clips of a class, K.
        query_per_class: query clips of a class; Q is ``way`` times this number.
        stage: ``train`` draws new episodes in each epoch, ``val`` and ``test`` the same ones.
        seed: seed of the episodes.
    """

    members: Sequence[np.ndarray]
    way: int
    shot: int
    query_per_class: int
    stage: Stage
    seed: int = 0

    def draw(self, epoch: int, index: int) -> tuple[Episode, Random]:
        """Return an episode without clips, and the random generator for its frames, crops, flips and views."""
        rng = Random(f"{self.seed}/{self.stage}/{epoch if self.stage == 'train' else 0}/{index}")
        classes = rng.sample(range(len(self.members)), self.way)
        clips = self.shot + self.query_per_class
        picks = [[int(self.members[c][i]) for i in rng.sample(range(len(self.members[c])), clips)] for c in classes]
        rows = torch.tensor(picks)
        support, query = rows[:, : self.shot], rows[:, self.shot :].flatten()
        episode = Episode(
            support_ids=support,
            query_ids=query,
            query_labels=torch.arange(self.way).repeat_interleave(self.query_per_class),
            class_ids=torch.tensor(classes),
            index=torch.tensor(index),
            support_views=torch.zeros_like(support),
            query_views=torch.zeros_like(query),
        )
        return episode, rng
