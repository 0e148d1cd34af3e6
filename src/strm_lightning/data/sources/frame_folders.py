"""Folders of frames as image files, ``root/<class>/<video>/00000001.jpg``."""

import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from strm_lightning.data.decode import limits
from strm_lightning.data.decode.image import decode_image
from strm_lightning.data.decode.video import VideoError
from strm_lightning.data.names import without_suffix
from strm_lightning.data.sources.base import GONE, Layout, Listing, PathStore, VideoStore
from strm_lightning.data.sources.counts import count_all
from strm_lightning.data.sources.video_files import entries, is_folder

try:
    import simplejpeg
except ImportError:  # an extra; Pillow decodes to the same pixels, slower
    simplejpeg = None

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})


class FrameFolderListing(Listing):
    """``root/<class>/<video>/00000001.jpg``."""

    @property
    def layout(self) -> Layout:
        """Folders of image files."""
        return "frames"

    def count(self, names: Sequence[str], *, progress: bool) -> dict[str, int | str]:
        """Count image files, once; decoding them is left to the reader."""
        return count_all(self.root, {n: self.places[n] for n in names}, count_images, "images", progress=progress)

    def stamp(self, name: str) -> str:
        """See `stamp_of_folder`."""
        return stamp_of_folder(self.places[name])

    def open(self, frame_counts: Mapping[str, int], unreadable: Mapping[str, str]) -> "FrameFolderStore":
        """Read from the folders."""
        return FrameFolderStore(self.places, frame_counts, unreadable)


class EncodedStore(VideoStore):
    """Videos whose frames are image files or the bytes of such."""

    def encoded(self, row: SupportsIndex, frames: Sequence[int]) -> Iterable[tuple[str, bytes]]:
        """Where each of these frames is, in words, and its bytes as they lie on disk."""
        raise NotImplementedError

    def read(self, row: SupportsIndex, frames: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
        """Decode these frames, each once."""
        wanted = list(frames)
        images: dict[int, np.ndarray] = {}
        different = sorted(set(wanted))
        for number, (place, data) in zip(different, self.encoded(row, different), strict=True):
            images[number] = decode_image(data, place)
            if images[number].shape != images[wanted[0]].shape:
                raise VideoError(f"{place}: differs in size from the video's other frames")
        return torch.from_numpy(np.stack([images[number] for number in wanted]))


class FrameFolderStore(PathStore, EncodedStore):
    """Folders of frames; frame 0 is the first by number, whatever its number is."""

    def _stamp(self, row: SupportsIndex) -> str:
        return stamp_of_folder(self._paths[row])

    def encoded(self, row: SupportsIndex, frames: Sequence[int]) -> Iterable[tuple[str, bytes]]:
        """The bytes of these image files."""
        folder = self._paths[row]
        try:
            images = _images_in(folder)
            if len(images) != self.frame_counts[row]:
                raise VideoError(f"{folder}: had {self.frame_counts[row]} frames, now it has {len(images)}")
            for number in frames:
                if Path(images[number]).stat().st_size > limits.MAX_BYTES:
                    raise VideoError(f"{images[number]}: is larger than {limits.MAX_BYTES / 1e6:.0f} MB")
                yield images[number], Path(images[number]).read_bytes()
        except OSError as error:
            raise VideoError(f"{folder}: cannot be read ({error.strerror})") from error


def list_frame_folders(root: Path) -> dict[str, str]:
    """Folders inside class folders, by ``class/video``."""
    return {
        f"{folder.name}/{without_suffix(inner.name)}": inner.path
        for folder in entries(root)
        if is_folder(folder)
        for inner in entries(folder)
        if is_folder(inner)
    }


def count_images(folder: str) -> int:
    """Count the frames in a folder.

    Raises:
        VideoError: there are none, or one is empty.
    """
    try:
        sizes = {entry.name: entry.stat().st_size for entry in entries(folder) if is_image(entry.name)}
    except OSError as error:
        raise VideoError(f"{folder}: cannot be read ({error.strerror})") from error
    if not sizes:
        raise VideoError(f"{folder}: holds no frames")
    if not all(sizes.values()):
        raise VideoError(f"{folder}: frame {next(name for name, size in sizes.items() if not size)} is empty (0 bytes)")
    return len(frame_files(sizes))


def is_image(name: str) -> bool:
    """Whether a file of this name is a frame."""
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES  # asked for millions of names: no Path


def frame_order(name: str) -> tuple[Any, ...]:
    """Sorts frames by number, padded with zeros or not."""
    numbers = re.findall(r"\d+", name)
    return (int(numbers[-1]) if numbers else -1, name)


def frame_files(names: Iterable[str]) -> list[str]:
    """Image files of a video in the order of its frames; of ``1.jpg`` and ``1.png`` only the first is a frame."""
    first: dict[str, str] = {}
    for name in sorted(names, key=frame_order):
        first.setdefault(name[: name.rfind(".")], name)
    return list(first.values())


def _images_in(folder: str) -> list[str]:
    return [f"{folder}/{name}" for name in frame_files(e.name for e in entries(folder) if is_image(e.name))]


def stamp_of_folder(folder: str) -> str:
    """Hash of the names, sizes and times of the images in a folder; ``gone`` where it cannot be read.

    The folder's own time does not show that an image was written again.
    """
    found = sha256()
    try:
        for entry in entries(folder):
            if is_image(entry.name):
                status = entry.stat()
                text = f"{entry.name}\0{status.st_size}\0{status.st_mtime_ns}\0"
                found.update(text.encode(errors="surrogateescape"))
    except OSError:
        return GONE
    return found.hexdigest()[:24]
