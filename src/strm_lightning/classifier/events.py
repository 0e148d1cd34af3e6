"""Events in long videos: windows of several lengths, a model of windows without event, and the best segmentation."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from strm_lightning.classifier.clips import ClipConfig
from strm_lightning.classifier.frames import FrameStore
from strm_lightning.classifier.predictions import Prediction, WindowPrediction
from strm_lightning.classifier.segmentation import Segment, Segmenter, segment
from strm_lightning.classifier.support import SupportSet
from strm_lightning.errors import InputError
from strm_lightning.messages import check_positive

# Chosen on one half of EgoGestAR's clips, and on moving shapes; see experiments/benchmarks/events.py.
_RATIO = 1.2  # of two consecutive lengths of windows
_MARGIN = 1.25  # windows may be shorter and longer than the examples by this factor
_STRIDE = 0.25  # seconds between the ends of windows
_LEAST_SPREAD = 0.25  # standard deviation of the logarithm of durations: three clips underestimate it
_PRIOR_WEIGHT = 0.5  # of the duration
_LENGTH_POWER = 0.5  # of the length of a window relative to the examples, as factor of its gain
_LOG_ODDS = 4.0  # of a window without event against each class
_SHRINKAGE = 0.6  # of the covariance of logits to its diagonal
_COMMON_CLIPS = 2.0  # weight of the mean of all classes in the mean of a class, in clips
_DISTANCE = 4.0  # expected standard deviations above the background, of a class without clips to leave out
_OFFSET = 1.0  # of the score if all classes have one clip: log odds of 3 find more events then
_FIRST_WINDOWS = 200  # windows of a stream before the examples have no influence on the background
_BATCH = 8  # frames


@dataclass(frozen=True)
class WindowPlan:
    """Windows of a video, on a grid of time steps.

    Attributes:
        fps: time steps per second.
        stride: steps between the ends of windows.
        lengths: lengths in steps, ascending.
        prior: logarithm of the density of each length in each class relative to its maximum, ``[W, N]``.
        factor: factor of the gain of each length, ``[W]``. Part of a long action can look like a short action of
            another class, so without it two wrong short events may have a larger sum of gains than a right long one.
    """

    fps: float
    stride: int
    lengths: tuple[int, ...]
    prior: Float[np.ndarray, "W N"]
    factor: Float[np.ndarray, " W"]

    def gains(self, ratios: Float[np.ndarray, "*T W N"]) -> Float[np.ndarray, "*T W N"]:
        """Return the gains of windows for the segmentation from their log-likelihood ratios, see `Background`.

        It is the log odds of a class against the background and all other classes, so that a window that fits two
        classes has a small gain, times the factor of its length.
        """
        score = ratios + _PRIOR_WEIGHT * self.prior
        top = np.maximum(score.max(-1, keepdims=True), _LOG_ODDS)
        each = np.exp(score - top)
        rest = np.exp(_LOG_ODDS - top) + np.maximum(each.sum(-1, keepdims=True) - each, 0)
        return (score - top - np.log(np.maximum(rest, np.finfo(rest.dtype).tiny))) * self.factor[:, None]

    def probabilities(self, gains: Float[np.ndarray, "W N"], length: int) -> Float[np.ndarray, " N"]:
        """Return the probability of each class of a window with an event, from the gains of all windows of its end."""
        row = self.lengths.index(length)
        shares = np.exp(-np.logaddexp(0, -gains[row] / self.factor[row]))
        return shares / shares.sum()


def plan_windows(support: SupportSet, fps: float, length: float | None = None) -> WindowPlan:
    """Choose the lengths of windows from the durations of the examples, which have a log-normal prior in each class.

    Args:
        support: the examples.
        fps: time steps per second.
        length: duration of an action in seconds, for examples without duration; overrides their durations.

    Raises:
        InputError: ``fps`` or ``length`` is not positive, or no example has a duration and ``length`` is None.
    """
    check_positive(fps=fps, length=length)
    known = {
        label: [math.log(clip.duration) for clip in clips if clip.duration] if length is None else [math.log(length)]
        for label, clips in support.clips.items()
    }
    every = list(itertools.chain(*known.values()))
    if not every:
        raise InputError(
            "the examples have no durations (they are arrays, or from an examples file of an earlier version): give "
            "the length of an action in seconds (length, --length), or fit the video files again"
        )
    means = {label: float(np.mean(known[label] or every)) for label in support.labels}
    squares = sum((value - means[label]) ** 2 for label, values in known.items() for value in values)
    freedom = len(every) - sum(bool(values) for values in known.values())
    spread = max(_LEAST_SPREAD, (squares / freedom) ** 0.5 if freedom else 0.0)
    low, high = min(every) - math.log(_MARGIN), max(every) + math.log(_MARGIN)
    count = max(2, math.ceil((high - low) / math.log(_RATIO)) + 1)
    steps = {max(1, round(fps * math.exp(value))) for value in np.linspace(low, high, count)}
    lengths = tuple(sorted(steps))
    distance = np.log(np.array(lengths) / fps)[:, None] - np.array([means[label] for label in support.labels])
    factor = (np.array(lengths) / fps / math.exp(np.mean(every))) ** _LENGTH_POWER
    return WindowPlan(fps, max(1, round(fps * _STRIDE)), lengths, -0.5 * (distance / spread) ** 2, factor)


class Background:
    """Normal distribution of the logits of windows without event; most windows of a long video have none.

    The score of a window is the log-likelihood ratio of a class and the background (linear discriminant analysis): the
    mean of a class is that of the leave-one-out logits of its clips, the covariance is that of the background, shrunk
    to its diagonal.

    The mean of few clips has a large error, so it is shrunk to a common mean that is the same for all classes: the
    average of the own logits, and that of the other logits (empirical Bayes: Efron and Morris, JASA 1975). A class with
    one clip has the common mean. If all classes have one clip, a class is `_DISTANCE` standard deviations above the
    background in its own logit, and `_OFFSET` is added to the score.

    Args:
        support: the examples.
        streaming: start with the leave-one-out logits of the examples, until enough windows are known.
    """

    def __init__(self, support: SupportSet, *, streaming: bool = False) -> None:
        left_out, targets = support.leave_one_out()
        logits = left_out.double().cpu().numpy()
        self._means = _class_means(logits, targets.cpu().numpy())
        self._examples = logits
        self._starts_with_examples = streaming and len(logits) > 1
        way = len(support.labels)
        self._count, self._sum, self._squares = 0.0, np.zeros(way), np.zeros((way, way))

    def add(self, logits: Float[np.ndarray, "n N"]) -> None:
        """Add windows."""
        logits = logits.astype(np.float64)
        self._count += len(logits)
        self._sum += logits.sum(0)
        self._squares += logits.T @ logits

    def _moments(self) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, "N N"]]:
        """Return mean and covariance of the background."""
        count, total, squares = self._count, self._sum, self._squares
        if self._starts_with_examples and count < _FIRST_WINDOWS:
            share = (_FIRST_WINDOWS - count) / len(self._examples)
            count = _FIRST_WINDOWS
            total = total + share * self._examples.sum(0)
            squares = squares + share * self._examples.T @ self._examples
        mean = total / max(count, 1)
        return mean, squares / max(count, 1) - np.outer(mean, mean)

    @property
    def is_known(self) -> bool:
        """Whether there are enough windows or examples for a stream."""
        return self._starts_with_examples or self._count >= _FIRST_WINDOWS

    def ratios(self, logits: Float[np.ndarray, "*T N"]) -> Float[np.ndarray, "*T N"]:
        """Return the log-likelihood ratio of each class and the background."""
        mean, covariance = self._moments()
        variance = np.maximum(np.diag(covariance), 1e-12)
        deviation = np.sqrt(variance)
        shrunk = (1 - _SHRINKAGE) * covariance
        np.fill_diagonal(shrunk, variance)
        inverse = np.linalg.inv(shrunk)
        if self._means is None:
            return _DISTANCE * (logits - mean) / deviation - _DISTANCE**2 / 2 + _OFFSET
        weights = (self._means - mean) @ inverse
        return (logits - mean) @ weights.T - ((self._means - mean) * weights).sum(1) / 2


def _class_means(logits: Float[np.ndarray, "n N"], targets: Int[np.ndarray, " n"]) -> Float[np.ndarray, "N N"] | None:
    """Compute the mean logits of the clips of each class, shrunk to a common mean; None without clips."""
    if not len(logits):
        return None
    own = np.eye(logits.shape[1], dtype=bool)
    of_clips = own[targets]
    common = np.where(own, logits[of_clips].mean(), logits[~of_clips].mean())
    counts = of_clips.sum(0)[:, None]
    sums = of_clips.T.astype(logits.dtype) @ logits
    return (sums + _COMMON_CLIPS * common) / (counts + _COMMON_CLIPS)


class Windows:
    """Logits of the windows that end with each step of a stream.

    Args:
        support: the examples.
        config: size and number of frames of a clip.
        plan: windows.
    """

    def __init__(self, support: SupportSet, config: ClipConfig, plan: WindowPlan) -> None:
        self.support, self.plan = support, plan
        self.store = FrameStore(support.model, config, max(plan.lengths) + _BATCH)

    def push(self, frames: UInt8[Tensor, "n 3 S S"], steps: Sequence[int]) -> Iterator[Float[np.ndarray, "W N"] | None]:
        """Add frames; see `add`."""
        return self.add(self.store.encode_frames(frames), steps)

    def add(self, encoded: Sequence[Tensor], steps: Sequence[int]) -> Iterator[Float[np.ndarray, "W N"] | None]:
        """Add encoded frames with their steps; yield the logits for each new step, None where no window ends.

        After a gap in the steps, only windows that end with a given step are computed.
        """
        before = self.store.end
        self.store.add(encoded, steps)
        due, last = set(), before
        for step in steps:
            if (step + 1) // self.plan.stride > last // self.plan.stride:
                due.add(step)
            last = step + 1
        windows = [(step + 1 - n, step + 1) for step in sorted(due) for n in self.plan.lengths if n <= step + 1]
        scores = self._match(windows)
        for step in range(before, self.store.end):
            if step not in due or step + 1 < self.plan.lengths[0]:
                yield None
                continue
            full = np.full((len(self.plan.lengths), len(self.support.labels)), -np.inf)
            for row, length in enumerate(self.plan.lengths):
                if length <= step + 1:
                    full[row] = next(scores)
            yield full

    def _match(self, windows: Sequence[tuple[int, int]]) -> Iterator[Float[np.ndarray, " N"]]:
        if not windows:
            return iter(())
        logits = self.support.match(self.store.encode(windows)).combined(self.support.qc_weight)
        return iter(logits.float().cpu().numpy())


class EventStream:
    """Events of a stream, with bounded delay and memory.

    Args:
        support: the examples.
        config: size and number of frames of a clip.
        plan: windows.
        delay: seconds after its end at which an event of the best segmentation is final.
        name: name of the video.
    """

    def __init__(self, support: SupportSet, config: ClipConfig, plan: WindowPlan, delay: float, name: str = "") -> None:
        self._windows, self._plan = Windows(support, config, plan), plan
        self._labels, self._name = support.labels, name
        self._segmenter = Segmenter(plan.lengths, round(delay * plan.fps))
        self._background = Background(support, streaming=True)
        self._gains: dict[int, Float[np.ndarray, "W N"]] = {}  # of the steps that are not decided
        self._step = 0

    @property
    def stored(self) -> tuple[int, int]:
        """Number of frames and of steps in memory."""
        return sum(len(ring) for ring in self._windows.store.tensors()[:1]), len(self._gains)

    def push(self, frames: UInt8[Tensor, "n 3 S S"], steps: Sequence[int]) -> list[WindowPrediction]:
        """Add frames with their time steps; return the events that are now final."""
        return [event for logits in self._windows.push(frames, steps) for event in self.add(logits)]

    def add(self, logits: Float[np.ndarray, "W N"] | None) -> list[WindowPrediction]:
        """Add the logits of the windows that end with the next step; return the events that are now final."""
        self._step += 1
        gains = np.full(self._plan.prior.shape, -np.inf)
        if logits is not None:
            finite = np.isfinite(logits[:, 0])
            self._background.add(logits[finite])
            if self._background.is_known:
                gains[finite] = self._background.ratios(logits[finite])
                gains = self._plan.gains(gains)
                self._gains[self._step] = gains
        return self._events(self._segmenter.push(gains))

    def finish(self) -> list[WindowPrediction]:
        """Return the remaining events at the end of the stream."""
        return self._events(self._segmenter.finish())

    def _events(self, segments: Iterable[Segment]) -> list[WindowPrediction]:
        events = [_event(found, self._gains[found.end], self._plan, self._labels, self._name) for found in segments]
        for step in [step for step in self._gains if step <= self._step - self._segmenter.pending]:
            del self._gains[step]
        return events


def find_events(
    frames: Iterable[tuple[Tensor, int]], support: SupportSet, config: ClipConfig, plan: WindowPlan, name: str = ""
) -> list[WindowPrediction]:
    """Find the events of a whole video.

    Only the frames of the longest window are stored, and the logits of all windows.

    Args:
        frames: frames ``[3, S, S]`` with their time steps.
        support: the examples.
        config: size and number of frames of a clip.
        plan: windows.
        name: name of the video.
    """
    windows, remaining = Windows(support, config, plan), iter(frames)
    scores: list[Float[np.ndarray, "W N"] | None] = []
    while batch := list(itertools.islice(remaining, _BATCH)):
        scores += windows.push(torch.stack([frame for frame, _ in batch]), [step for _, step in batch])
    return segment_scores(scores, support, plan, name)


def segment_scores(
    scores: Sequence[Float[np.ndarray, "W N"] | None], support: SupportSet, plan: WindowPlan, name: str = ""
) -> list[WindowPrediction]:
    """Find the events of a whole video from the logits of its windows, see `Windows`."""
    gains = window_gains(scores, Background(support), plan)
    return [_event(found, gains[found.end - 1], plan, support.labels, name) for found in segment(gains, plan.lengths)]


def window_gains(
    scores: Sequence[Float[np.ndarray, "W N"] | None], background: Background, plan: WindowPlan
) -> Float[np.ndarray, "T W N"]:
    """Compute the gain of each window of a video from its logits; the background is fitted to all windows."""
    logits = np.full((len(scores), *plan.prior.shape), -np.inf)
    for step, found in enumerate(scores):
        if found is not None:
            logits[step] = found
    finite = np.isfinite(logits[..., 0])
    gains = np.full(logits.shape, -np.inf)
    if finite.any():
        background.add(logits[finite])
        gains[finite] = background.ratios(logits[finite])
    return plan.gains(gains)


def _event(
    found: Segment, gains: Float[np.ndarray, "W N"], plan: WindowPlan, labels: Sequence[str], name: str
) -> WindowPrediction:
    shares = plan.probabilities(gains, found.end - found.start).tolist()
    ranked = sorted(zip(labels, shares, strict=True), key=lambda pair: -pair[1])
    prediction = Prediction(ranked[0][0], ranked[0][1], dict(ranked), name)
    return WindowPrediction(found.start / plan.fps, found.end / plan.fps, prediction)
