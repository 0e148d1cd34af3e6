"""Videos as they lie on disk, behind one face: names, frame counts, and the frames that are asked for."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, SupportsIndex

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from strm_lightning.data.index import count_all
from strm_lightning.data.layouts import Layout, Listing, list_videos
from strm_lightning.data.names import VideoFinder
from strm_lightning.data.splits import STAGES, Split, SplitOption, Stage, class_finder, resolve_split
from strm_lightning.data.videos import VideoError, read_frames

Unreadable = Literal["skip", "refuse"]
ShortClips = Literal["repeat", "drop"]


class DataWarning(UserWarning):
    """Something about the data that training survives and a user should know: how many, and which."""


class VideoStore(ABC):
    """Videos that can be read, in the order of their names. May be pickled; files are opened where they are read.

    Attributes:
        videos: name of each video, ``class/name``, ascending (``name`` alone in a flat folder).
        frame_counts: frames that each video has, ``[V]``.
        unreadable: what is wrong with each video that was left out, by name.
    """

    videos: Sequence[str]
    frame_counts: Int[np.ndarray, " V"]
    unreadable: Mapping[str, str]

    @abstractmethod
    def path_of(self, row: SupportsIndex) -> Path:
        """The file or folder of a video."""

    @abstractmethod
    def read(self, row: SupportsIndex, frames: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
        """Frames of a video by number, ascending, with repeats; RGB.

        Raises:
            VideoError: the video has changed or vanished since the store was opened.
        """


class FileStore(VideoStore):
    """A folder of video files, decoded anew at every read."""

    def __init__(
        self, files: Mapping[str, Path], frame_counts: Mapping[str, int], unreadable: Mapping[str, str]
    ) -> None:
        self.videos = sorted(frame_counts)
        self.frame_counts = np.array([frame_counts[name] for name in self.videos], dtype=np.int64)
        self.unreadable = unreadable
        self._paths = [str(files[name]) for name in self.videos]

    def path_of(self, row: SupportsIndex) -> Path:
        """The video file."""
        return Path(self._paths[row])

    def read(self, row: SupportsIndex, frames: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
        """Decode up to the last of these frames."""
        return read_frames(self._paths[row], frames)


@dataclass(frozen=True)
class VideoSet:
    """The videos of one stage.

    Attributes:
        stage: train, val or test.
        store: where all stages' videos are read.
        class_names: classes that have videos, ascending.
        members: rows of the store, ascending, for each class.
    """

    stage: Stage
    store: VideoStore
    class_names: tuple[str, ...]
    members: tuple[Int[np.ndarray, " _"], ...]

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
    layout: Layout | Literal["auto"] = "auto",
    *,
    unreadable: Unreadable = "skip",
    progress: bool = True,
) -> VideoStore:
    """Open every video under a folder.

    Args:
        root: the folder, ``root/<class>/<video>.<mp4|avi|webm|mkv|mov>``.
        layout: how videos lie there; ``auto`` looks.
        unreadable: leave damaged files out with a warning, or refuse to go on.
        progress: draw a bar on stderr where opening takes long.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is empty or laid out otherwise, or (``refuse``) holds files that cannot be read.
    """
    return _open(list_videos(root, layout), None, unreadable, progress)


def load_video_sets(
    root: str | Path,
    split: SplitOption,
    *,
    lists: str | None = None,
    layout: Layout | Literal["auto"] = "auto",
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
    wanted = _wanted(listing, resolved)
    names = {name for classes in wanted.values() for videos in classes.values() for name in videos}
    if not names:
        raise ValueError(f"none of the videos of split {resolved.name!r} is under {root}; {listing.summary}")
    store = _open(listing, names, unreadable, progress)
    short = {name for name, n in zip(store.videos, store.frame_counts.tolist(), strict=True) if n < num_frames}
    if short and short_clips == "drop":
        _warn(f"dropped {_count(short, 'video')} of fewer than {num_frames} frames", short)
    dropped = short if short_clips == "drop" else set()
    row_of = {name: row for row, name in enumerate(store.videos) if name not in dropped}
    return {stage: _video_set(stage, store, classes, row_of) for stage, classes in wanted.items() if classes}


def _open(listing: Listing, names: Iterable[str] | None, unreadable: Unreadable, progress: bool) -> VideoStore:
    files = listing.files if names is None else {name: listing.files[name] for name in names}
    counts = count_all(listing.root, files, progress=progress)
    bad = {name: reason for name, reason in sorted(counts.items()) if isinstance(reason, str)}
    good = {name: count for name, count in counts.items() if isinstance(count, int)}
    reasons = [f"{name} ({reason})" for name, reason in bad.items()]
    if bad and unreadable == "refuse":
        raise VideoError(_listed(f"{listing.root}: {_count(bad, 'video')} cannot be read", reasons))
    if not good:
        raise VideoError(_listed(f"{listing.root}: none of {_count(bad, 'video')} can be read", reasons))
    if bad:
        _warn(f"left out {_count(bad, 'video')} under {listing.root} that cannot be read", reasons)
    return FileStore(files, good, bad)


def _wanted(listing: Listing, split: Split) -> dict[Stage, dict[str, list[str]]]:
    """Names on disk for each stage and class of the split; warns of what is not there."""
    wanted: dict[Stage, dict[str, list[str]]] = {stage: {} for stage in STAGES}
    missing = []
    if split.videos is None:
        find = class_finder(listing.class_names)
        for stage in STAGES:
            for name in split.classes[stage]:
                found = find(name)
                wanted[stage][name] = listing.by_class[found] if found else []
                missing += [] if found else [name]
        total, what = sum(map(len, split.classes.values())), "classes"
    else:
        finder = VideoFinder(listing.files, [name for stage in STAGES for name in split.classes[stage]])
        for stage in STAGES:
            for name, video in split.videos[stage]:
                match = finder.find(name, video)
                wanted[stage].setdefault(name, []).extend([match.name] if match else [])
                missing += [] if match else [f"{name}/{video}"]
        total, what = sum(map(len, split.videos.values())), "videos"
    if missing:
        _warn(f"{len(missing)} of {total} {what} of split {split.name!r} are not under {listing.root}", missing)
    return wanted


def _video_set(
    stage: Stage, store: VideoStore, classes: Mapping[str, list[str]], row_of: Mapping[str, int]
) -> VideoSet:
    rows = {
        name: np.array(sorted({row_of[v] for v in classes[name] if v in row_of}), dtype=np.int64) for name in classes
    }
    present = sorted(name for name in rows if len(rows[name]))
    return VideoSet(stage, store, tuple(present), tuple(rows[name] for name in present))


def _warn(claim: str, items: Iterable[str]) -> None:
    warnings.warn(_listed(claim, items), DataWarning, stacklevel=4)


def _listed(claim: str, items: Iterable[str], most: int = 3) -> str:
    items = sorted(items)
    return f"{claim}: {', '.join(items[:most])}{' …' if len(items) > most else ''}"


def _count(items: Iterable[str], noun: str) -> str:
    number = len(list(items))
    return f"{number} {noun}{'' if number == 1 else 's'}"
