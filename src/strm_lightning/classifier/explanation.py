"""Why a video was given its label: the decision, and all that made it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from strm_lightning.classifier.evidence import ClassEvidence
from strm_lightning.classifier.predictions import Prediction
from strm_lightning.classifier.support import EncodedClip, SupportSet


@dataclass(frozen=True)
class Explanation:
    """A decision, and what made it.

    Attributes:
        prediction: label and probabilities.
        logits: combined logit of each class, ``trm + qc_weight * qc``, before the temperature.
        trm: TRM's logit of each class.
        qc: QC's logit of each class, or None.
        qc_weight: lambda.
        evidence: the matches with each class.
        patch_attention: where PLE looked: attention that each patch of each frame receives from the patches of its
            frame on average, ``[L, P, P]``; sums to 1 over a frame. None for a model without PLE.
        frames: the clip's frames, ``[L, 3, S, S]``.
        thumbnails: frames of the clips of each class, small.
        attends: whether the model matches frames by attention. If not, each frame is compared with the example's frame
            of the same number, and ``patch_attention`` is each patch's share of the change in its frame.
    """

    prediction: Prediction
    logits: Mapping[str, float]
    trm: Mapping[str, float]
    qc: Mapping[str, float] | None
    qc_weight: float
    evidence: Mapping[str, ClassEvidence]
    patch_attention: Float[np.ndarray, "L P P"] | None
    frames: UInt8[np.ndarray, "L 3 S S"]
    thumbnails: Mapping[str, UInt8[np.ndarray, "K L 3 s s"]]
    attends: bool = True

    @property
    def best_class(self) -> str:
        """The most probable class, also where the label is ``unknown``."""
        return next(iter(self.prediction.probabilities))

    def __str__(self) -> str:
        evidence = self.evidence[self.best_class]
        best = evidence.best_clip
        lines = [
            f"{self.prediction.video}: {self.prediction}",
            f"most like {evidence.clips[best]} (class {self.best_class}; {evidence.clip_scores[best]:.2f})",
        ]
        if match := evidence.best_match():
            query, clip, frames, weight = match
            lines.append(
                f"strongest match: {_words(query)} with {_words(frames)} of {evidence.clips[clip]} "
                f"(attention {weight:.2f})"
            )
        return "\n".join(lines)


@torch.inference_mode()
def explain(
    support: SupportSet, clip: EncodedClip, pixels: UInt8[Tensor, "L 3 S S"], prediction: Prediction
) -> Explanation:
    """Gather what made the prediction of a clip."""
    matcher, labels = support.matcher, support.labels
    logits = support.match({name: tensor[None] for name, tensor in clip.features.items()})

    def by_label(scores: Float[Tensor, "1 N"]) -> dict[str, float]:
        return dict(zip(labels, scores[0].tolist(), strict=True))

    return Explanation(
        prediction=prediction,
        logits=by_label(logits.combined(matcher.qc_weight)),
        trm=by_label(logits.trm),
        qc=None if logits.qc is None else by_label(logits.qc),
        qc_weight=matcher.qc_weight,
        evidence={
            label: ClassEvidence(
                [example.name for example in support.clips[label]],
                matcher.evidence(support.features(label), clip.features),
                average_qc=matcher.average_qc,
            )
            for label in labels
        },
        patch_attention=matcher.patch_attention(pixels),
        frames=pixels.numpy(),
        thumbnails={label: np.stack([c.thumbnail.numpy() for c in support.clips[label]]) for label in labels},
        attends=matcher.attends,
    )


def _words(frames: tuple[int, ...]) -> str:
    return "frame" + "s" * (len(frames) > 1) + " " + ", ".join(str(frame + 1) for frame in frames)
