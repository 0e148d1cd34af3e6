"""Load the videos of each stage and class from a root and a split."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from strm_lightning.data.decode.video import VideoError
from strm_lightning.data.detect import list_videos
from strm_lightning.data.sources.base import LayoutOption, Listing, VideoStore
from strm_lightning.data.splits.match import match_split
from strm_lightning.data.splits.split import SplitOption, resolve_split
from strm_lightning.data.splits.stages import STAGES, Stage
from strm_lightning.errors import InputError
from strm_lightning.messages import count_of, some_of

__all__ = ["DataWarning", "VideoSet", "VideoStore", "load_video_sets", "open_store"]

Unreadable = Literal["skip", "refuse"]
ShortClips = Literal["repeat", "drop"]


class DataWarning(UserWarning):
    """The data has a problem that does not prevent training, such as missing or unreadable videos."""


@dataclass(frozen=True)
class VideoSet:
    """The videos of one stage.

    Attributes:
        stage: train, val or test.
        store: store of the videos of all stages.
        class_names: classes that have videos, ascending.
        members: rows of each class in the store, ascending.
        missing: entries of the split that are not on disk.
        unreadable: names of the videos that cannot be read, ascending.
    """

    stage: Stage
    store: VideoStore
    class_names: tuple[str, ...]
    members: tuple[Int[np.ndarray, " _"], ...]
    missing: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    @cached_property
    def exact(self) -> bool:
        """Whether no number of frames is an estimate, so that all damaged videos are known."""
        return all(self.store.estimated.isdisjoint(rows.tolist()) for rows in self.members)

    @cached_property
    def labels(self) -> Int[np.ndarray, " V"]:
        """Class index of each row of the store; -1 for videos of other stages."""
        labels = np.full(len(self.store.videos), -1)
        for label, rows in enumerate(self.members):
            labels[rows] = label
        return labels


def open_store(root: str | Path, layout: LayoutOption = "auto", *, unreadable: Unreadable = "skip") -> VideoStore:
    """Open all videos under a root.

    Args:
        root: folder or zip.
        layout: ``videos`` in class folders, folders of ``frames``, one ``zip`` of such folders, a frame ``cache``, or
            ``flat`` videos in one folder; ``auto`` detects it.
        unreadable: ``skip`` unreadable videos with a warning, or ``refuse`` them with an error.

    Raises:
        MissingFileError: the root does not exist.
        InputError: the root is empty or of another layout.
        VideoError: no video can be read, or (``refuse``) some cannot.
    """
    listing = list_videos(root, layout)
    return _open(listing, list(listing.paths), unreadable, progress=True)


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
    listing: Listing | None = None,
    progress: bool = True,
    exact: Collection[Stage] = STAGES,
) -> dict[Stage, VideoSet]:
    """Open the videos of a split, and group them by stage and class.

    Entries of the split that are not on disk are skipped with a warning, since videos of data sets on the web get lost.
    A stage without classes in the split has no video set.

    Args:
        root: folder or zip.
        split: see `resolve_split`.
        lists: folder of the list files of the split.
        layout: layout of the videos under the root; ``auto`` detects it.
        num_frames: frames of a clip, L.
        short_clips: for videos of fewer than L frames, ``repeat`` frames, or ``drop`` the video with a warning.
        unreadable: ``skip`` unreadable videos with a warning, or ``refuse`` them with an error.
        seed: seed of the shuffle of classes for shares.
        listing: listing of the videos under the root, for a layout of your own; None for `list_videos`.
        progress: show progress bars on stderr.
        exact: stages whose frames are counted; for the others, estimates are enough, see `Listing.estimate`.

    Raises:
        MissingFileError: the root or the lists do not exist.
        InputError: as `open_store` and `resolve_split`, the listing is empty, or no video of the split is on disk.
    """
    listing = list_videos(root, layout) if listing is None else listing
    if not listing.paths:
        raise InputError(f"no videos under {root} (layout {listing.layout!r})")
    resolved = resolve_split(split, lists=lists, class_names=listing.class_names, seed=seed)
    match = match_split(listing, resolved)
    if not match.names:
        raise InputError(f"no video of split {resolved.name!r} is under {root}, which has {listing.summary}")
    if match.missing:
        _warn(match.missing_message(resolved, root))
    counted = {name for stage in exact for names in match.found.get(stage, {}).values() for name in names}
    estimated = [name for name in match.names if name not in counted]
    store = _open(listing, match.names, unreadable, progress=progress, estimated=estimated)
    short = {name for name, n in zip(store.videos, store.frame_counts.tolist(), strict=True) if n < num_frames}
    if short and short_clips == "drop":
        _warn(some_of(f"dropped {count_of(short, 'video')} with fewer than {num_frames} frames", short))
    dropped = short if short_clips == "drop" else set()
    row_of = {name: row for row, name in enumerate(store.videos) if name not in dropped}
    return {
        stage: _video_set(stage, store, classes, row_of, match.missing.get(stage, ()))
        for stage, classes in match.found.items()
    }


def _open(
    listing: Listing, names: Sequence[str], unreadable: Unreadable, *, progress: bool, estimated: Sequence[str] = ()
) -> VideoStore:
    counts, estimates = listing.estimate(estimated, progress=progress) if estimated else ({}, set())
    if counted := [name for name in names if name not in counts]:
        counts = counts | listing.count(counted, progress=progress)
    bad = {name: reason for name, reason in sorted(counts.items()) if isinstance(reason, str)}
    good = {name: count for name, count in counts.items() if isinstance(count, int)}
    reasons = [f"{name} ({reason})" for name, reason in bad.items()]
    if bad and unreadable == "refuse":
        raise VideoError(some_of(f"{listing.root}: {count_of(bad, 'video')} cannot be read", reasons))
    if not good:
        raise VideoError(some_of(f"{listing.root}: none of {count_of(bad, 'video')} can be read", reasons))
    if bad:
        _warn(some_of(f"skipped {count_of(bad, 'video')} under {listing.root} that cannot be read", reasons))
    store = listing.open(good, bad)
    store.estimated = frozenset(row for row, name in enumerate(store.videos) if name in estimates)
    return store


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
    unreadable = sorted({v for names in classes.values() for v in names if v in store.unreadable})
    members = tuple(rows[name] for name in present)
    return VideoSet(stage, store, tuple(present), members, tuple(missing), tuple(unreadable))


def _warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=4)
