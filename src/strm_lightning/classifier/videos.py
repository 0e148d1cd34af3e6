"""Forms of example videos: files, arrays, folders of frames, zips of frames, and parts of a video in a table."""

import csv
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from strm_lightning.classifier.predictions import clock
from strm_lightning.data.decode.video import (
    VIDEO_SUFFIXES,
    VideoError,
    frame_rate,
    read_chosen,
    read_times,
    video_seconds,
)
from strm_lightning.data.detect import list_videos
from strm_lightning.data.sources.base import VideoStore
from strm_lightning.data.sources.frame_folders import FrameFolderStore, count_images, is_image
from strm_lightning.data.sources.zip import list_zip
from strm_lightning.errors import InputError, MissingFileError
from strm_lightning.messages import did_you_mean

Choose: TypeAlias = Callable[[int], Sequence[int]]  # from the number of frames to the chosen ones, ascending
_COLUMNS = ("video", "start", "end", "label")


class VideoSource(ABC):
    """A video that is neither a file nor an array. ``str`` of it is its name."""

    @abstractmethod
    def read(self, choose: Choose) -> UInt8[Tensor, "n H W 3"]:
        """Read the chosen frames.

        Raises:
            VideoError: the video cannot be read.
        """

    @property
    def seconds(self) -> float | None:
        """Duration in seconds; None if it is not known."""
        return None


Video: TypeAlias = str | Path | np.ndarray | Tensor | VideoSource  # a path, or [F, H, W, 3] of uint8
Videos: TypeAlias = Sequence[Video] | np.ndarray | Tensor  # a list, or an array with a leading axis


@dataclass(frozen=True)
class VideoPart(VideoSource):
    """A part of a video file.

    Attributes:
        path: the file.
        start: start in seconds from the first frame.
        end: end in seconds.
    """

    path: str
    start: float
    end: float

    def __str__(self) -> str:
        return f"{self.path} ({clock(self.start)}-{clock(self.end)})"

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def read(self, choose: Choose) -> UInt8[Tensor, "n H W 3"]:
        """Read the chosen frames, counted from the start of the part at the frame rate of the file."""
        rate = frame_rate(self.path)
        chosen = choose(max(1, round((self.end - self.start) * rate)))
        return read_times(self.path, [self.start + (number + 0.5) / rate for number in chosen])


@dataclass(frozen=True)
class StoredVideo(VideoSource):
    """A video in a store of encoded frames, such as a zip.

    Attributes:
        name: name of the video.
        store: the store.
        row: index of the video in the store.
    """

    name: str
    store: VideoStore
    row: int

    def __str__(self) -> str:
        return self.name

    def read(self, choose: Choose) -> UInt8[Tensor, "n H W 3"]:
        return self.store.read(self.row, choose(int(self.store.frame_counts[self.row])))


def read_path(path: str | Path, choose: Choose) -> UInt8[Tensor, "n H W 3"]:
    """Read the chosen frames of a video file, or of a folder of frames.

    Raises:
        VideoError: the video cannot be read.
    """
    if not Path(path).is_dir():
        return read_chosen(path, choose)
    name = str(path)
    if not any(is_image(entry.name) for entry in Path(path).iterdir()):
        raise VideoError(f"{path}: is a folder without frames (image files), not a video")
    count = count_images(name)
    return FrameFolderStore({name: name}, {name: count}, {}).read(0, choose(count))


def duration_of(video: Video) -> float | None:
    """Return the duration of a video in seconds; None for arrays and frames, whose rate is not known.

    Raises:
        VideoError: the file cannot be read.
    """
    if isinstance(video, VideoSource):
        return video.seconds
    return video_seconds(video) if isinstance(video, (str, Path)) and not Path(video).is_dir() else None


def find_videos(names: Sequence[str]) -> list[Video]:
    """Replace each folder by the videos in it and its subfolders, sorted, and each zip by its videos; keep other names.

    A folder that contains images is one video.

    Raises:
        InputError: a folder or zip contains no video.
    """
    found: list[Video] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = _videos_in(path)
            if not inside:
                raise InputError(f"{name}: the folder contains no video and no frames")
            found += inside
        elif path.suffix.lower() == ".zip" and path.is_file():
            found += [video for videos in _in_zip(path).values() for video in videos]
        else:
            found.append(name)
    return found


def _videos_in(folder: Path) -> list[str]:
    files = [file for file in folder.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file()]
    inner = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    frames = [path for path in inner if any(is_image(entry.name) for entry in path.iterdir())]
    return sorted(map(str, [*files, *frames]))


