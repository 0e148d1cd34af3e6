"""Interfaces of a layout: a listing of the videos under a root, and a store that reads their frames."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, SupportsIndex

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from strm_lightning.data.decode.video import VideoError
from strm_lightning.data.sampling import FramePolicy
from strm_lightning.messages import count_of

Layout = Literal["videos", "frames", "zip", "cache", "flat"]
LayoutOption = Literal["auto", "videos", "frames", "zip", "cache", "flat"]

GONE = "gone"  # stamp of a source that cannot be read


class VideoStore(ABC):
    """Reads frames of videos. A store can be pickled; files are opened on first read.

    Args:
        frame_counts: number of frames of each video, by name.
        unreadable: error of each video that was left out, by name.

    Attributes:
        videos: names of the videos, ``class/video``, ascending (``video`` in a flat folder).
        frame_counts: number of frames of each video, ``[V]``.
        unreadable: error of each video that was left out, by name.
        estimated: rows whose number of frames is an estimate, which `read_chosen` checks; see `Listing.estimate`.
    """

    videos: list[str]
    frame_counts: Int[np.ndarray, " V"]
    unreadable: Mapping[str, str]
    estimated: frozenset[int] = frozenset()

    def __init__(self, frame_counts: Mapping[str, int], unreadable: Mapping[str, str]) -> None:
        self.videos = sorted(frame_counts)
        self.frame_counts = np.array([frame_counts[name] for name in self.videos], dtype=np.int64)
        self.unreadable = dict(unreadable)

    @abstractmethod
    def path_of(self, row: SupportsIndex) -> Path:
        """Path of the file or folder of a video."""

    def stamp(self, row: SupportsIndex) -> str:
        """Return a text that changes when the source of a video changes (the size and modification time of its file).

        Raises:
            VideoError: the source cannot be read.
        """
        if (stamp := self._stamp(row)) == GONE:
            raise VideoError(f"{self.path_of(row)}: cannot be read")
        return stamp

    def _stamp(self, row: SupportsIndex) -> str:
        return stamp_of_file(str(self.path_of(row)))

    @abstractmethod
    def read(self, row: SupportsIndex, frames: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
        """Read RGB frames of a video by number.

        Args:
            row: index of the video.
            frames: frame numbers, ascending; repeats are allowed.

        Raises:
            VideoError: the video is missing, damaged, or has changed since the store was opened.
        """

    def read_chosen(
        self, row: SupportsIndex, choose: Callable[[int], Sequence[int]]
    ) -> tuple[UInt8[Tensor, "n H W 3"], int]:
        """Read frames that depend on the number of frames; return also this number.

        Args:
            row: index of the video.
            choose: function of the number of frames that returns frame numbers, as for `read`.

        Raises:
            VideoError: as `read`.
        """
        number = int(self.frame_counts[row])
        return self.read(row, choose(number)), number

    def check_supports(self, policy: FramePolicy, num_frames: int, short_side: int) -> None:
        """Check that the store contains all frames that a policy can choose, and that they are large enough.

        Only frame caches, which may omit or shrink frames, can fail.

        Raises:
            InputError: frames are missing or too small.
        """
        del policy, num_frames, short_side


class PathStore(VideoStore):
    """Store of videos that are a file or a folder each.

    Args:
        paths: path of each video, by name.
        frame_counts: see `VideoStore`.
        unreadable: see `VideoStore`.
    """

    def __init__(
        self, paths: Mapping[str, str], frame_counts: Mapping[str, int], unreadable: Mapping[str, str]
    ) -> None:
        super().__init__(frame_counts, unreadable)
        self._paths = [paths[name] for name in self.videos]

    def path_of(self, row: SupportsIndex) -> Path:
        """Path of the file or folder of a video."""
        return Path(self._paths[row])


@dataclass(frozen=True)
class Listing(ABC):
    """The names of the videos under a root.

    Attributes:
        root: the folder or file.
        paths: path of each video, by name (``class/video``), ascending; strings, since there may be 200,000.
    """

    root: Path
    paths: Mapping[str, str]

    @property
    @abstractmethod
    def layout(self) -> str:
        """Name of the layout."""

    @abstractmethod
    def count(self, names: Sequence[str], *, progress: bool) -> dict[str, int | str]:
        """Count the frames of videos; return the number of frames, or the error as text, of each."""

    def estimate(self, names: Sequence[str], *, progress: bool) -> tuple[dict[str, int | str], set[str]]:
        """Do `count` faster, if the store can check the numbers of frames when it reads the videos.

        Returns:
            The result of `count`, and the names whose number is an estimate.
        """
        return self.count(names, progress=progress), set()

    def record(self, counts: Mapping[str, int]) -> None:
        """Keep numbers of frames that the store has found for estimates, so that `count` does not count them again."""
        del counts

    @abstractmethod
    def open(self, frame_counts: Mapping[str, int], unreadable: Mapping[str, str]) -> VideoStore:
        """Open a store of counted videos; the arguments are those of `VideoStore`."""

    def stamp(self, name: str) -> str:
        """Return a text that changes when the source of a video changes (its size and modification time)."""
        return stamp_of_file(self.paths[name])

    @cached_property
    def by_class(self) -> Mapping[str, list[str]]:
        """Names of the videos of each class, ascending; empty for a flat folder."""
        classes: dict[str, list[str]] = {}
        for name in self.paths:
            class_name, slash, _ = name.rpartition("/")
            if slash:
                classes.setdefault(class_name, []).append(name)
        return classes

    @property
    def class_names(self) -> list[str]:
        """Class names, ascending."""
        return sorted(self.by_class)

    @property
    def summary(self) -> str:
        """Short description, for messages."""
        where = "without class folders" if self.layout == "flat" else f"in {len(self.by_class)} classes"
        return f"{count_of(self.paths, 'video')} {where} (layout {self.layout!r})"


def stamp_of_file(path: str) -> str:
    """Return the size in bytes and modification time in nanoseconds of a file or folder; ``gone`` if missing."""
    try:
        status = os.stat(path)  # noqa: PTH116 (called for 200,000 paths; creating a Path takes longer)
    except OSError:
        return GONE
    return f"{status.st_size}-{status.st_mtime_ns}"
