"""Temperature and rejection threshold, fixed or fitted by leave-one-out over the support clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strm_lightning.classifier.support import SupportSet
from strm_lightning.errors import InputError

Fitted = float | Literal["fit"]


@dataclass(frozen=True)
class Calibration:
    """Parameters that turn logits into a probability and a label.

    Attributes:
        temperature: divides the logits before the softmax.
        min_probability: a video is rejected if the probability of its best class is lower.
        min_logit: a video is rejected if the logit of its best class is lower.
    """

    temperature: float
    min_probability: float = 0.0
    min_logit: float = float("-inf")


def check_options(temperature: Fitted, threshold: Fitted | None) -> None:
    """Check the options of a calibration.

    Raises:
        InputError: the temperature is not positive, or the threshold is outside 0 .. 1.
    """
    if temperature != "fit" and not (isinstance(temperature, (int, float)) and 0 < temperature < float("inf")):
        raise InputError(f"temperature {temperature!r}: give a positive number, or 'fit'")
    if threshold not in (None, "fit") and not (isinstance(threshold, (int, float)) and 0 <= threshold <= 1):
        raise InputError(f"threshold {threshold!r}: give a probability from 0 to 1, or 'fit'")


def calibrate(support: SupportSet, temperature: Fitted, threshold: Fitted | None) -> Calibration:
    """Return the calibration of a support set; options with the value ``"fit"`` are fitted.

    Without two classes of two or more clips, the temperature is that of the matching method.

    Raises:
        InputError: there are too few clips to fit a threshold.
    """
    several = sum(len(clips) > 1 for clips in support.clips.values())
    enough = several >= 2
    if threshold == "fit" and not enough:
        raise InputError(
            "threshold 'fit' leaves out clips and classes, so it needs 2 classes or more that have 2 clips or more; of "
            f"{len(support.clips)} classes {several} {'has' if several == 1 else 'have'}: give a number"
        )
    left_out = support.leave_one_out() if enough and "fit" in (temperature, threshold) else None
    if temperature == "fit":
        method = support.model.head.matching
        temperature = method.default_temperature(support.shots) if left_out is None else fit_temperature(*left_out)
    if threshold == "fit":
        assert left_out is not None
        return Calibration(temperature, min_logit=fit_threshold(left_out[0], support.leave_classes_out()))
    return Calibration(temperature, min_probability=threshold or 0.0)


def fit_temperature(logits: Float[Tensor, "n N"], targets: Int[Tensor, " n"]) -> float:
    """Fit the temperature that minimises the cross-entropy of ``softmax(logits / temperature)``.

    Temperature scaling (Guo et al., ICML 2017) with the label smoothing of Platt scaling: ``1 / (n + 2)`` of each
    target is spread evenly over the classes, since the optimum would be 0 if all of a few clips are recognised. The
    cross-entropy is convex in 1 / temperature, so bisection of its derivative finds the minimum.

    Args:
        logits: logits of ``n`` clips, each matched with a support set that does not contain it, ``[n, N]``.
        targets: class of each clip, ``[n]``.
    """
    scores = logits.double() - logits.double().amax(1, keepdim=True)
    share = 1 / (len(targets) + 2)
    target = torch.full_like(scores, share / scores.shape[1])
    target[torch.arange(len(targets)), targets] += 1 - share
    spread = float(scores.std(1).mean()) or 1.0
    low, high = 1e-3 / spread, 1e3 / spread  # bounds of 1 / temperature
    for _ in range(60):
        middle = (low * high) ** 0.5
        slope = ((torch.softmax(middle * scores, 1) - target) * scores).sum()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return (low * high) ** -0.5


def fit_threshold(known: Float[Tensor, "n N"], unknown: Float[Tensor, "n N"]) -> float:
    """Fit the logit of the best class below which a clip is rejected.

    The threshold is the middle of the widest range with the fewest errors. It applies to the logit because the
    probability only compares the best class with the others.

    Args:
        known: logits of clips that are left out of the support set, ``[n, N]``.
        unknown: logits of the same clips when all clips of their class are left out, ``[n, N]``.
    """
    return _best_cut(known.double().amax(1).tolist(), unknown.double().amax(1).tolist())


def _best_cut(known: Sequence[float], unknown: Sequence[float]) -> float:
    values = sorted({*known, *unknown})
    values = [values[0] - 1, *values, values[-1] + 1]
    ranges = [(b - a, (a + b) / 2) for a, b in pairwise(values)]
    correct = [sum(k >= cut for k in known) + sum(u < cut for u in unknown) for _, cut in ranges]
    return max(gap for gap, count in zip(ranges, correct, strict=True) if count == max(correct))[1]
