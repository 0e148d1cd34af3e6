"""Detect truncated video files from the lengths in their container."""

import os
import struct
from pathlib import Path
from typing import BinaryIO


def missing_bytes(path: str | Path) -> int:
    """Return how many bytes a video file lacks at its end, by the lengths in its container.

    A truncated AVI, webm or fragmented mp4 decodes without an error, but has fewer frames.
    """
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        head = file.read(12)
        if head[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}:
            return max(0, _end_of_boxes(file, size) - size)
        if head[:4] == b"RIFF":
            return max(0, _end_of_riff(file, size) - size)
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return max(0, _end_of_segment(file) - size)
    return 0


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    end = 0
    while end + 16 <= size:
        file.seek(end)
        length, _, long_length = struct.unpack(">I4sQ", file.read(16))
        if length == 0:  # the box extends to the end of the file
            return size
        length = long_length if length == 1 else length
        if length < 8:
            return end
        end += length
    return end


def _end_of_riff(file: BinaryIO, size: int) -> int:
    end = 0
    while end + 8 <= size:
        file.seek(end)
        tag, length = struct.unpack("<4sI", file.read(8))
        if tag != b"RIFF" or length in {0, 0xFFFFFFFF}:  # length unknown to the writer
            return end
        end += 8 + length
    return end


def _end_of_segment(file: BinaryIO) -> int:
    """Return the end of a Matroska segment; 0 if its length is unknown (a live stream)."""
    file.seek(4)
    header = _vint(file)
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    length = _vint(file)
    return file.tell() + length if length >= 0 else 0


def _vint(file: BinaryIO) -> int:
    """Read an EBML integer of 1 to 8 bytes; -1 means unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return -1
    width = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(width - 1), "big") - (1 << (7 * width))
    return -1 if value == (1 << (7 * width)) - 1 else value
