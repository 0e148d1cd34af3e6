"""From a root and a split to the videos of each stage and class."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, SupportsIndex

import numpy as np
from jaxtyping import Int

from strm_lightning.data.decode.video import VideoError
from strm_lightning.data.detect import list_videos
from strm_lightning.data.sources.base import LayoutOption, Listing, VideoStore, count_of, some_of
from strm_lightning.data.splits.match import match_split
from strm_lightning.data.splits.split import SplitOption, Stage, resolve_split
from strm_lightning.errors import InputError

__all__ = ["DataWarning", "VideoSet", "VideoStore", "load_video_sets", "open_store"]

Unreadable = Literal["skip", "refuse"]
ShortClips = Literal["repeat", "drop"]


class DataWarning(UserWarning):
    """Something about the data that training survives and a user should know: how many, and which."""


@dataclass(frozen=True)
class VideoSet:
    """The videos of one stage.

    Attributes:
        stage: train, val or test.
        store: where all stages' videos are read.
        class_names: classes that have videos, ascending.
        members: rows of the store, ascending, for each class.
        missing: entries of the split that are not on disk.
    """

    stage: Stage
    store: VideoStore
    class_names: tuple[str, ...]
    members: tuple[Int[np.ndarray, " _"], ...]
    missing: tuple[str, ...] = ()

    @cached_property
    def labels(self) -> Int[np.ndarray, " V"]:
        """Class of every row of the store; -1 for videos of other stages."""
        labels = np.full(len(self.store.videos), -1)
        for label, rows in enumerate(self.members):
            labels[rows] = label
        return labels

    def class_of(self, row: SupportsIndex) -> int:
        """The class of a row of the store, as an index into ``class_names``."""
        return int(self.labels[row])


def open_store(
    root: str | Path,
    layout: LayoutOption = "auto",
    *,
    unreadable: Unreadable = "skip",
    progress: bool = True,
) -> VideoStore:
    """Open every video under a folder.

    Args:
        root: the folder (or zip).
        layout: ``videos`` in class folders, folders of ``frames``, one ``zip`` of such, a frame ``cache``, or ``flat``
            videos whose classes only list files tell; ``auto`` looks.
        unreadable: leave damaged files out with a warning, or refuse to go on.
        progress: draw a bar on stderr where opening takes long.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is empty or laid out otherwise, or (``refuse``) holds files that cannot be read.
    """
    listing = list_videos(root, layout)
    return _open(listing, list(listing.places), unreadable, progress)


def load_video_sets(
    root: str | Path,
    split: SplitOption,
    *,
    lists: str | None = None,
    layout: LayoutOption = "auto",
    num_frames: int = 8,
    short_clips: ShortClips = "repeat",
    unreadable: Unreadable = "skip",
    seed: int = 0,
    progress: bool = True,
) -> dict[Stage, VideoSet]:
    """Open the videos under a folder that a split names, and sort them into stages and classes.

    Entries of a split that are not on disk are left out with a warning: data sets that live on the web lose videos.
    A stage for which the split names no classes has no video set.

    Args:
        root: the folder.
        split: see `resolve_split`.
        lists: folder of the split's list files.
        layout: how videos lie under the root; ``auto`` looks.
        num_frames: frames of a clip, which decide what is short.
        short_clips: keep videos of fewer frames, which then repeat some, or drop them with a warning.
        unreadable: leave damaged files out with a warning, or refuse to go on.
        seed: of the shuffle of classes for shares.
        progress: draw a bar on stderr where opening takes long.

    Raises:
        FileNotFoundError: no such root or lists.
        ValueError: as `open_store` and `resolve_split`, or none of the split's videos is there.
    """
    listing = list_videos(root, layout)
    resolved = resolve_split(split, lists=lists, class_names=listing.class_names, seed=seed)
    match = match_split(listing, resolved)
    if not match.names:
        raise InputError(f"none of the videos of split {resolved.name!r} is under {root}; there are {listing.summary}")
    if match.missing:
        _warn(match.lacking(resolved, root))
    store = _open(listing, match.names, unreadable, progress)
    short = {name for name, n in zip(store.videos, store.frame_counts.tolist(), strict=True) if n < num_frames}
    if short and short_clips == "drop":
        _warn(some_of(f"dropped {count_of(short, 'video')} of fewer than {num_frames} frames", short))
    dropped = short if short_clips == "drop" else set()
    row_of = {name: row for row, name in enumerate(store.videos) if name not in dropped}
    return {
        stage: _video_set(stage, store, classes, row_of, match.missing.get(stage, ()))
        for stage, classes in match.found.items()
    }


def _open(listing: Listing, names: Sequence[str], unreadable: Unreadable, progress: bool) -> VideoStore:
    counts = listing.count(names, progress=progress)
    bad = {name: reason for name, reason in sorted(counts.items()) if isinstance(reason, str)}
    good = {name: count for name, count in counts.items() if isinstance(count, int)}
    reasons = [f"{name} ({reason})" for name, reason in bad.items()]
    if bad and unreadable == "refuse":
        raise VideoError(some_of(f"{listing.root}: {count_of(bad, 'video')} cannot be read", reasons))
    if not good:
        raise VideoError(some_of(f"{listing.root}: none of {count_of(bad, 'video')} can be read", reasons))
    if bad:
        _warn(some_of(f"left out {count_of(bad, 'video')} under {listing.root} that cannot be read", reasons))
    return listing.open(good, bad)


def _video_set(
    stage: Stage,
    store: VideoStore,
    classes: Mapping[str, list[str]],
    row_of: Mapping[str, int],
    missing: Sequence[str],
) -> VideoSet:
    rows = {
        name: np.array(sorted({row_of[v] for v in classes[name] if v in row_of}), dtype=np.int64) for name in classes
    }
    present = sorted(name for name in rows if len(rows[name]))
    return VideoSet(stage, store, tuple(present), tuple(rows[name] for name in present), tuple(missing))


def _warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=4)
