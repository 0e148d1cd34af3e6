"""Segmentation by dynamic programming: the best one, in bounded memory and delay."""

from itertools import pairwise

import numpy as np
import pytest

from strm_lightning.classifier.segmentation import Segment, Segmenter, segment
from strm_lightning.errors import InputError

LENGTHS = (2, 3, 5)


def random_gains(steps: int, seed: int) -> np.ndarray:
    """Gains of which some are below 0 and some segments are excluded."""
    rng = np.random.default_rng(seed)
    gains = rng.normal(0, 1, (steps, len(LENGTHS), 3))
    gains[rng.random(gains.shape) < 0.2] = -np.inf
    for end in range(steps):
        gains[end, [n > end + 1 for n in LENGTHS]] = np.inf  # would start before the stream: must be ignored
    return gains


def best_total(gains: np.ndarray, start: int = 0) -> float:
    """The largest sum of gains from ``start`` on, by trying every segmentation."""
    if start == len(gains):
        return 0.0
    options = [best_total(gains, start + 1)]
    for row, length in enumerate(LENGTHS):
        if start + length <= len(gains):
            options.append(gains[start + length - 1, row].max() + best_total(gains, start + length))
    return max(options)


def check_valid(found: list[Segment], gains: np.ndarray) -> float:
    for before, after in pairwise(found):
        assert before.end <= after.start
    for s in found:
        assert s.score == gains[s.end - 1, LENGTHS.index(s.end - s.start), s.label]
    return sum(s.score for s in found)


@pytest.mark.parametrize("seed", range(8))
def test_no_other_segmentation_has_a_larger_gain(seed: int) -> None:
    gains = random_gains(12, seed)
    found = segment(gains, LENGTHS)
    assert found
    assert check_valid(found, gains) == pytest.approx(best_total(gains))


def test_segments_are_returned_before_the_end_and_never_changed() -> None:
    gains = random_gains(300, 0)
    segmenter = Segmenter(LENGTHS)
    found, most = [], 0
    for step in gains:
        found += segmenter.push(step)
        most = max(most, segmenter.pending)
    assert len(found) > 50
    assert most < 100
    assert [*found, *segmenter.finish()] == segment(gains, LENGTHS)


@pytest.mark.parametrize("delay", [0, 1, 4, 50])
def test_delay_and_memory_are_bounded(delay: int) -> None:
    gains = random_gains(400, 1)
    gains[:, :, :] = np.where(np.isinf(gains), gains, np.abs(gains))  # alternatives all the time
    segmenter, found = Segmenter(LENGTHS, delay), []
    for now, step in enumerate(gains, 1):
        new = segmenter.push(step)
        assert all(s.end >= now - delay - max(LENGTHS) for s in new)
        assert segmenter.pending <= delay + 2 * max(LENGTHS)
        assert len(segmenter._back) <= delay + 2 * max(LENGTHS)
        found += new
    found += segmenter.finish()
    total, exact = check_valid(found, gains), sum(s.score for s in segment(gains, LENGTHS))
    assert total == pytest.approx(exact) if delay == 50 else 0.8 * exact < total < exact


def test_a_silent_stream_has_no_segments_and_needs_no_memory() -> None:
    segmenter = Segmenter(LENGTHS)
    for _ in range(100):
        assert segmenter.push(np.full((3, 2), -1.0)) == []
        assert segmenter.pending <= max(LENGTHS)
    assert segmenter.finish() == []


def test_wrong_options() -> None:
    for lengths, delay in (((), None), ((0, 2), None), ((2,), -1)):
        with pytest.raises(InputError, match="lengths"):
            Segmenter(lengths, delay)
