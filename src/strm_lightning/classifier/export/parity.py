"""Compare the predictions of an exported folder with those of PyTorch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.export import graphs
from strm_lightning.classifier.export.graphs import example_arrays
from strm_lightning.classifier.progress import bar_options
from strm_lightning.classifier.support import EncodedClip, SupportSet
from strm_lightning.classifier.videos import Video
from strm_lightning.errors import InputError
from strm_lightning.moving_shapes import ACTIONS, render_clip

_T = TypeVar("_T")
TOLERANCE = 0.01  # largest difference of a probability
_LEFT_OUT = 24  # examples that are left out
_DRAWN = 4  # clips of moving shapes
_WAY, _SHOTS = 3, 2  # of the support of moving shapes, if there are no examples


@dataclass(frozen=True)
class Agreement:
    """How far the predictions of an int8 export are those of PyTorch.

    Attributes:
        compared: number of clips; the ranges of activations were not measured on them.
        different: number of them with another label.
        difference: largest difference of a probability.
        size: bytes of the encoding.
        float_size: bytes of the encoding before it was converted.
    """

    compared: int
    different: int
    difference: float
    size: int
    float_size: int

    def __str__(self) -> str:
        return (
            f"int8: {self.different} of {self.compared} labels differ from PyTorch's; probabilities differ by at most "
            f"{self.difference:.2f}; encode.onnx has {self.size / 1e6:.1f} MB, in float {self.float_size / 1e6:.1f} MB"
        )


@dataclass(frozen=True)
class Parity:
    """What was compared, and how much the predictions differ.

    Attributes:
        videos: number of videos of the user, from the file to the label.
        left_out: number of examples, each matched with the others.
        drawn: number of clips of moving shapes, encoded and matched.
        difference: largest difference of a probability.
        int8: the comparison after the encoding was converted to int8; the other numbers are those before it.
    """

    videos: int
    left_out: int
    drawn: int
    difference: float
    int8: Agreement | None = None

    def __str__(self) -> str:
        counts = {"videos": self.videos, "left-out examples": self.left_out, "drawn clips": self.drawn}
        compared = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        same = f"the same labels as PyTorch on {compared}; probabilities differ by at most {self.difference:.1e}"
        return same if self.int8 is None else f"{self.int8} (before int8: {same})"


def check_parity(
    classifier: FewShotClassifier, folder: Path, videos: Sequence[Video], *, progress: bool = False
) -> Parity:
    """Compare labels and probabilities of an exported folder with those of the classifier.

    Videos are compared from the file to the label; those with the same pixels as an example are skipped. Without
    videos, examples are left out one by one and matched with the others (from the file, if it is known and still
    there), and clips of moving shapes are encoded and matched with all examples.

    Args:
        classifier: the classifier; without examples, some clips of moving shapes are its examples.
        folder: the exported folder.
        videos: videos that are not among the examples.
        progress: show a progress bar.

    Raises:
        InputError: labels or probabilities differ, or all videos are among the examples.
        VideoError: a video cannot be read.
    """
    from strm_lightning.classifier.export.predict import Classifier

    exported = Classifier(folder, threads=torch.get_num_threads())
    support = classifier.support
    if not support.clips:
        support = _drawn_support(classifier)
        use_examples(exported, support)

    def shown(clips: Iterable[_T], count: int) -> Iterable[_T]:
        return tqdm(
            clips, "Comparing predictions", count, unit="clip", disable=not (progress and count), **bar_options()
        )

    differences = [
        _difference(classifier, exported, clip, exported.encode(_read(exported, video, pixels)), support)
        for video, clip, pixels in shown(new_videos(classifier, videos), len(videos))
    ]
    if videos:
        if not differences:
            raise InputError("check: all videos are among the examples; give others")
        return Parity(len(differences), 0, 0, max(differences))
    drawn = [
        _difference(classifier, exported, clip, exported.encode(pixels.numpy()), support)
        for clip, pixels in _drawn_clips(classifier, range(_WAY * _SHOTS, _WAY * _SHOTS + _DRAWN))
    ]
    left_out = []
    chosen = classifier.support.left_out_clips()[:_LEFT_OUT]
    for clip, others in shown(leave_out(classifier.support, chosen), len(chosen)):
        if use_examples(exported, others):
            path = Path(clip.name)
            from_file = not clip.stored and path.is_file()
            query = exported.encode(exported.read_clip(path)) if from_file else _arrays(clip)
            left_out.append(_difference(classifier, exported, clip, query, others))
    return Parity(0, len(left_out), len(drawn), max(drawn + left_out))


def predictions(
    classifier: FewShotClassifier,
    exported: Any,
    clip: EncodedClip,
    query: Mapping[str, np.ndarray],
    support: SupportSet,
) -> tuple[str, Mapping[str, float], str, Mapping[str, float]]:
    """Return label and probabilities of PyTorch, and label and probabilities of the export, for one clip."""
    logits = support.match({name: tensor[None] for name, tensor in clip.features.items()})
    label, expected = exported.decide(logits.combined(classifier.qc_weight)[0].double().numpy())
    if support is classifier.support:
        prediction = classifier.predict_encoded(clip)
        label, expected = prediction.label, prediction.probabilities
    return label, expected, *exported.decide(exported.logits(query))


def _difference(
    classifier: FewShotClassifier,
    exported: Any,
    clip: EncodedClip,
    query: Mapping[str, np.ndarray],
    support: SupportSet,
) -> float:
    """Return the largest difference of a probability between PyTorch and the export, for one clip.

    Raises:
        InputError: it is above the tolerance, or the labels differ.
    """
    label, expected, found, probabilities = predictions(classifier, exported, clip, query, support)
    difference = max(abs(expected[name] - probabilities[name]) for name in expected)
    first, second, *_ = sorted(expected.values(), reverse=True)
    if difference > TOLERANCE or (label != found and first - second > TOLERANCE):
        raise InputError(
            f"the export is not written: its prediction for {clip.name} differs from PyTorch's: {found} instead of "
            f"{label}, a probability differs by {difference:.3f}"
        )
    return difference


def new_videos(
    classifier: FewShotClassifier, videos: Sequence[Video]
) -> Iterator[tuple[Video, EncodedClip, UInt8[Tensor, "L 3 S S"]]]:
    """Encode the videos that do not have the same pixels as an example."""
    known = {clip.digest for clips in classifier.support.clips.values() for clip in clips}
    for video in videos:
        clip, pixels = classifier.encode_one(video)
        if clip.digest not in known:
            yield video, clip, pixels


def _drawn_clips(
    classifier: FewShotClassifier, seeds: Sequence[int]
) -> Iterator[tuple[EncodedClip, UInt8[Tensor, "L 3 S S"]]]:
    how = classifier.preprocessing
    for seed in seeds:
        action, frames = ACTIONS[seed % len(ACTIONS)], 2 * how.num_frames
        yield classifier.encode_one(
            render_clip(action, np.random.default_rng(seed), size=how.image_size, num_frames=frames)
        )


def _drawn_support(classifier: FewShotClassifier) -> SupportSet:
    support = SupportSet(classifier.model, classifier.qc_weight)
    for number, (clip, _) in enumerate(_drawn_clips(classifier, range(_WAY * _SHOTS))):
        support.add(f"class {number % _WAY}", [clip])
    return support


def leave_out(support: SupportSet, clips: Sequence[tuple[int, int]]) -> Iterator[tuple[EncodedClip, SupportSet]]:
    """Yield examples, given as in `SupportSet.left_out_clips`, each with the support set without it."""
    labels = support.labels
    for c, k in clips:
        others = SupportSet(support.model, support.qc_weight)
        for label in labels:
            members = support.clips[label]
            others.add(label, [replace(clip) for i, clip in enumerate(members) if (label, i) != (labels[c], k)])
        yield support.clips[labels[c]][k], others


def use_examples(exported: Any, support: SupportSet) -> bool:
    """Replace the examples of an exported classifier; return False if its graph cannot match them.

    With one clip of each class, ``auto`` is another method than with several.
    """
    arrays, chunks = example_arrays(support)
    needed = {put.name for put in exported.matching.get_inputs() if not put.name.startswith(graphs.QUERY)}
    if needed != {name.partition("/")[2] for name in arrays}:
        return False
    exported.examples, exported.labels, exported.chunks = arrays, support.labels, chunks
    return True


def _read(exported: Any, video: Video, pixels: UInt8[Tensor, "L 3 S S"]) -> np.ndarray:
    from_file = isinstance(video, (str, Path)) and Path(video).is_file()
    return exported.read_clip(video) if from_file else pixels.numpy()


def _arrays(clip: EncodedClip) -> dict[str, np.ndarray]:
    return {name: tensor[None].numpy() for name, tensor in clip.features.items()}
