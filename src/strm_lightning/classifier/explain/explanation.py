"""Explanation of a prediction: logits of each class and the evidence for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from strm_lightning.classifier.explain.method_sentences import describe_method
from strm_lightning.classifier.explain.occlusion import patch_importance
from strm_lightning.classifier.predictions import Prediction
from strm_lightning.classifier.support import EncodedClip, SupportSet
from strm_lightning.data.sampling import select_frames
from strm_lightning.models.matching.base import Encoded, Evidence
from strm_lightning.models.matching.kernel_methods import kernel_of

MEANING = {
    "lag": "same motion at about the same time",
    "energy": "same amount of motion",
    "motionmap": "motion at the same places",
    "meanpatch": "same appearance",
}
"""What a large similarity means, for each kernel of `KernelRidge`."""


def by_kernel(parts: Mapping[str, float]) -> dict[str, float]:
    """Sum values of parts over the stages of the backbone, by kernel."""
    found: dict[str, float] = {}
    for part, value in parts.items():
        found[kernel_of(part)] = found.get(kernel_of(part), 0.0) + value
    return found


@dataclass(frozen=True)
class ClassEvidence:
    """Evidence for one class.

    Attributes:
        clips: names of its clips.
        by_logit: evidence of each named logit, such as ``trm`` and ``qc``; a matching method may give none.
        clip_scores: how much each clip matters, ``[K]``: its own score where a logit is the mean over clips; its
            contribution to the logit where a logit is a sum over kernels; else its weight in the evidence of the
            matching method; without evidence, its logit as a class of its own (among all clips as classes where a logit
            depends on the other classes).
    """

    clips: Sequence[str]
    by_logit: Mapping[str, Evidence]
    clip_scores: Float[np.ndarray, " K"]

    @property
    def main(self) -> Evidence | None:
        """Evidence of the matching method itself, or None."""
        return next((evidence for name, evidence in self.by_logit.items() if name != "qc"), None)

    @property
    def best_clip(self) -> int:
        """The clip that matters most."""
        return int(self.clip_scores.argmax())

    def frame_weights(self, clip: int) -> Float[np.ndarray, "L L"] | None:
        """How strongly each query frame (row) matches each frame of a clip, or None."""
        return None if self.main is None else self.main.weights[clip].cpu().numpy()


@dataclass(frozen=True)
class Explanation:
    """A prediction with its logits and the evidence for them.

    Attributes:
        prediction: label and probabilities.
        logits: combined logit of each class, not divided by the temperature.
        trm: logit of the matching method for each class.
        qc: logit of QC for each class, or None without QC.
        qc_weight: lambda, the weight of QC in the combined logits.
        evidence: evidence for each class.
        patch_importance: by how much the lead of the best class over `rival` shrinks when a patch is occluded,
            ``[L, P, P]``; see `strm_lightning.classifier.explain.occlusion`.
        frames: frames of the clip, ``[L, 3, S, S]``; with a video backbone one for each of its L time steps.
        thumbnails: small frames of the clips of each class, ``[K, L, 3, s, s]``; see ``frames``.
        matching: name of the matching method.
        parts: named parts of the logit of the matching method, by class; empty for methods with one part.
    """

    prediction: Prediction
    logits: Mapping[str, float]
    trm: Mapping[str, float]
    qc: Mapping[str, float] | None
    qc_weight: float
    evidence: Mapping[str, ClassEvidence]
    patch_importance: Float[np.ndarray, "L P P"]
    frames: UInt8[np.ndarray, "L 3 S S"]
    thumbnails: Mapping[str, UInt8[np.ndarray, "K L 3 s s"]]
    matching: str = "trm"
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def best_class(self) -> str:
        """The most probable class, also if the label is ``unknown``."""
        return next(iter(self.prediction.probabilities))

    @property
    def rival(self) -> str:
        """The second most probable class."""
        return list(self.prediction.probabilities)[1]

    def sentences(self) -> list[str]:
        """Explain the prediction in sentences that fit the matching method."""
        prediction, evidence = self.prediction, self.evidence[self.best_class]
        clip = Path(evidence.clips[evidence.best_clip]).name
        label = f"{prediction.label}, probability {prediction.probability:.2f}."
        if prediction.rejected:
            label = f"unknown: {self.best_class!r} is the most probable action, but too uncertain."
        lines = [label, describe_method(self.matching), f"The most similar example of {self.best_class!r} is {clip}."]
        if self.parts:
            leads = by_kernel({name: p[self.best_class] - p[self.rival] for name, p in self.parts.items()})
            ranked = sorted((name for name in leads if abs(leads[name]) >= 0.005), key=lambda name: -leads[name])
            shares = ", ".join(f"{MEANING[name]} {leads[name]:+.2f}" for name in ranked)
            lines.append(f"Its lead over {self.rival!r}, the next action: {shares or 'below 0.01'}.")
        if evidence.main is not None and evidence.main.strongest is not None:
            query, best, frames, _ = evidence.main.strongest
            other = Path(evidence.clips[best]).name
            lines.append(f"The strongest match is {_frames(query)} with {_frames(frames)} of {other}.")
        by_step = self.patch_importance.clip(0).sum((1, 2))
        if by_step.any():
            first = (2 * int(by_step.argmax()) + 1) * len(self.frames) // (2 * len(by_step)) + 1
            lines.append(
                f"Heat marks evidence for {self.best_class!r} against {self.rival!r}, the next action: without the "
                f"marked patches its lead is smaller. Frame {first} matters most."
            )
        return lines

    def __str__(self) -> str:
        evidence = self.evidence[self.best_class]
        best = evidence.best_clip
        lines = [
            f"{self.prediction.video}: {self.prediction}",
            f"most like {evidence.clips[best]} (class {self.best_class}; {evidence.clip_scores[best]:.2f})",
        ]
        if self.parts:
            of_best = by_kernel({name: part[self.best_class] for name, part in self.parts.items()})
            shares = ", ".join(f"{MEANING[name]} {value:+.2f}" for name, value in of_best.items())
            lines.append(f"logit {self.logits[self.best_class]:.2f}: {shares}")
        if evidence.main is not None and evidence.main.strongest is not None:
            query, clip, frames, weight = evidence.main.strongest
            lines.append(
                f"strongest match: {_frames(query)} with {_frames(frames)} of {evidence.clips[clip]} "
                f"({evidence.main.kind} {weight:.2f})"
            )
        return "\n".join(lines)


@torch.inference_mode()
def explain(
    support: SupportSet, clip: EncodedClip, pixels: UInt8[Tensor, "L 3 S S"], prediction: Prediction
) -> Explanation:
    """Explain the prediction of a clip."""
    head, labels = support.model.head, support.labels
    logits = support.match({name: tensor[None] for name, tensor in clip.features.items()})

    def by_label(scores: Float[Tensor, "1 N"]) -> dict[str, float]:
        return dict(zip(labels, scores[0].tolist(), strict=True))

    label, rival = list(prediction.probabilities)[:2]
    importance = patch_importance(support, support.model.pool(pixels.to(support.device)), label, rival)
    evidence = _evidence(support, clip)
    shown = select_frames("segments", len(pixels), head.num_frames, None)  # a frame in the middle of each time step
    return Explanation(
        prediction=prediction,
        logits=by_label(logits.combined(support.qc_weight)),
        trm=by_label(logits.trm),
        qc=None if logits.qc is None else by_label(logits.qc),
        qc_weight=support.qc_weight,
        evidence=evidence,
        patch_importance=importance.cpu().numpy(),
        frames=pixels[shown].numpy(),
        thumbnails={label: np.stack([c.thumbnail[shown].numpy() for c in support.clips[label]]) for label in labels},
        matching=head.matching_name,
        parts=_parts(evidence),
    )


def _parts(evidence: Mapping[str, ClassEvidence]) -> dict[str, dict[str, float]]:
    names = [name for name in next(iter(evidence.values())).by_logit if name != "qc"]
    if len(names) < 2:
        return {}
    return {name: {label: found.by_logit[name].logit for label, found in evidence.items()} for name in names}


def _evidence(support: SupportSet, clip: EncodedClip) -> dict[str, ClassEvidence]:
    head, query = support.model.head, {name: tensor[None] for name, tensor in clip.features.items()}
    evidence: dict[str, ClassEvidence] = {}
    alone: dict[str, Tensor] = {}
    of_classes = support.explain(clip.features)
    for label in support.labels:
        clips = support.features(label)
        names = [example.name for example in support.clips[label]]
        found = ClassEvidence(names, of_classes[label], np.empty(0))
        scores = head.matching.clip_scores(_without_qc(clips), _without_qc(query))
        parts = [part for name, part in found.by_logit.items() if name != "qc"]
        if scores is not None:
            of_clips = scores[0]
        elif len(parts) > 1:  # a sum of kernels
            of_clips = torch.stack([part.contributions.sum((1, 2)) for part in parts]).sum(0)
        elif found.main is not None:
            of_clips = found.main.clip_scores
        else:
            alone = alone or _each_alone(support, query)
            of_clips = alone[label]
        evidence[label] = replace(found, clip_scores=of_clips.float().cpu().numpy())
    return evidence


def _each_alone(support: SupportSet, query: Encoded) -> dict[str, Float[Tensor, " K"]]:
    """Logit of each clip as a class of its own, by class."""
    head = support.model.head

    def match(clips: Encoded) -> Tensor:
        return head.match_encoded({name: tensor.unsqueeze(1) for name, tensor in clips.items()}, query).trm[0]

    if head.matching.per_class:
        return {label: match(support.features(label)) for label in support.labels}
    by_class = [support.features(label) for label in support.labels]
    together = match({name: torch.cat([clips[name] for clips in by_class]) for name in query})
    shots = [len(support.clips[label]) for label in support.labels]
    return dict(zip(support.labels, together.split(shots), strict=True))


def _without_qc(encoded: Encoded) -> Encoded:
    return {name: tensor for name, tensor in encoded.items() if not name.startswith("qc.")}


def _frames(frames: tuple[int, ...]) -> str:
    return "frame" + "s" * (len(frames) > 1) + " " + ", ".join(str(frame + 1) for frame in frames)
