"""Turn a video file or array into clips of L frames."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from strm_lightning.classifier.videos import Video, Videos, VideoSource, read_path
from strm_lightning.data.decode.video import VideoError, frame_rate, iter_frames
from strm_lightning.data.sampling import FRAME_STRIDE, FramePolicy, select_frames
from strm_lightning.data.transforms import ClipTransform
from strm_lightning.errors import InputError, InputTypeError


@dataclass(frozen=True)
class ClipConfig:
    """Test-time options of `EpisodeDataModule` that turn a video into a clip.

    Attributes:
        num_frames: frames L of a clip.
        image_size: height and width of a clip after the center crop, in pixels.
        short_side: short side of a frame before the crop, in pixels; 0 for ``image_size`` x 256 / 224.
        frame_policy: which frames of the video are used.
        num_segments: runs of consecutive frames of the policy ``dense``.
        frame_stride: step between the frames of a run of ``dense``.
    """

    num_frames: int = 8
    image_size: int = 224
    short_side: int = 0
    frame_policy: FramePolicy = "segments"
    num_segments: int = 1
    frame_stride: int = FRAME_STRIDE

    def frames_of(self, available: int) -> list[int]:
        """Choose the frame numbers of the clip from a video of ``available`` frames."""
        runs = {"num_segments": self.num_segments, "frame_stride": self.frame_stride}
        return select_frames(self.frame_policy, available, self.num_frames, None, **runs)

    @cached_property
    def transform(self) -> ClipTransform:
        """Resize and center crop."""
        return ClipTransform(self.image_size, self.short_side, flip=False)


def read_clip(video: Video, config: ClipConfig) -> UInt8[Tensor, "L 3 S S"]:
    """Read one clip from a whole video; frames are repeated if the video has fewer than the clip.

    Raises:
        VideoError: the file cannot be read, or the array is empty.
        InputTypeError: the array is not ``[F, H, W, 3]`` of uint8.
    """
    if isinstance(video, (str, Path)):
        return config.transform(read_path(video, config.frames_of), None)
    if isinstance(video, VideoSource):
        return config.transform(video.read(config.frames_of), None)
    frames = check_array(video)
    return config.transform(frames[config.frames_of(len(frames))], None)


def check_first_frame(video: str | Path | VideoSource) -> None:
    """Decode the first frame of a video, a check that takes milliseconds.

    Raises:
        VideoError: the file does not exist, contains no video, or is damaged at its start.
    """
    if isinstance(video, VideoSource):
        video.read(lambda _: [0])
    elif Path(video).is_dir():
        read_path(video, lambda _: [0])
    else:
        next(iter(iter_frames(video)))


def check_array(video: Video) -> UInt8[Tensor, "F H W 3"]:
    """Convert a decoded video to a tensor.

    Raises:
        VideoError: the array is empty.
        InputTypeError: the video is not an array ``[F, H, W, 3]`` of uint8.
    """
    if not isinstance(video, (np.ndarray, Tensor)):
        raise InputTypeError(
            f"a video is a path or an array [frames, height, width, 3] of uint8, not {type(video).__name__}"
        )
    frames = torch.as_tensor(video)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
        raise InputTypeError(f"a decoded video is [frames, height, width, 3] of uint8, not {describe_tensor(frames)}")
    if not frames.numel():
        raise VideoError(f"array of shape {list(frames.shape)}: has no pixels")
    return frames


def describe_tensor(tensor: Tensor) -> str:
    """``"[2, 3] of float32"``."""
    return f"{list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def is_one(videos: Video | Videos) -> bool:
    """Whether this is one video and not a sequence of videos."""
    return isinstance(videos, (str, Path, VideoSource)) or (
        isinstance(videos, (np.ndarray, Tensor)) and videos.ndim not in (1, 5)
    )


def as_list(videos: Video | Videos) -> list[Video]:
    """Return one or several videos as a list."""
    return [cast("Video", videos)] if is_one(videos) else list(cast("Sequence[Video]", videos))


@dataclass
class _Window:
    start: float
    frames: list[Tensor] = field(default_factory=list)


def windows(
    video: Video, config: ClipConfig, *, seconds: float, stride: float, fps: float = 25.0
) -> Iterator[tuple[float, float, UInt8[Tensor, "L 3 S S"]]]:
    """Yield the clips of a sliding window over a video.

    A clip consists of the frames in the middle of L equal parts of its window, or with the policy ``dense`` of its runs
    of frames. Only these frames are stored, so memory
    depends on ``seconds / stride`` and not on the length of the video. At the end of the video, a window that has more
    than half of its frames is filled with the last frame, and other incomplete windows are dropped. A video shorter
    than a window is one clip. Windows in a gap between time stamps, without any frame, are left out.

    Args:
        video: a file or an array.
        config: size and number of frames of a clip.
        seconds: length of a window.
        stride: seconds between the starts of two windows.
        fps: frames per second of an array; the times of a file are its time stamps.

    Yields:
        Start and end in seconds from the first frame, and the clip.

    Raises:
        InputError: a length is not positive.
        VideoError: the file cannot be read; raised when iteration reaches the damage.
    """
    if not (seconds > 0 and stride > 0 and fps > 0):
        raise InputError(f"windows of {seconds} s every {stride} s at {fps} frames per second: give positive numbers")
    middles = _middles(video, config, seconds, fps)
    opened: deque[_Window] = deque()
    next_start, now, any_closed = 0.0, 0.0, False
    image: np.ndarray | None = None
    for newest, time in _from_zero(_timed_frames(video, fps)):
        gap, before = time - now > seconds, image
        image, now = newest, time
        if next_start + seconds <= now:
            next_start += stride * (math.floor((now - seconds - next_start) / stride) + 1)
        while now >= next_start:
            opened.append(_Window(next_start))
            next_start += stride
        if gap and before is not None:  # windows that end in the gap do not contain the new frame
            _fill([w for w in opened if w.start + seconds <= now], before, now, middles, config)
        _fill(opened, image, now, middles, config)
        while opened and len(opened[0].frames) == config.num_frames:
            any_closed = True
            yield opened[0].start, opened[0].start + seconds, torch.stack(opened.popleft().frames)
    if image is None or not any_closed:
        yield 0.0, now, read_clip(video, config)
        return
    for window in opened:
        if len(window.frames) > config.num_frames / 2:
            missing = config.num_frames - len(window.frames)
            yield window.start, now, torch.stack(window.frames + [_resize(image, config)] * missing)


def _middles(video: Video, config: ClipConfig, seconds: float, fps: float) -> list[float]:
    """Return the time of each frame of a clip in its window."""
    if config.frame_policy != "dense":
        return [(i + 0.5) * seconds / config.num_frames for i in range(config.num_frames)]
    rate = frame_rate(video) if isinstance(video, (str, Path)) else fps
    available = max(round(seconds * rate), 1)
    # The first frame after half a frame earlier, so that small errors of time stamps do not matter.
    return [max(frame - 0.5, 0.0) * seconds / available for frame in config.frames_of(available)]


def regular_frames(
    video: Video, config: ClipConfig, *, rate: float, fps: float = 25.0
) -> Iterator[tuple[UInt8[Tensor, "3 S S"], int]]:
    """Yield the first frame of each time step, resized, and the number of the step; steps without a frame are missing.

    Args:
        video: a file or an array.
        config: size of a frame.
        rate: time steps per second.
        fps: frames per second of an array; the times of a file are its time stamps.

    Raises:
        VideoError: the file cannot be read; raised when iteration reaches the damage.
    """
    last = -1
    for image, time in _from_zero(_timed_frames(video, fps)):
        step = math.floor(time * rate + 1e-6)
        if step > last:
            last = step
            yield _resize(image, config), step


def _fill(
    opened: Iterable[_Window], image: np.ndarray, now: float, middles: Sequence[float], config: ClipConfig
) -> None:
    """Append the frame, resized once, to the windows that have fewer frames than middles have passed."""
    resized = None
    for window in opened:
        due = sum(now >= window.start + middle for middle in middles) - len(window.frames)
        if due:
            resized = _resize(image, config) if resized is None else resized
            window.frames += [resized] * due


def _timed_frames(video: Video, fps: float) -> Iterator[tuple[np.ndarray, float]]:
    if isinstance(video, (str, Path)) and not Path(video).is_dir():
        return iter_frames(video)
    if isinstance(video, (str, Path)):
        video = read_path(video, range)
    elif isinstance(video, VideoSource):
        video = video.read(range)
    return ((image, i / fps) for i, image in enumerate(check_array(video).numpy()))


def _from_zero(frames: Iterator[tuple[np.ndarray, float]]) -> Iterator[tuple[np.ndarray, float]]:
    """Subtract the first time stamp; where time stamps jump back, as in joined files, continue from the last time."""
    origin, last = math.inf, 0.0
    for image, time in frames:
        if time - origin < last:
            origin = time - last
        last = time - origin
        yield image, last


def _resize(image: np.ndarray, config: ClipConfig) -> UInt8[Tensor, "3 S S"]:
    return config.transform(torch.from_numpy(image)[None], None)[0]
