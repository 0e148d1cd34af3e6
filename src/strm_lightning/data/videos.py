"""Video files to frames, exactly: frames are known by their number in decoding order, counted from 0."""

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8
from torch import Tensor

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


class VideoError(ValueError):
    """A file that is not a whole and readable video; the message gives its path and what is wrong."""


def count_frames(path: str | Path) -> int:
    """Count the frames of a video by decoding all of them (what containers say of their length is often wrong).

    Raises:
        VideoError: no such file, a folder, empty, no video in it, damaged, or cut off before its end.
    """
    with _opened(path) as (container, stream):
        count = sum(1 for _ in container.decode(stream))
        missing = _missing_bytes(path)
        if missing and count < (stream.frames or count + 1):
            raise VideoError(f"{path}: cut off, {missing} bytes are missing at its end")
    if not count:
        raise VideoError(f"{path}: has no frame that can be decoded")
    return count


def read_frames(path: str | Path, indices: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
    """Read the frames of these numbers (ascending, repeats allowed) as RGB, turned upright.

    Raises:
        VideoError: as `count_frames`, or the video is too short for the last index.
        ValueError: the indices do not ascend, or there are none.
    """
    wanted = list(indices)
    if not wanted or wanted[0] < 0 or any(a > b for a, b in pairwise(wanted)):
        raise ValueError(f"frame numbers must ascend from 0 or more, not {wanted}")
    frames: list[np.ndarray] = []
    count, to_rgb = 0, VideoReformatter()
    with _opened(path) as (container, stream):
        for count, frame in enumerate(container.decode(stream), start=1):
            if count - 1 == wanted[len(frames)]:
                image = _upright_rgb(frame, to_rgb, like=frames[0] if frames else None)
                frames += [image] * wanted.count(count - 1)
                if len(frames) == len(wanted):
                    return torch.from_numpy(np.stack(frames))
    raise VideoError(f"{path}: has {count} frames, number {wanted[len(frames)]} (from 0) was asked for")


def iter_frames(path: str | Path) -> Iterator[tuple[UInt8[np.ndarray, "H W 3"], float]]:
    """Yield each frame, RGB and upright, with its time in seconds; memory stays constant however long the video is.

    Raises:
        VideoError: as `count_frames`, when the damage is reached.
    """
    first, to_rgb = None, VideoReformatter()
    with _opened(path) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            image = _upright_rgb(frame, to_rgb, like=first)
            first = image if first is None else first
            rate = float(stream.average_rate or 25)
            yield image, number / rate if frame.time is None else float(frame.time)
    if first is None:
        raise VideoError(f"{path}: has no frame that can be decoded")


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    if not Path(path).is_file():
        raise VideoError(f"{path}: {'is a folder, not a video' if Path(path).is_dir() else 'does not exist'}")
    if not Path(path).stat().st_size:
        raise VideoError(f"{path}: is empty (0 bytes)")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{path}: has no video in it")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # automatic threads lose the frames after damage without an error
            yield container, stream
    except VideoError:
        raise
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{path}: cannot be decoded ({reason})") from error


def _upright_rgb(frame: VideoFrame, to_rgb: VideoReformatter, like: np.ndarray | None) -> np.ndarray:
    """The picture as it is meant to be seen; at the size of ``like`` should the stream change its size midway.

    One reformatter serves all frames of a video: each frame's own would prepare its tables anew, at 4 x the cost.
    """
    turns = round(frame.rotation / 90) % 4
    if like is None:
        size = {}
    else:
        height, width = like.shape[:2] if turns % 2 == 0 else like.shape[1::-1]
        size = {"height": height, "width": width}
    image = to_rgb.reformat(frame, format="rgb24", **size).to_ndarray()
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _missing_bytes(path: str | Path) -> int:
    """How far the container says it goes on beyond the end of the file.

    A cut AVI, webm or fragmented mp4 decodes without any error, only shorter.
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
        if length == 0:  # up to the end of the file
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
        if tag != b"RIFF" or length in {0, 0xFFFFFFFF}:  # unknown to who wrote it
            return end
        end += 8 + length
    return end


def _end_of_segment(file: BinaryIO) -> int:
    """The end of a Matroska segment, 0 where it was written as unknown (a live stream)."""
    file.seek(4)
    header = _vint(file)
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    length = _vint(file)
    return file.tell() + length if length >= 0 else 0


def _vint(file: BinaryIO) -> int:
    """EBML's integer of 1 to 8 bytes; -1 is its 'unknown'."""
    first = file.read(1)
    if not first or not first[0]:
        return -1
    width = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(width - 1), "big") - (1 << (7 * width))
    return -1 if value == (1 << (7 * width)) - 1 else value
