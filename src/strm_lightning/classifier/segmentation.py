"""Segmentation of a stream by dynamic programming over class, start and length, with bounded delay and memory."""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from strm_lightning.errors import InputError


@dataclass(frozen=True)
class Segment:
    """An interval with a class, in time steps.

    Attributes:
        start: first step.
        end: step after the last one.
        label: number of the class.
        score: gain of the segment.
    """

    start: int
    end: int
    label: int
    score: float


class Segmenter:
    """Find the segments of a stream that have the largest sum of gains and do not overlap.

    A step outside of segments has gain 0. The recurrence is that of a segmental hidden Markov model without transition
    scores, as in Viterbi decoding of semi-Markov models (Sarawagi and Cohen, NIPS 2004):
    ``best[t] = max(best[t - 1], max_n best[t - n] + max_c gain[t, n, c])``.

    A segment is returned as soon as every continuation of the stream contains it. With ``max_delay``, a segment of the
    best path is returned that many steps after its end, and the last steps that can be undecided are twice the largest
    length plus ``max_delay``; without, the segmentation is exact.

    Args:
        lengths: lengths of the segments in steps.
        max_delay: number of steps after its end at which a segment of the best path is final; None for no limit.

    Raises:
        InputError: there is no length, a length is below 1, or the delay is negative.
    """

    def __init__(self, lengths: Sequence[int], max_delay: int | None = None) -> None:
        if not lengths or min(lengths) < 1 or (max_delay is not None and max_delay < 0):
            raise InputError(
                f"lengths {list(lengths)} and delay {max_delay}: give lengths of 1 or more, delay of 0 or more"
            )
        self.lengths, self.max_delay = tuple(lengths), max_delay
        self._longest = max(lengths)
        self._best: deque[float] = deque([0.0], self._longest)  # of the last steps
        self._back: dict[int, tuple[int, Segment | None]] = {}  # previous boundary on the best path, and the segment
        self._now = self._decided = 0

    @property
    def pending(self) -> int:
        """Number of steps that are not decided yet."""
        return self._now - self._decided

    def push(self, gains: Float[np.ndarray, "W N"]) -> list[Segment]:
        """Add the gains of all segments that end with the next step; return the segments that are now decided.

        Args:
            gains: gain of each length and class; minus infinity excludes a segment.
        """
        self._now += 1
        best = self._best[-1]
        back: tuple[int, Segment | None] = self._now - 1, None
        classes = gains.argmax(1)
        for row, length in enumerate(self.lengths):
            if length <= min(self._now, len(self._best)):
                gain = float(gains[row, classes[row]])
                if gain > 0 and self._best[-length] + gain > best:
                    best = self._best[-length] + gain
                    start = self._now - length
                    back = start, Segment(start, self._now, int(classes[row]), gain)
        self._best.append(best)
        self._back[self._now] = back
        return [*self._decide(self._common()), *self._force()]

    def finish(self) -> list[Segment]:
        """Return the remaining segments at the end of the stream."""
        return self._decide(self._now)

    def _common(self) -> int:
        """Return the last boundary that is on the best path to every boundary at which the path can continue."""
        first = self._now + 1 - len(self._best)  # later segments and steps start here or later
        boundaries = {first + i for i, best in enumerate(self._best) if best > -np.inf}
        heap = [-boundary for boundary in boundaries]  # negative: the last boundary is on top
        heapq.heapify(heap)
        while len(heap) > 1:
            before = self._back[-heapq.heappop(heap)][0]
            if before not in boundaries:
                boundaries.add(before)
                heapq.heappush(heap, -before)
        return -heap[0]

    def _decide(self, boundary: int) -> list[Segment]:
        """Decide the best path up to a boundary and forget it."""
        found, at = [], boundary
        while at > self._decided:
            at, segment = self._back[at]
            if segment is not None:
                found.append(segment)
        for step in range(self._decided + 1, boundary + 1):
            self._back.pop(step, None)
        self._decided = boundary
        return found[::-1]

    def _force(self) -> list[Segment]:
        """Decide the best path up to the end of a segment that is ``max_delay`` steps old, and exclude other paths."""
        if self.max_delay is None:
            return []
        at = self._now
        while at > self._decided:
            start, found = self._back[at]
            age = self._now - at - self.max_delay
            if age >= (self._longest if found is None else 0):
                break
            at = start
        if at <= self._decided:
            return []
        through = {at}
        for step in range(at + 1, self._now + 1):
            if self._back[step][0] in through:
                through.add(step)
        first = self._now + 1 - len(self._best)
        for i in range(len(self._best)):
            if first + i not in through:
                self._best[i] = -np.inf
        return self._decide(at)


def segment(gains: Float[np.ndarray, "T W N"], lengths: Sequence[int]) -> list[Segment]:
    """Segment a whole video, see `Segmenter`.

    Args:
        gains: gain of a segment of each length and class that ends with each step, ``[T, W, N]``.
        lengths: lengths in steps, ``W`` of them.
    """
    segmenter = Segmenter(lengths)
    return [found for step in gains for found in segmenter.push(step)] + segmenter.finish()
