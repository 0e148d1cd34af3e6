"""What the matching method makes of the examples: its accuracy on left-out clips, and the weights of its kernels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strm_lightning.classifier.support import SupportSet
from strm_lightning.models.matching.kernel_methods import Auto, KernelRidge


@dataclass(frozen=True)
class LeftOut:
    """Accuracy on clips that are left out of the support set one by one.

    Attributes:
        right: number of clips with the right label.
        clips: number of clips.
    """

    right: int
    clips: int

    @property
    def accuracy(self) -> float:
        """Share of clips with the right label."""
        return self.right / self.clips

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy for independent clips (Wilson, 1927)."""
        return wilson(self.right, self.clips)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.accuracy:.0%} of {self.clips} clip{'s' * (self.clips > 1)} (95 % interval {low:.0%} to {high:.0%})"
        )


@dataclass(frozen=True)
class Selection:
    """The matching in use and how well it fits the examples.

    Attributes:
        matching: name of the method; for ``auto`` the one that it uses for these examples.
        left_out: accuracy on left-out clips; None if no class has two clips.
        weights: share of each kernel in the sum of kernels, 1 in total; empty for methods without kernels.
        alone: accuracy of each kernel alone on the left-out clips: the class with the largest mean similarity.
    """

    matching: str
    left_out: LeftOut | None
    weights: Mapping[str, float]
    alone: Mapping[str, LeftOut]

    def __str__(self) -> str:
        if self.left_out is None:
            return f"matching {self.matching}; accuracy not known: no class has two example clips"
        lines = [f"matching {self.matching}; left-out examples that are recognised: {self.left_out}"]
        lines += [
            f"  {name:<11}  weight {self.weights[name]:4.0%}   alone {self.alone[name].accuracy:4.0%}"
            for name in sorted(self.weights, key=lambda name: -self.weights[name])
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "matching": self.matching,
            "left_out": None if self.left_out is None else [self.left_out.right, self.left_out.clips],
            "weights": dict(self.weights),
            "alone": {name: [left.right, left.clips] for name, left in self.alone.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Selection":
        """Build it from the values of `to_dict`.

        Raises:
            TypeError, ValueError, KeyError: the values are not those of `to_dict`.
        """
        left_out = values["left_out"]
        return cls(
            matching=str(values["matching"]),
            left_out=None if left_out is None else _left_out(left_out),
            weights={str(name): float(weight) for name, weight in values["weights"].items()},
            alone={str(name): _left_out(found) for name, found in values["alone"].items()},
        )


def _left_out(pair: Any) -> LeftOut:
    right, clips = pair
    found = LeftOut(int(right), int(clips))
    if not 0 <= found.right <= found.clips or not found.clips:
        raise ValueError(f"{pair} is not [right, clips]")
    return found


def select(support: SupportSet) -> Selection:
    """Describe the matching of a support set with 2 or more classes."""
    method, name = support.model.head.matching, support.model.head.matching_name
    several = max(support.shots) > 1
    if isinstance(method, Auto):
        name = "kernel_ridge" if several else "lag_energy"
    logits, targets = support.leave_one_out()
    if not len(targets):
        return Selection(name, None, {}, {})
    left_out = _count(logits, targets)
    if not isinstance(method, KernelRidge):
        return Selection(name, left_out, {}, {})
    weights, scores = support.kernels()
    alone = {kernel: _count(score, targets) for kernel, score in scores.items()}
    return Selection(name, left_out, weights, alone)


def _count(logits: Float[Tensor, "n N"], targets: Int[Tensor, " n"]) -> LeftOut:
    return LeftOut(int((logits.argmax(1) == targets).sum()), len(targets))


def wilson(right: int, count: int) -> tuple[float, float]:
    """Compute the 95 % interval of a proportion (Wilson, 1927), which also holds for few trials and near 0 and 1."""
    z = torch.special.ndtri(torch.tensor(0.975, dtype=torch.float64)).item()
    share, width = right / count, z * z / count
    middle = (share + width / 2) / (1 + width)
    half = z / (1 + width) * (share * (1 - share) / count + width / (4 * count)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
