"""Probabilities that mean what they say: a temperature and a threshold, fitted by leaving clips out."""

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
    """How logits become a probability and a label.

    Attributes:
        temperature: divides the logits before the softmax.
        min_probability: a video whose best class is less probable is unknown.
        min_logit: a video whose best class has a lower logit is unknown.
    """

    temperature: float
    min_probability: float = 0.0
    min_logit: float = float("-inf")


def check_options(temperature: Fitted, threshold: Fitted | None) -> None:
    """Refuse numbers that make no probability.

    Raises:
        ValueError: a temperature that is not positive, or a threshold outside 0 .. 1.
    """
    if temperature != "fit" and not (isinstance(temperature, (int, float)) and 0 < temperature < float("inf")):
        raise InputError(f"temperature {temperature!r}: give a positive number, or 'fit'")
    if threshold not in (None, "fit") and not (isinstance(threshold, (int, float)) and 0 <= threshold <= 1):
        raise InputError(f"threshold {threshold!r}: give a probability from 0 to 1, 'fit', or None")


def calibrate(support: SupportSet, temperature: Fitted, threshold: Fitted | None) -> Calibration:
    """The calibration of a support set, as given or fitted.

    Raises:
        ValueError: a threshold cannot be fitted to so few clips.
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
        temperature = support.model.head.matching.temperature if left_out is None else fit_temperature(*left_out)
    if threshold == "fit":
        assert left_out is not None
        return Calibration(temperature, min_logit=fit_threshold(*left_out))
    return Calibration(temperature, min_probability=threshold or 0.0)


def fit_temperature(logits: Float[Tensor, "n N"], targets: Int[Tensor, " n"]) -> float:
    """The temperature that makes ``softmax(logits / temperature)`` most probable (Guo et al., ICML 2017).

    The cross-entropy is convex in 1 / temperature, so its one minimum is found by bisecting the slope. Few clips may
    all be recognised, which would ask for temperature 0; so each target gives ``1 / (n + 2)`` of itself to all classes
    evenly, as Platt scaling does.

    Args:
        logits: of ``n`` clips, none of which was in the support set when it was matched.
        targets: their classes.
    """
    scores = logits.double() - logits.double().amax(1, keepdim=True)
    share = 1 / (len(targets) + 2)
    target = torch.full_like(scores, share / scores.shape[1])
    target[torch.arange(len(targets)), targets] += 1 - share
    spread = float(scores.std(1).mean()) or 1.0
    low, high = 1e-3 / spread, 1e3 / spread  # of 1 / temperature
    for _ in range(60):
        middle = (low * high) ** 0.5
        slope = ((torch.softmax(middle * scores, 1) - target) * scores).sum()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return (low * high) ** -0.5


def fit_threshold(logits: Float[Tensor, "n N"], targets: Int[Tensor, " n"]) -> float:
    """The logit of the best class below which a clip is better called unknown.

    Each left-out clip plays two parts: with its class among the others, where it should be known, and without, where it
    should not. The threshold is the middle of the widest range in which most parts go right. It is on the logit, which
    says how well a class fits; the probability only says how much better than the other classes it does.

    Args:
        logits: of ``n`` left-out clips for ``N`` classes, at least two.
        targets: their classes.
    """
    known = logits.double().amax(1)
    unknown = logits.double().scatter(1, targets[:, None], -torch.inf).amax(1)
    return _best_cut(known.tolist(), unknown.tolist())


def _best_cut(known: Sequence[float], unknown: Sequence[float]) -> float:
    values = sorted({*known, *unknown})
    values = [values[0] - 1, *values, values[-1] + 1]
    ranges = [(b - a, (a + b) / 2) for a, b in pairwise(values)]
    right = [sum(k >= cut for k in known) + sum(u < cut for u in unknown) for _, cut in ranges]
    return max(gap for gap, count in zip(ranges, right, strict=True) if count == max(right))[1]
