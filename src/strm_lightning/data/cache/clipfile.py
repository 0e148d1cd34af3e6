"""The clip file of a frame cache: a header, the frames (raw pixels, or images), and at its end their table."""

import os
import struct
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from strm_lightning.data.decode.limits import MAX_FRAMES, refuse_size
from strm_lightning.data.decode.video import VideoError
from strm_lightning.fileio import atomic_path

SUFFIX = ".clip"
_VERSION = 1
_MAGIC = b"STRMCLIP"
_HEADER = struct.Struct("<8s6I")  # magic, version, channels (0: images), frames of the source, kept, height, width
_ENTRY = np.dtype([("number", "<i4"), ("checksum", "<u4"), ("end", "<i8")])


class ClipFile:
    """One clip file, open for reading.

    Raises:
        VideoError: no clip file, of another version, cut off, or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise VideoError(f"{path}: cannot be read ({error.strerror})") from error
        try:
            self._read_head()
        except VideoError:
            os.close(self._file)
            raise

    def _read_head(self) -> None:
        head = os.pread(self._file, _HEADER.size, 0)
        if len(head) < _HEADER.size or not head.startswith(_MAGIC):
            raise VideoError(f"{self.path}: is no clip file of a frame cache")
        _, version, channels, self.source_frames, self.kept, self.height, self.width = _HEADER.unpack(head)
        if version != _VERSION:
            raise VideoError(f"{self.path}: is of cache format {version}; this program reads format {_VERSION}")
        self.size = os.fstat(self._file).st_size
        end = self.size - self.kept * _ENTRY.itemsize
        table = os.pread(self._file, self.size - end, end) if end >= _HEADER.size else b""
        self.table = np.frombuffer(table, _ENTRY)
        if not len(table) or int(self.table["end"][-1]) != end or not self._fits(channels):
            raise VideoError(f"{self.path}: is cut off or damaged ({self.size} bytes)")

    def _fits(self, channels: int) -> bool:
        """Whether header and table agree, so that no size in them leads out of the file or to a large allocation."""
        numbers, spans = self.table["number"], np.diff(self.table["end"], prepend=_HEADER.size)
        frame = self.height * self.width * 3
        if channels not in (0, 3) or (channels and refuse_size(self.height, self.width)):
            return False
        sizes = spans == frame if channels else spans >= 0
        ascending = numbers[0] >= 0 and (np.diff(numbers) > 0).all() and numbers[-1] < self.source_frames
        return bool(ascending and sizes.all() and self.source_frames <= MAX_FRAMES)

    def __enter__(self) -> "ClipFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def find(self, frames: Sequence[int]) -> list[int]:
        """Entries of these frame numbers."""
        numbers = self.table["number"]
        entries = np.searchsorted(numbers, frames)
        absent = [
            frame for frame, entry in zip(frames, entries, strict=True) if entry == self.kept or numbers[entry] != frame
        ]
        if absent:
            raise VideoError(
                f"{self.path}: frame {absent[0]} was not kept; other frames were chosen when it was prepared"
            )
        return [int(entry) for entry in entries]

    def read(self, entry: int) -> bytes:
        """The bytes of a frame, after a check of their checksum."""
        start, end = self._span(entry)
        data = os.pread(self._file, end - start, start)
        if zlib.crc32(data) != self.table["checksum"][entry]:
            raise VideoError(f"{self.path}: frame {self.table['number'][entry]} is damaged (its checksum differs)")
        return data

    def read_into(self, entry: int, image: UInt8[np.ndarray, "3 H W"]) -> None:
        """Copy a frame's raw pixels, stored plane by plane, which are then cropped into a clip ten times faster.

        Checksums are left to `strm doctor`; they cost more than the copy.
        """
        start, end = self._span(entry)
        if end - start != image.nbytes or os.preadv(self._file, [image.data], start) != image.nbytes:
            raise VideoError(f"{self.path}: frame {self.table['number'][entry]} is damaged")

    def _span(self, entry: int) -> tuple[int, int]:
        ends = self.table["end"]
        return int(ends[entry - 1]) if entry else _HEADER.size, int(ends[entry])


class ClipWriter:
    """Context manager that writes a clip file frame by frame.

    The file appears when the block ends after `finish`; without `finish`, or after an error, nothing is written.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._entries: list[tuple[int, int, int]] = []
        self._shape: tuple[int, ...] = (0, 0, 0)
        self._path, self._finished = path, False
        self._stack = ExitStack()

    def __enter__(self) -> "ClipWriter":
        self._part = self._stack.enter_context(atomic_path(self._path))
        self._file = self._stack.enter_context(self._part.open("wb"))
        self._file.write(bytes(_HEADER.size))
        return self

    def __exit__(self, *error: Any) -> None:
        if not self._finished:
            self._part.unlink()
        self._stack.__exit__(*error)

    def add(self, number: int, frame: UInt8[np.ndarray, "H W 3"] | bytes) -> None:
        """Append a frame, raw pixels or an image; numbers ascend.

        Raises:
            VideoError: the frame differs in size from the first.
        """
        shape = frame.shape if isinstance(frame, np.ndarray) else (0, 0, 0)
        if self._entries and shape != self._shape:
            raise VideoError(f"frame {number} differs in size from the video's other frames")
        data = frame if isinstance(frame, bytes) else frame.transpose(2, 0, 1).tobytes()  # planes: see `read_into`
        self._shape = shape
        self._file.write(data)
        self._entries.append((number, zlib.crc32(data), self._file.tell()))

    def finish(self, *, source_frames: int) -> int:
        """Write the header and the table, and return the size in bytes."""
        self._file.write(np.array(self._entries, _ENTRY).tobytes())
        size = self._file.tell()
        self._file.seek(0)
        kept = len(self._entries)
        height, width, channels = self._shape
        self._file.write(_HEADER.pack(_MAGIC, _VERSION, channels, source_frames, kept, height, width))
        self._finished = True
        return size
