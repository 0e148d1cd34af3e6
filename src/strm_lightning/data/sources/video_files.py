"""Video files, in class folders or flat in one folder, decoded anew at every read."""

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import SupportsIndex

from jaxtyping import UInt8
from torch import Tensor

from strm_lightning.data.decode.video import count_frames, read_frames
from strm_lightning.data.names import is_video, without_suffix
from strm_lightning.data.sources.base import Layout, Listing, PathStore, count_of, some_of
from strm_lightning.data.sources.counts import count_all


class FileListing(Listing):
    """``root/<class>/<video>.mp4``, or a level deeper (``root/train/<class>/<video>.mp4``)."""

    @property
    def layout(self) -> Layout:
        """Files in class folders."""
        return "videos"

    def count(self, names: Sequence[str], *, progress: bool) -> dict[str, int | str]:
        """Count by decoding, once."""
        return count_all(self.root, {n: self.places[n] for n in names}, count_frames, "videos", progress=progress)

    def open(self, frame_counts: Mapping[str, int], unreadable: Mapping[str, str]) -> "FileStore":
        """Read from the files."""
        return FileStore(self.places, frame_counts, unreadable)


class FlatListing(FileListing):
    """``root/<video>.webm``; only list files can tell the classes."""

    @property
    def layout(self) -> Layout:
        """Files in one folder."""
        return "flat"


class FileStore(PathStore):
    """Video files, decoded anew at every read."""

    def read(self, row: SupportsIndex, frames: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
        """Decode up to the last of these frames."""
        return read_frames(self._paths[row], frames)


def list_files(root: Path) -> dict[str, str]:
    """Video files by ``class/video``; with their endings where one name has several.

    The class is the folder that holds the video: a folder under the root, or one level deeper in a folder without
    videos of its own (``train/wave/a.mp4``). Where two such folders hold videos of one name, the first is used, with a
    warning.
    """
    files: dict[str, str] = {}
    twice: list[str] = []
    for folder in filter(is_folder, entries(root)):
        direct = _videos_in(folder)
        for inner in [] if direct else filter(is_folder, entries(folder)):
            for name, path in _videos_in(inner).items():
                if files.setdefault(name, path) != path:
                    twice.append(path)
        files |= direct
    if twice:
        warnings.warn(
            some_of(f"{count_of(twice, 'video')} under {root} left out: another has the same class and name", twice),
            stacklevel=2,
        )
    return dict(sorted(files.items()))


def list_flat(root: Path) -> dict[str, str]:
    """Video files in one folder, by name."""
    return {name.rpartition("/")[2]: path for name, path in _videos_in(root).items()}


def entries(folder: str | Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; without hidden files, which file managers leave everywhere."""
    with os.scandir(folder) as found:
        return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; False for a link that loops, where ``is_dir`` fails."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _videos_in(folder: Path | os.DirEntry[str]) -> dict[str, str]:
    videos = [(without_suffix(entry.name), entry) for entry in entries(folder) if is_video(entry.name)]
    number = Counter(stem for stem, _ in videos)
    return {f"{folder.name}/{entry.name if number[stem] > 1 else stem}": entry.path for stem, entry in videos}
