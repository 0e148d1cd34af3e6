"""Check example videos, encode them and add them to a support set."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from strm_lightning.classifier.clips import as_list, is_one
from strm_lightning.classifier.predictions import UNKNOWN
from strm_lightning.classifier.progress import bar_options
from strm_lightning.classifier.support import EncodedClip, SupportSet
from strm_lightning.classifier.videos import Video, Videos
from strm_lightning.data.decode.video import VideoError
from strm_lightning.data.video_sets import DataWarning
from strm_lightning.errors import InputError, InputTypeError

Encode = Callable[[Iterable[Video]], Iterator[EncodedClip | VideoError]]


def by_class(
    videos: Mapping[str, Videos] | Videos, labels: Sequence[str] | np.ndarray | None
) -> dict[str, list[Video]]:
    """Group videos by class.

    Args:
        videos: videos of each class, or a sequence of videos.
        labels: class of each video, if ``videos`` is a sequence.

    Raises:
        InputTypeError: the value of a class is one video instead of a list.
        InputError: the numbers of labels and videos differ.
    """
    if isinstance(videos, Mapping):
        for label, members in videos.items():
            if is_one(members):
                raise InputTypeError(f"class {label!r}: give a list of videos, not {type(members).__name__}")
        return {str(label): as_list(members) for label, members in videos.items()}
    if labels is None or len(labels) != len(videos):
        raise InputError(f"{len(videos)} videos and {0 if labels is None else len(labels)} labels: give one for each")
    grouped: dict[str, list[Video]] = {}
    for video, label in zip(as_list(videos), labels, strict=True):
        grouped.setdefault(str(label), []).append(video)
    return grouped


def check_labels(labels: Iterable[str]) -> None:
    """Check that no class has the label of rejected videos.

    Raises:
        InputError: a class is named ``unknown``.
    """
    if UNKNOWN in labels:
        raise InputError(f"class {UNKNOWN!r}: this is the label of rejected videos; rename the class, such as 'other'")


def add_examples(
    support: SupportSet, videos: Mapping[str, Sequence[Video]], encode: Encode, *, progress: bool = False
) -> None:
    """Encode videos and add them to a support set.

    Videos that cannot be read are left out with a `DataWarning`; clips with identical pixels are added with one.

    Args:
        support: the support set; not changed if an error is raised.
        videos: videos of each class.
        encode: encodes videos in order.
        progress: show a progress bar.

    Raises:
        InputError: a class has no readable clip.
    """
    labels = [label for label, members in videos.items() for _ in members]
    clips = encode(video for members in videos.values() for video in members)
    bar = tqdm(clips, "Encoding examples", len(labels), unit="clip", disable=not progress, **bar_options())
    seen = {clip.digest: (label, clip.name) for label, group in support.clips.items() for clip in group}
    encoded: dict[str, list[EncodedClip]] = {label: [] for label in videos}
    failed: dict[str, list[VideoError]] = {label: [] for label in videos}
    for label, clip in zip(labels, bar, strict=True):
        if isinstance(clip, VideoError):
            failed[label].append(clip)
            continue
        other, name = seen.setdefault(clip.digest, (label, clip.name))
        if (other, name) != (label, clip.name) or clip.digest in {c.digest for c in encoded[label]}:
            _warn(f"{clip.name} (class {label!r}) shows the same as {name} (class {other!r})")
        encoded[label].append(clip)
    for label, errors in failed.items():
        if not encoded[label] and label not in support.clips:
            raise InputError(f"class {label!r} has no readable clip: {errors[0] if errors else 'its list is empty'}")
        for error in errors:
            _warn(f"left out of class {label!r}: {error}")
    for label, members in encoded.items():
        support.add(label, members)


def _warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=4)
