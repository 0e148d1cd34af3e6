"""Choose the clips for an int8 export, and compare its labels with those of PyTorch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.clips import read_clip
from strm_lightning.classifier.export.parity import Agreement, leave_out, new_videos, predictions, use_examples
from strm_lightning.classifier.export.quantize import CALIBRATION_CLIPS
from strm_lightning.classifier.progress import bar_options
from strm_lightning.classifier.support import EncodedClip, SupportSet
from strm_lightning.classifier.videos import Video
from strm_lightning.errors import InputError

LEAST_AGREEMENT = 0.95  # share of the compared clips
_LEFT_OUT = 60  # examples that are left out at most


@dataclass(frozen=True)
class Int8Clips:
    """Clips for an int8 export; none is used both to measure ranges and to compare labels.

    Attributes:
        measured: videos that the ranges of activations are measured on.
        videos: videos to compare labels on.
        left_out: without such videos, examples to compare on, as in `SupportSet.left_out_clips`.
    """

    measured: Sequence[Video]
    videos: Sequence[Video]
    left_out: Sequence[tuple[int, int]]


def choose_clips(support: SupportSet, check: Sequence[Video]) -> Int8Clips:
    """Choose the clips for an int8 export.

    Ranges are measured on examples whose video files are still there, else on half of the videos of ``check``. Labels
    are compared on the (other) videos of ``check``, else on the other examples, which are left out one by one.

    Args:
        support: the examples.
        check: videos that are not among the examples.

    Raises:
        InputError: there is nothing to measure or to compare on.
    """
    if not support.clips:
        raise InputError("int8: needs examples, to compare its labels on: give --support")
    by_class = [[k for k, clip in enumerate(support.clips[label]) if has_file(clip)] for label in support.labels]
    positions = [[(c, k) for k in members] for c, members in enumerate(by_class)]
    if not any(positions):
        if len(check) < 2:
            raise InputError(
                "int8: needs videos, to measure the ranges of values on, and these examples have no video files: give "
                "--check, a folder of 2 or more videos, or --support, a folder of examples"
            )
        half = check[::2]
        measured = half[:: -(-len(half) // CALIBRATION_CLIPS)]
        return Int8Clips(measured, [video for video in check if not any(video is other for other in measured)], [])
    if not check:  # half of each class is left for the comparison
        positions = [members[: -(-len(members) // 2)] for members in positions]
    in_turn = (clip for turn in zip_longest(*positions) for clip in turn if clip is not None)
    measured_on = list(islice(in_turn, CALIBRATION_CLIPS))
    labels = support.labels
    files = [support.clips[labels[c]][k].name for c, k in measured_on]
    others = [(c, k) for c, k in support.left_out_clips() if k in by_class[c] and (c, k) not in measured_on]
    if not check and not others:
        raise InputError(
            "int8: needs videos, to compare its labels on, and no class has 2 examples: give --check, a folder of "
            "other videos"
        )
    return Int8Clips(files, check, [] if check else others[:_LEFT_OUT])


def has_file(clip: EncodedClip) -> bool:
    """Whether the video file of an example, or its folder of frames, is still there."""
    return not clip.stored and Path(clip.name).exists()


def check_agreement(
    classifier: FewShotClassifier, folder: Path, clips: Int8Clips, float_size: int, *, progress: bool = False
) -> Agreement:
    """Compare the labels of an int8 export with those of the classifier.

    Args:
        classifier: the classifier, with examples.
        folder: the exported folder.
        clips: the clips to compare on.
        float_size: bytes of the encoding before it was converted.
        progress: show a progress bar.

    Raises:
        InputError: labels differ in more than 5 % of the clips, or no clip could be compared.
        VideoError: a video cannot be read.
    """
    from strm_lightning.classifier.export.predict import Classifier

    exported = Classifier(folder, threads=torch.get_num_threads())
    count = len(clips.videos) + len(clips.left_out)
    compared = tqdm(
        _compared(classifier, exported, clips),
        "Comparing int8",
        count,
        unit="clip",
        disable=not progress,
        **bar_options(),
    )
    differences, different = [], 0
    for clip, query, support in compared:
        label, expected, found, probabilities = predictions(classifier, exported, clip, query, support)
        different += label != found
        differences.append(max(abs(expected[name] - probabilities[name]) for name in expected))
    if not differences:
        raise InputError("int8: no clip could be compared with PyTorch: give --check, a folder of other videos")
    size = (folder / "encode.onnx").stat().st_size
    result = Agreement(len(differences), different, max(differences), size, float_size)
    if different > (1 - LEAST_AGREEMENT) * len(differences):
        raise InputError(
            f"the export is not written: with int8, {different} of {len(differences)} labels differ from PyTorch's "
            f"(at most {1 - LEAST_AGREEMENT:.0%} may): export without int8, or compare on more videos with --check"
        )
    return result


def _compared(
    classifier: FewShotClassifier, exported: Any, clips: Int8Clips
) -> Iterator[tuple[EncodedClip, dict[str, np.ndarray], SupportSet]]:
    """Yield each clip of PyTorch, the tensors of the export, and the examples that both match it with.

    Both encode the same pixels, since `check_parity` has already compared how the exported program reads files.
    """
    for _, clip, pixels in new_videos(classifier, clips.videos):
        yield clip, exported.encode(pixels.numpy()), classifier.support
    for clip, others in leave_out(classifier.support, clips.left_out):
        if use_examples(exported, others):
            yield clip, exported.encode(read_clip(clip.name, classifier.preprocessing).numpy()), others
