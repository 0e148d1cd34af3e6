"""Check the examples of a classifier: expected accuracy, confusions, clips that look mislabelled or duplicated."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from strm_lightning.classifier.calibration import Calibration
from strm_lightning.classifier.selection import LeftOut
from strm_lightning.classifier.support import EncodedClip, SupportSet

_SIDE = 56  # pixels of the pictures that are compared
_SAME = 0.95  # correlation from which two clips show the same


@dataclass(frozen=True)
class Confusion:
    """Clips of one class that are recognised as another one.

    Attributes:
        actual: the class of the clips.
        predicted: the recognised class.
        clips: number of clips.
    """

    actual: str
    predicted: str
    clips: int


@dataclass(frozen=True)
class Suspect:
    """A clip whose label may be wrong.

    Attributes:
        label: the class of the clip.
        clip: name of the clip.
        looks_like: the class that it is recognised as.
        probability: probability of that class.
    """

    label: str
    clip: str
    looks_like: str
    probability: float


@dataclass(frozen=True)
class Duplicate:
    """Two example clips that show the same.

    Attributes:
        first: class and name of one clip.
        second: class and name of the other clip.
    """

    first: tuple[str, str]
    second: tuple[str, str]


@dataclass(frozen=True)
class Check:
    """Result of `FewShotClassifier.check`: cross-validation on the examples, each clip left out once.

    Attributes:
        left_out: accuracy on the left-out clips, with a 95 % interval; None if no class has two clips. It is the
            accuracy to expect on new videos of the same kind; clips that were recorded together make it too high.
        by_class: the same for each class that has two or more clips.
        confusions: which classes are confused, most frequent first.
        suspects: clips that look mislabelled, most probable first.
        duplicates: pairs of clips that show the same.
        needs_clips: classes that need more clips: those with one clip, and those whose accuracy is below that of all
            clips, also at the upper bound of its interval.
    """

    left_out: LeftOut | None
    by_class: dict[str, LeftOut]
    confusions: Sequence[Confusion]
    suspects: Sequence[Suspect]
    duplicates: Sequence[Duplicate]
    needs_clips: Sequence[str]

    def __str__(self) -> str:
        if self.left_out is None:
            lines = ["Each class has one clip, so nothing can be left out: the accuracy is not known."]
        else:
            lines = [f"Expected accuracy: {self.left_out}"]
            width = max(map(len, self.by_class))
            lines += [f"  {label:<{width}}  {found.right} of {found.clips}" for label, found in self.by_class.items()]
        if self.confusions:
            lines.append("Confused classes:")
            lines += [f"  {c.actual} is recognised as {c.predicted}: {c.clips}" for c in self.confusions]
        if self.suspects:
            lines.append("Clips that may have the wrong label:")
            lines += [
                f"  {s.clip} (class {s.label}) looks like {s.looks_like} ({s.probability:.2f})" for s in self.suspects
            ]
        if self.duplicates:
            lines.append("Clips that show the same:")
            lines += [f"  {a[1]} (class {a[0]}) and {b[1]} (class {b[0]})" for a, b in map(_pair, self.duplicates)]
        if self.needs_clips:
            lines.append(f"Classes that need more clips: {', '.join(self.needs_clips)}")
        return "\n".join(lines)


def _pair(duplicate: Duplicate) -> tuple[tuple[str, str], tuple[str, str]]:
    return duplicate.first, duplicate.second


def check(support: SupportSet, calibration: Calibration) -> Check:
    """Cross-validate a support set, see `Check`."""
    labels, clips = support.labels, support.left_out_clips()
    duplicates = find_duplicates([(label, clip) for label in labels for clip in support.clips[label]])
    single = [label for label in labels if len(support.clips[label]) == 1]
    if not clips:
        return Check(None, {}, [], [], duplicates, single)
    logits, targets = support.leave_one_out()
    predicted = logits.argmax(1)
    probabilities = torch.softmax(logits.double() / calibration.temperature, 1)
    right = predicted == targets
    left_out = LeftOut(int(right.sum()), len(right))
    by_class = {
        labels[c]: LeftOut(int(right[targets == c].sum()), int((targets == c).sum())) for c in targets.unique().tolist()
    }
    wrong = Counter((labels[t], labels[p]) for t, p in zip(targets.tolist(), predicted.tolist(), strict=True) if t != p)
    doubtful = mislabelled(probabilities, targets).tolist()
    suspects = [
        Suspect(labels[c], support.clips[labels[c]][k].name, labels[int(predicted[i])], float(probabilities[i].max()))
        for i, (c, k) in enumerate(clips)
        if doubtful[i]
    ]
    return Check(
        left_out,
        by_class,
        [Confusion(*pair, count) for pair, count in wrong.most_common()],
        sorted(suspects, key=lambda suspect: -suspect.probability),
        duplicates,
        [label for label in labels if label in single or _is_worse(by_class[label], left_out)],
    )


def mislabelled(probabilities: Float[Tensor, "n N"], targets: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Find clips that look mislabelled by confident learning (Northcutt et al., JAIR 2021).

    A clip looks mislabelled if the most probable class is not its own, and its probability is at least the mean
    probability that the clips of that class have for it.

    Args:
        probabilities: probabilities of left-out clips, ``[n, N]``.
        targets: class of each clip, ``[n]``.
    """
    own = probabilities.gather(1, targets[:, None])[:, 0]
    count = torch.bincount(targets, minlength=probabilities.shape[1])
    confidence = torch.zeros_like(probabilities[0]).index_add_(0, targets, own) / count.clamp_min(1)
    confidence = torch.where(count > 0, confidence, torch.inf)
    best, predicted = probabilities.max(1)
    return (predicted != targets) & (best >= confidence[predicted])


def find_duplicates(clips: Sequence[tuple[str, EncodedClip]]) -> list[Duplicate]:
    """Find pairs of clips that show the same, by the small frames that are stored with the examples.

    Two clips show the same if their pixels are equal, or if both their mean images and their differences from these
    correlate at 0.95 or more.
    """
    same = torch.tensor([[a.digest == b.digest for _, b in clips] for _, a in clips])
    described = [_describe(clip) for _, clip in clips]
    rows = torch.tensor([i for i, both in enumerate(described) if both is not None], dtype=torch.long)
    if len(rows):
        still, motion = (torch.stack(part) for part in zip(*(both for both in described if both), strict=True))
        alike = (still @ still.T >= _SAME) & (motion @ motion.T >= _SAME)
        same[rows[:, None], rows] |= alike
    names = [(label, clip.name) for label, clip in clips]
    return [Duplicate(names[i], names[j]) for i, j in same.triu(1).nonzero().tolist()]


def _describe(clip: EncodedClip) -> tuple[Tensor, Tensor] | None:
    """Unit vectors of the mean image and of the motion; None without pixels or without motion."""
    if clip.thumbnail.shape[-1] < _SIDE:
        return None
    grey = F.adaptive_avg_pool2d(clip.thumbnail.float().mean(1), _SIDE)
    still = grey.mean(0)
    motion = grey - still
    if float(motion.abs().max()) < 1:
        return None
    return F.normalize((still - still.mean()).flatten(), dim=0), F.normalize(motion.flatten(), dim=0)


def _is_worse(one: LeftOut, all_: LeftOut) -> bool:
    """Whether the upper bound of one accuracy is below the accuracy of all."""
    return one.interval[1] < all_.accuracy
