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
from strm_lightning.messages import format_bytes

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})


class FrameFolderListing(Listing):
    """Listing of folders of frames, ``root/<class>/<video>/00000001.jpg``."""

    @property
    def layout(self) -> Layout:
        """Name of the layout."""
        return "frames"

    def count(self, names: Sequence[str], *, progress: bool) -> dict[str, int | str]:
        """Count the image files of each video, without decoding them."""
        return count_all(self.root, {n: self.paths[n] for n in names}, count_images, "images", progress=progress)

    def stamp(self, name: str) -> str:
        """Return the `stamp_of_folder` of a video."""
        return stamp_of_folder(self.paths[name])

    def open(self, frame_counts: Mapping[str, int], unreadable: Mapping[str, str]) -> "FrameFolderStore":
        """Open a store that reads the folders."""
        return FrameFolderStore(self.paths, frame_counts, unreadable)


class EncodedStore(VideoStore):
    """Store of videos whose frames are encoded images."""

    def encoded(self, row: SupportsIndex, frames: Sequence[int]) -> Iterable[tuple[str, bytes]]:
        """Yield a description (for messages) and the encoded bytes of each frame."""
        raise NotImplementedError

    def read(self, row: SupportsIndex, frames: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
        """Decode frames, each once."""
        wanted = list(frames)
        images: dict[int, np.ndarray] = {}
        different = sorted(set(wanted))
        for number, (place, data) in zip(different, self.encoded(row, different), strict=True):
            images[number] = decode_image(data, place)
            if images[number].shape != images[wanted[0]].shape:
                raise VideoError(f"{place}: differs in size from the video's other frames")
        return torch.from_numpy(np.stack([images[number] for number in wanted]))


class FrameFolderStore(PathStore, EncodedStore):
    """Store of folders of frames; frame 0 is the image with the lowest number."""

    def _stamp(self, row: SupportsIndex) -> str:
        return stamp_of_folder(self._paths[row])

    def encoded(self, row: SupportsIndex, frames: Sequence[int]) -> Iterable[tuple[str, bytes]]:
        """Yield the path and bytes of each image file."""
        folder = self._paths[row]
        try:
            images = _images_in(folder)
            if len(images) != self.frame_counts[row]:
                raise VideoError(
                    f"{folder}: has {len(images)} frames, had {self.frame_counts[row]} when it was counted"
                )
            for number in frames:
                if Path(images[number]).stat().st_size > limits.MAX_BYTES:
                    raise VideoError(f"{images[number]}: is larger than {format_bytes(limits.MAX_BYTES)}")
                yield images[number], Path(images[number]).read_bytes()
        except OSError as error:
            raise VideoError(f"{folder}: cannot be read ({error.strerror})") from error


def list_frame_folders(root: Path) -> dict[str, str]:
    """List the folders inside class folders, by ``class/video``."""
    return {
        f"{folder.name}/{without_suffix(inner.name)}": inner.path
        for folder in entries(root)
        if is_folder(folder)
        for inner in entries(folder)
        if is_folder(inner)
    }


def count_images(folder: str) -> int:
    """Count the image files in a folder.

    Raises:
        VideoError: the folder cannot be read or has no images, or an image is empty.
    """
    try:
        sizes = {entry.name: entry.stat().st_size for entry in entries(folder) if is_image(entry.name)}
    except OSError as error:
        raise VideoError(f"{folder}: cannot be read ({error.strerror})") from error
    if not sizes:
        raise VideoError(f"{folder}: contains no frames")
    if not all(sizes.values()):
        raise VideoError(f"{folder}: frame {next(name for name, size in sizes.items() if not size)} is empty (0 bytes)")
    return len(frame_files(sizes))


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of an image."""
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES  # no Path: called for millions of names


def frame_order(name: str) -> tuple[Any, ...]:
    """Sort key for the number of a frame, with or without leading zeros."""
    numbers = re.findall(r"\d+", name)
    return (int(numbers[-1]) if numbers else -1, name)


def frame_files(names: Iterable[str]) -> list[str]:
    """Sort image files by frame number; of ``1.jpg`` and ``1.png`` only the first counts."""
    first: dict[str, str] = {}
    for name in sorted(names, key=frame_order):
        first.setdefault(name[: name.rfind(".")], name)
    return list(first.values())


def _images_in(folder: str) -> list[str]:
    return [f"{folder}/{name}" for name in frame_files(e.name for e in entries(folder) if is_image(e.name))]


def stamp_of_folder(folder: str) -> str:
    """Return a hash of the names, sizes and modification times of the images in a folder; ``gone`` if unreadable.

    The modification time of the folder does not change when an image is overwritten.
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
