"""What is under a root by name, before any of it is opened; each layout has its own listing and its own store."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, SupportsIndex

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from strm_lightning.data.decode.video import VideoError
from strm_lightning.data.sampling import FramePolicy

Layout = Literal["videos", "frames", "zip", "cache", "flat"]
LayoutOption = Literal["auto", "videos", "frames", "zip", "cache", "flat"]


GONE = "gone"  # stamp of a source that cannot be read


class VideoStore(ABC):
    """Videos that can be read, in the order of their names. May be pickled; files are opened where they are read.

    Args:
        frame_counts: frames that each video has, by name.
        unreadable: what is wrong with each video that was left out, by name.

    Attributes:
        videos: name of each video, ``class/name``, ascending (``name`` alone in a flat folder).
        frame_counts: frames that each video has, ``[V]``.
        unreadable: as given.
    """

    videos: list[str]
    frame_counts: Int[np.ndarray, " V"]
    unreadable: Mapping[str, str]

    def __init__(self, frame_counts: Mapping[str, int], unreadable: Mapping[str, str]) -> None:
        self.videos = sorted(frame_counts)
        self.frame_counts = np.array([frame_counts[name] for name in self.videos], dtype=np.int64)
        self.unreadable = dict(unreadable)

    @abstractmethod
    def path_of(self, row: SupportsIndex) -> Path:
        """The file or folder that holds a video."""

    def stamp(self, row: SupportsIndex) -> str:
        """Text that changes when the source of a video changes; here the size and time of change of its one file.

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
        """Frames of a video by number, ascending, with repeats; RGB.

        Raises:
            VideoError: the video has changed, vanished or suffered since the store was opened.
        """

    def require(self, policy: FramePolicy, num_frames: int, short_side: int) -> None:
        """Check that whatever this policy chooses is here, and large enough; only caches leave out or make smaller.

        Raises:
            ValueError: it is not.
        """
        del policy, num_frames, short_side


class PathStore(VideoStore):
    """Videos that are a file or a folder each.

    Args:
        places: path of each video, by name.
        frame_counts: as of `VideoStore`.
        unreadable: as of `VideoStore`.
    """

    def __init__(
        self, places: Mapping[str, str], frame_counts: Mapping[str, int], unreadable: Mapping[str, str]
    ) -> None:
        super().__init__(frame_counts, unreadable)
        self._paths = [places[name] for name in self.videos]

    def path_of(self, row: SupportsIndex) -> Path:
        """The file or folder of a video."""
        return Path(self._paths[row])


@dataclass(frozen=True)
class Listing(ABC):
    """The names of the videos under a root.

    Attributes:
        root: the folder or file.
        places: path of each video, by name (``class/video``), ascending; text, as there may be 200,000.
    """

    root: Path
    places: Mapping[str, str]

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """How the videos lie."""

    @abstractmethod
    def count(self, names: Sequence[str], *, progress: bool) -> dict[str, int | str]:
        """Frames that each of these videos has, or (as text) what is wrong with it."""

    @abstractmethod
    def open(self, frame_counts: Mapping[str, int], unreadable: Mapping[str, str]) -> VideoStore:
        """A store of the videos that were counted."""

    def stamp(self, name: str) -> str:
        """Text that changes when the source of a video is replaced or rewritten: its size and time of change."""
        return stamp_of_file(self.places[name])

    @cached_property
    def by_class(self) -> Mapping[str, list[str]]:
        """Names of the videos of each class, ascending; none in a flat folder."""
        classes: dict[str, list[str]] = {}
        for name in self.places:
            class_name, slash, _ = name.rpartition("/")
            if slash:
                classes.setdefault(class_name, []).append(name)
        return classes

    @property
    def class_names(self) -> list[str]:
        """Classes, ascending."""
        return sorted(self.by_class)

    @property
    def summary(self) -> str:
        """What was found, in words."""
        where = "without class folders" if self.layout == "flat" else f"in {len(self.by_class)} classes"
        return f"{count_of(self.places, 'video')} {where} (layout {self.layout!r})"


def stamp_of_file(place: str) -> str:
    """Size in bytes and time of change in nanoseconds of a file or folder; ``gone`` where there is none."""
    try:
        status = os.stat(place)  # noqa: PTH116 (of 200,000 places: a Path of each would take longer)
    except OSError:
        return GONE
    return f"{status.st_size}-{status.st_mtime_ns}"


def count_of(items: Iterable[object], noun: str) -> str:
    """``3 videos``."""
    number = sum(1 for _ in items)
    return f"{number} {noun if number == 1 else noun + ('es' if noun.endswith('s') else 's')}"


def some_of(claim: str, items: Iterable[str], most: int = 3) -> str:
    """``claim: a, b, c …``."""
    items = sorted(items)
    return f"{claim}: {', '.join(items[:most])}{' …' if len(items) > most else ''}"
