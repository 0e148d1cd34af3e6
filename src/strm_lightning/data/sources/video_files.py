"""Video files, in class folders or in one folder, decoded at every read."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import SupportsIndex

from jaxtyping import UInt8
from torch import Tensor

from strm_lightning.data.decode.video import count_frames, estimate_num_frames, read_frames, read_to_end
from strm_lightning.data.names import is_video, without_suffix
from strm_lightning.data.sources.base import Layout, Listing, PathStore
from strm_lightning.data.sources.counts import count_all, estimate_all, record_counts
from strm_lightning.messages import count_of, some_of


class FileListing(Listing):
    """Listing of ``root/<class>/<video>.mp4``, or one level deeper (``root/train/<class>/<video>.mp4``)."""

    @property
    def layout(self) -> Layout:
        """Name of the layout."""
        return "videos"

    def count(self, names: Sequence[str], *, progress: bool) -> dict[str, int | str]:
        """Count the frames of each video by decoding it."""
        return count_all(self.root, {n: self.paths[n] for n in names}, count_frames, "videos", progress=progress)

    def estimate(self, names: Sequence[str], *, progress: bool) -> tuple[dict[str, int | str], set[str]]:
        """Count packets, 40 times faster than frames and nearly always the same; they do not show damage."""
        paths = {n: self.paths[n] for n in names}
        return estimate_all(self.root, paths, estimate_num_frames, count_frames, "videos", progress=progress)

    def record(self, counts: Mapping[str, int]) -> None:
        """Replace numbers of packets in the index by numbers of frames."""
        record_counts(self.root, {n: self.paths[n] for n in counts if n in self.paths}, counts, "videos")

    def open(self, frame_counts: Mapping[str, int], unreadable: Mapping[str, str]) -> "FileStore":
        """Open a store that decodes the files."""
        return FileStore(self.paths, frame_counts, unreadable)


class FlatListing(FileListing):
    """Listing of ``root/<video>.webm``; the classes come from list files."""

    @property
    def layout(self) -> Layout:
        """Name of the layout."""
        return "flat"


class FileStore(PathStore):
    """Store of video files, decoded at every read."""

    def read(self, row: SupportsIndex, frames: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
        """Decode a video up to the last of the frames."""
        return read_frames(self._paths[row], frames)

    def read_chosen(
        self, row: SupportsIndex, choose: Callable[[int], Sequence[int]]
    ) -> tuple[UInt8[Tensor, "n H W 3"], int]:
        """Read frames that depend on the number of frames; if this is an estimate, decode the video to its end."""
        if int(row) not in self.estimated:
            return super().read_chosen(row, choose)
        return read_to_end(self._paths[row], int(self.frame_counts[row]), choose)


def list_files(root: Path) -> dict[str, str]:
    """List video files by ``class/video``, with their suffix if several files differ only in it.

    The class is the name of the folder of the video: a folder under the root, or one level deeper if a folder contains
    no videos (``train/wave/a.mp4``). If two such folders contain videos of the same name, the first is used, with a
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
            some_of(
                f"{count_of(twice, 'video')} under {root} skipped, since another has the same class and name", twice
            ),
            stacklevel=2,
        )
    return dict(sorted(files.items()))


def list_flat(root: Path) -> dict[str, str]:
    """List the video files in one folder, by name."""
    return {name.rpartition("/")[2]: path for name, path in _videos_in(root).items()}


def entries(folder: str | Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name, without hidden files."""
    with os.scandir(folder) as found:
        return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; False for a link loop, on which ``is_dir`` raises."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _videos_in(folder: Path | os.DirEntry[str]) -> dict[str, str]:
    videos = [(without_suffix(entry.name), entry) for entry in entries(folder) if is_video(entry.name)]
    number = Counter(stem for stem, _ in videos)
    return {f"{folder.name}/{entry.name if number[stem] > 1 else stem}": entry.path for stem, entry in videos}
