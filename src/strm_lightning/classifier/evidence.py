"""How a query met the clips of a class, as numbers that recombine exactly to its logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class TupleEvidence:
    """How the tuples of one size found their match among the clips of one class.

    Attributes:
        tuples: frames of each tuple, numbered from 0, ``[T, w]``; the same in queries and examples.
        attention: how much each query tuple looks at each tuple of each clip, ``[T, K, T]``; sums to 1 over the last
            two axes. Weighted with it, the clips' values are the prototypes.
        distances: squared distance of each query tuple to its prototype, ``[T]``.
        clip_scores: how much each clip matters, ``[K]``: TRM's share of attention, which sums to 1, or the cosine of a
            bare backbone.
        nearest: the clip and the tuple that QC found nearest to each query tuple, ``[T, 2]``, or None.
        nearest_distances: and how far it is, ``[T]``, or None.
    """

    tuples: Int[np.ndarray, "T w"]
    attention: Float[np.ndarray, "T K T"]
    distances: Float[np.ndarray, " T"]
    clip_scores: Float[np.ndarray, " K"]
    nearest: Int[np.ndarray, "T 2"] | None = None
    nearest_distances: Float[np.ndarray, " T"] | None = None


@dataclass(frozen=True)
class ClassEvidence:
    """What speaks for one class.

    Attributes:
        clips: names of its clips.
        sizes: evidence of each tuple size in Omega.
        average_qc: average QC over Omega, as the released variant does; else sum it, as the paper does.
    """

    clips: Sequence[str]
    sizes: Sequence[TupleEvidence]
    average_qc: bool = False

    @property
    def trm(self) -> float:
        """TRM's logit: minus the distances, averaged over tuples and then over Omega."""
        return -float(np.mean([size.distances.mean() for size in self.sizes]))

    @property
    def qc(self) -> float | None:
        """QC's logit: minus the nearest distances, averaged over tuples, then summed or averaged over Omega."""
        found = [s.nearest_distances.mean() for s in self.sizes if s.nearest_distances is not None]
        return -float(np.mean(found) if self.average_qc else np.sum(found)) if found else None

    @property
    def clip_scores(self) -> Float[np.ndarray, " K"]:
        """How much each clip matters, averaged over Omega."""
        return np.mean([size.clip_scores for size in self.sizes], 0)

    @property
    def best_clip(self) -> int:
        """The clip that matters most."""
        return int(self.clip_scores.argmax())

    def frame_weights(self, clip: int) -> Float[np.ndarray, "L L"]:
        """How much each query frame (row) looked at each frame of a clip: the attention of the tuples they are in.

        A pair of tuples gives its attention in equal parts to its pairs of frames. All clips of the class together sum
        to 1.
        """
        frames = 1 + max(int(size.tuples.max()) for size in self.sizes)
        total = np.zeros((frames, frames))
        for size in self.sizes:
            share = size.attention[:, clip] / size.tuples.size / len(self.sizes)
            for place in size.tuples.T:
                np.add.at(total, (place[:, None], place[None]), share)
        return total

    def best_match(self) -> tuple[tuple[int, ...], int, tuple[int, ...], float] | None:
        """The strongest single match: frames of the query, clip, frames of the clip, attention.

        None where all frames of the query match as strongly, as with a bare backbone.
        """
        size = max(self.sizes, key=lambda s: s.attention.max())
        strongest = size.attention.max((1, 2))
        if np.ptp(strongest) < 1e-3 * strongest.max():
            return None
        t, clip, j = np.unravel_index(size.attention.argmax(), size.attention.shape)
        frames = [tuple(size.tuples[i].tolist()) for i in (t, j)]
        return frames[0], int(clip), frames[1], float(size.attention[t, clip, j])
