"""The clip file of a frame cache: a header, the frames (raw pixels or encoded images), and a table of the frames."""

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
    """A clip file, opened for reading.

    Attributes:
        source_frames: number of frames of the source video.
        kept: number of frames in the file.
        height: of a frame in pixels; 0 for encoded images.
        width: of a frame in pixels; 0 for encoded images.
        size: of the file in bytes.

    Raises:
        VideoError: the file is missing, no clip file, of another version, truncated or damaged.
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
            raise VideoError(f"{self.path}: is not a clip file of a frame cache")
        _, version, channels, self.source_frames, self.kept, self.height, self.width = _HEADER.unpack(head)
        if version != _VERSION:
            raise VideoError(f"{self.path}: has cache format {version}; this version reads format {_VERSION}")
        self.size = os.fstat(self._file).st_size
        end = self.size - self.kept * _ENTRY.itemsize
        table = os.pread(self._file, self.size - end, end) if end >= _HEADER.size else b""
        self.table = np.frombuffer(table, _ENTRY)
        if not len(table) or int(self.table["end"][-1]) != end or not self._fits(channels):
            raise VideoError(f"{self.path}: is truncated or damaged ({self.size} bytes)")

    def _fits(self, channels: int) -> bool:
        """Whether header and table are consistent, so that reads stay inside the file and allocations small."""
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
        """Return the table entries of frame numbers.

        Raises:
            VideoError: a frame is not in the file.
        """
        numbers = self.table["number"]
        entries = np.searchsorted(numbers, frames)
        absent = [
            frame for frame, entry in zip(frames, entries, strict=True) if entry == self.kept or numbers[entry] != frame
        ]
        if absent:
            raise VideoError(
                f"{self.path}: does not contain frame {absent[0]}; it was prepared for other frame policies"
            )
        return [int(entry) for entry in entries]

    def read(self, entry: int) -> bytes:
        """Read the bytes of a frame and verify their checksum."""
        start, end = self._span(entry)
        data = os.pread(self._file, end - start, start)
        if zlib.crc32(data) != self.table["checksum"][entry]:
            raise VideoError(f"{self.path}: frame {self.table['number'][entry]} is damaged (its checksum differs)")
        return data

    def read_into(self, entry: int, image: UInt8[np.ndarray, "3 H W"]) -> None:
        """Read the raw pixels of a frame into an array.

        They are stored as planes, which are cropped into a clip ten times faster. Checksums are verified by
        `strm doctor` only, since that takes longer than the read.
        """
        start, end = self._span(entry)
        if end - start != image.nbytes or os.preadv(self._file, [image.data], start) != image.nbytes:
            raise VideoError(f"{self.path}: frame {self.table['number'][entry]} is damaged")

    def _span(self, entry: int) -> tuple[int, int]:
        ends = self.table["end"]
        return int(ends[entry - 1]) if entry else _HEADER.size, int(ends[entry])


class ClipWriter:
    """Context manager that writes a clip file frame by frame.

    The file is created when the block ends after `finish`; without `finish`, or after an error, no file is written.

    Args:
        path: path of the clip file.
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
        """Append a frame, as raw pixels or an encoded image, in ascending order of numbers.

        Raises:
            VideoError: the size of the frame differs from the first one.
        """
        shape = frame.shape if isinstance(frame, np.ndarray) else (0, 0, 0)
        if self._entries and shape != self._shape:
            raise VideoError(f"frame {number} differs in size from the video's other frames")
        data = frame if isinstance(frame, bytes) else frame.transpose(2, 0, 1).tobytes()  # as planes, see `read_into`
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
