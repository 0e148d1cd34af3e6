"""Decode video files exactly, by frame number in decoding order, from 0."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8
from torch import Tensor

from strm_lightning.data.decode import limits
from strm_lightning.data.decode.truncation import missing_bytes
from strm_lightning.data.decode.upright import UprightRGB
from strm_lightning.errors import InputError

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


class VideoError(InputError):
    """A video or image is missing, damaged or truncated; the message contains its path and the reason."""


def count_frames(path: str | Path) -> int:
    """Count the frames of a video by decoding all of them (the length in the container is often wrong).

    Pixels are not needed: the decoder leaves out the deblocking filter, which finds no damage.

    Raises:
        VideoError: the file is missing, a folder, empty, without video, damaged or truncated.
    """
    return _visit(path, (), lambda *_: None, None, skip_loop_filter="all")[0]


def visit_frames(path: str | Path, numbers: Container[int], visit: Callable[[int, np.ndarray], object]) -> int:
    """Decode a whole video, call ``visit`` with selected frames, and return the number of frames.

    Args:
        path: the video file.
        numbers: numbers of the selected frames.
        visit: function of a frame number and the frame (RGB, upright).

    Raises:
        VideoError: as `count_frames`.
    """
    return _visit(path, numbers, visit, None)[0]


def _visit(
    path: str | Path,
    numbers: Container[int],
    visit: Callable[[int, np.ndarray], object],
    stop: tuple[int, int] | None,
    **options: str,
) -> tuple[int, bool]:
    """Do `visit_frames` up to the frame with the number and time ``stop``; return the count, and whether it stopped.

    ``options`` are those of FFmpeg's decoders.
    """
    count, upright_rgb = 0, UprightRGB()
    with _opened(path, **options) as (container, stream):
        for count, frame in enumerate(_whole(container.decode(stream), path), start=1):
            if count > limits.MAX_FRAMES:
                raise VideoError(f"{path}: has more than {limits.MAX_FRAMES} frames")
            if count - 1 in numbers:
                visit(count - 1, upright_rgb(frame))
            if (count - 1, frame.pts) == stop:
                return count, True
        missing = missing_bytes(path)
        if missing and count < (stream.frames or count + 1):
            raise VideoError(f"{path}: truncated, {missing} bytes are missing at its end")
    if not count:
        raise VideoError(f"{path}: has no frame that can be decoded")
    return count, False


def estimate_num_frames(path: str | Path) -> int:
    """Estimate the number of frames from the packets, without decoding; it is nearly always exact.

    Raises:
        VideoError: as `count_frames`.
    """
    return len(_packet_times(path)[0])


def _packet_times(path: str | Path) -> tuple[list[int | None], bool]:
    """Return the presentation time of each packet with a frame, and if the container confirms that these are all."""
    with _opened(path) as (container, stream):
        times = [packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard]
        return times, 0 < stream.frames == len(times) and not missing_bytes(path)


def read_chosen(path: str | Path, choose: Callable[[int], Sequence[int]]) -> UInt8[Tensor, "n H W 3"]:
    """Read frames that depend on the number of frames of the video, and decode it once.

    The number comes from the packets and is checked at the end of the video. If it is wrong and other frames should
    have been chosen, the video is decoded again. Decoding ends after the last chosen frame where the container confirms
    the number of packets and its end, and the time of that frame shows that no frame before it is missing; damage
    after it is then not noticed.

    Args:
        path: the video file.
        choose: function of the number of frames that returns frame numbers, as for `read_frames`.

    Raises:
        VideoError: as `count_frames`.
    """
    times, confirmed = _packet_times(path)
    ordered = sorted(time for time in times if time is not None)
    confirmed &= len(set(ordered)) == len(times)
    return _read_chosen(path, len(times), choose, ordered if confirmed else ())[0]


def read_to_end(
    path: str | Path, number: int, choose: Callable[[int], Sequence[int]]
) -> tuple[UInt8[Tensor, "n H W 3"], int]:
    """Read frames like `read_chosen`, and always decode the video to its end; return also its number of frames.

    Args:
        path: the video file.
        number: assumed number of frames.
        choose: see `read_chosen`; its last call is with the number of frames that the video has.

    Raises:
        VideoError: as `count_frames`.
    """
    return _read_chosen(path, number, choose, ())


def _read_chosen(
    path: str | Path, number: int, choose: Callable[[int], Sequence[int]], times: Sequence[int]
) -> tuple[UInt8[Tensor, "n H W 3"], int]:
    """Read chosen frames, if need be twice; with the ``times`` of all frames, decoding ends after the last of them."""
    while True:
        wanted = list(choose(max(number, 1)))
        frames: dict[int, np.ndarray] = {}
        stop = (wanted[-1], times[wanted[-1]]) if times else None
        found, stopped = _visit(path, set(wanted), frames.__setitem__, stop)
        if stopped or found == number or list(choose(found)) == wanted:
            return torch.from_numpy(np.stack([frames[i] for i in wanted])), number if stopped else found
        number, times = found, ()


def frame_rate(path: str | Path) -> float:
    """Return the average number of frames per second that the container states, or 25.

    Raises:
        VideoError: as `count_frames`.
    """
    with _opened(path) as (_, stream):
        return _rate(stream)


def video_seconds(path: str | Path) -> float:
    """Return the duration of a video by the time stamps of its packets, without decoding.

    Raises:
        VideoError: as `count_frames`.
    """
    with _opened(path) as (container, stream):
        spans, packets = [], 0
        for packet in container.demux(stream):
            packets += bool(packet.size)
            if packet.pts is not None:
                spans.append((packet.pts, packet.pts + (packet.duration or 0)))
        if not spans or stream.time_base is None:
            return packets / _rate(stream)
        return float((max(end for _, end in spans) - min(start for start, _ in spans)) * stream.time_base)


def read_frames(path: str | Path, indices: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
    """Read frames as upright RGB.

    Args:
        path: the video file.
        indices: frame numbers, ascending; repeats are allowed.

    Raises:
        VideoError: as `count_frames`, or the video is too short for the last index.
        InputError: there are no indices, or they do not ascend.
    """
    wanted = list(indices)
    if not wanted or wanted[0] < 0 or any(a > b for a, b in pairwise(wanted)):
        raise InputError(f"frame numbers must ascend from 0 or more, not {wanted}")
    frames: list[np.ndarray] = []
    count, upright_rgb = 0, UprightRGB()
    with _opened(path) as (container, stream):
        for count, frame in enumerate(_whole(container.decode(stream), path), start=1):
            if count - 1 == wanted[len(frames)]:
                frames += [upright_rgb(frame)] * wanted.count(count - 1)
                if len(frames) == len(wanted):
                    return torch.from_numpy(np.stack(frames))
    raise VideoError(f"{path}: has {count} frames, frame number {wanted[len(frames)]} (from 0) does not exist")


def iter_frames(path: str | Path) -> Iterator[tuple[UInt8[np.ndarray, "H W 3"], float]]:
    """Yield each frame (upright RGB) and its time in seconds, with constant memory.

    Raises:
        VideoError: as `count_frames`, when decoding reaches the damage.
    """
    count, upright_rgb = 0, UprightRGB()
    with _opened(path) as (container, stream):
        rate = _rate(stream)
        for count, frame in enumerate(_whole(container.decode(stream), path), start=1):
            yield upright_rgb(frame), (count - 1) / rate if frame.time is None else float(frame.time)
    if not count:
        raise VideoError(f"{path}: has no frame that can be decoded")


def read_times(path: str | Path, times: Sequence[float]) -> UInt8[Tensor, "n H W 3"]:
    """Read the frames that are shown at certain times, as upright RGB.

    Decoding begins at the key frame before the first time.

    Args:
        path: the video file.
        times: seconds from the first frame, ascending.

    Raises:
        VideoError: as `count_frames`, or the video ends before a time.
    """
    wanted, frames, end = list(times), list[np.ndarray](), 0.0
    for seek in (True, False):  # without a seek if the index of the file is wrong
        frames, end = _shown(path, wanted, seek=seek)
        if len(frames) == len(wanted):
            return torch.from_numpy(np.stack(frames))
    raise VideoError(f"{path}: is {end:.1f} s long, there is no frame at {wanted[len(frames)]:.1f} s")


def _shown(path: str | Path, times: Sequence[float], *, seek: bool) -> tuple[list[np.ndarray], float]:
    """Return the frames that are shown at the first of the times, as many as are found, and the last decoded time."""
    frames: list[np.ndarray] = []
    shown, now, upright_rgb = None, 0.0, UprightRGB()
    with _opened(path) as (container, stream):
        rate = _rate(stream)
        decoded = _whole(container.decode(stream), path)
        first = next(decoded, None)
        if first is None:
            raise VideoError(f"{path}: has no frame that can be decoded")
        origin = first.time or 0.0
        if seek and stream.time_base:
            container.seek(int((origin + times[0]) / stream.time_base), stream=stream)
            decoded = _whole(container.decode(stream), path)
        else:
            decoded = chain([first], decoded)
        for number, frame in enumerate(decoded):
            now = (number / rate if frame.time is None else frame.time) - origin
            if seek and (frame.time is None or (not number and now > max(times[0], 1 / rate))):
                return [], 0.0
            while shown is not None and len(frames) < len(times) and now > times[len(frames)]:
                frames.append(upright_rgb(shown))
            if len(frames) == len(times):
                break
            shown = frame
        while shown is not None and len(frames) < len(times) and times[len(frames)] <= now + 1.5 / rate:
            frames.append(upright_rgb(shown))
    return frames, now


def _rate(stream: VideoStream) -> float:
    return float(stream.average_rate or 25)


@contextmanager
def _opened(path: str | Path, **options: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    if not Path(path).is_file():
        raise VideoError(f"{path}: {'is a folder, not a video' if Path(path).is_dir() else 'does not exist'}")
    if not Path(path).stat().st_size:
        raise VideoError(f"{path}: is empty (0 bytes)")
    try:
        most = {"max_pixels": str(limits.MAX_PIXELS)}  # FFmpeg checks it too, for frames larger than the header says
        with av.open(str(path), options=most) as container:
            if not container.streams.video:
                raise VideoError(f"{path}: contains no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoError(f"{path}: has an unknown codec")
            height, width = stream.codec_context.height, stream.codec_context.width
            if height * width > limits.MAX_PIXELS:
                raise VideoError(f"{path}: {limits.refuse_size(height, width)}")
            stream.codec_context.options = most | options
            stream.codec_context.thread_count = 1  # automatic threads lose the frames after damage without an error
            yield container, stream
    except VideoError:
        raise
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{path}: cannot be decoded ({reason})") from error


def _whole(frames: Iterable[VideoFrame], path: str | Path) -> Iterator[VideoFrame]:
    """Raise on frames that the decoder marks as corrupt; H.264 and MPEG-4 decoders do, VP8 decoders cannot."""
    for number, frame in enumerate(frames):
        if frame.is_corrupt:
            missing = missing_bytes(path)
            reason = f"truncated, {missing} bytes are missing at its end" if missing else "damaged"
            raise VideoError(f"{path}: frame {number} is {reason}")
        yield frame