def find_examples(place: str | Path) -> dict[str, list[Video]]:
    """Return the example videos of each class.

    Args:
        place: one of

            - a folder of ``<class>/<video>.mp4`` or of ``<class>/<video>/00000001.jpg``,
            - a zip of ``<class>/<video>/00000001.jpg``,
            - a .csv table with the columns ``video``, ``start``, ``end`` and ``label``, see `read_table`.

    Raises:
        MissingFileError: there is no such file or folder.
        InputError: it contains no videos, or one of its subfolders does not.
    """
    path = Path(place).expanduser()
    if path.suffix.lower() == ".csv":
        return read_table(path)
    listing = list_videos(path)
    if listing.layout == "zip":
        return _in_zip(listing.root)
    if listing.layout == "videos":
        for inner in sorted(listing.root.iterdir()):
            near = _videos_in(inner) if inner.is_dir() else []
            near = [video for video in near if len(Path(video).relative_to(inner).parts) < 3]
            if inner.is_dir() and inner.name[0] != "." and not near:
                raise InputError(f"class {inner.name!r} has no video: remove the folder {inner} or add videos to it")
    if listing.layout not in ("videos", "frames"):
        raise InputError(f"{place}: has no folder for each class")
    return {name: [listing.paths[video] for video in listing.by_class[name]] for name in listing.class_names}


def _in_zip(path: Path) -> dict[str, list[Video]]:
    listing = list_zip(path)
    names = [name for names in listing.by_class.values() for name in names]
    counts = listing.count(names, progress=False)
    readable = {name: count for name, count in counts.items() if isinstance(count, int)}
    store = listing.open(readable, {name: str(count) for name, count in counts.items() if name not in readable})
    row_of = {name: row for row, name in enumerate(store.videos)}
    found: dict[str, list[Video]] = {}
    for label, members in listing.by_class.items():
        videos: list[Video] = [StoredVideo(f"{path}/{name}", store, row_of[name]) for name in members if name in row_of]
        if not videos:
            raise InputError(f"{path}: class {label!r} has no readable video ({counts[members[0]]})")
        found[label] = videos
    if not found:
        raise InputError(f"{path}: the zip contains no <class>/<video>/00000001.jpg")
    return found


def read_table(path: Path) -> dict[str, list[Video]]:
    """Read a table of parts of videos.

    The columns ``video`` and ``label`` are required. ``start`` and ``end`` are seconds, ``m:ss`` or ``h:mm:ss``; if
    both are empty, the part is the whole video. Paths are relative to the table.

    Raises:
        MissingFileError: the table or a video does not exist.
        InputError: a column is missing, or a row is wrong.
    """
    if not path.is_file():
        raise MissingFileError(f"examples {path}: no such file")
    found: dict[str, list[Video]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            columns = rows.fieldnames or []
            for column in ("video", "label"):
                if column not in columns:
                    hint = did_you_mean(column, columns)
                    raise InputError(f"{path}: has no column {column!r}; {hint}columns are {', '.join(_COLUMNS)}")
            for row in rows:
                label, video = _part(row, f"{path}, line {rows.line_num}", path.parent)
                found.setdefault(label, []).append(video)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is not a table in UTF-8 ({error})") from error
    return found


def _part(row: dict[str, str | None], place: str, folder: Path) -> tuple[str, Video]:
    label, name = (row.get("label") or "").strip(), (row.get("video") or "").strip()
    if not label or not name:
        raise InputError(f"{place}: has no {'label' if not label else 'video'}")
    video = folder / name
    if not video.exists():
        raise MissingFileError(f"{place}: video {video}: no such file")
    start, end = (_seconds(row.get(column), f"{place}, {column}") for column in ("start", "end"))
    if start is None and end is None:
        return label, str(video)
    if end is None or (start or 0) >= end:
        raise InputError(f"{place}: start {row.get('start')!r} and end {row.get('end')!r}: give an end after the start")
    return label, VideoPart(str(video), start or 0.0, end)


def _seconds(text: str | None, place: str) -> float | None:
    text = (text or "").strip()
    if not text:
        return None
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d*)?", text):
        raise InputError(f"{place}: {text!r} is no time; give seconds, m:ss or h:mm:ss")
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def video_name(video: Video) -> str:
    """Return the name of a video: its path, or the shape of an array."""
    return str(video) if isinstance(video, (str, Path, VideoSource)) else f"array {'x'.join(map(str, video.shape))}"
