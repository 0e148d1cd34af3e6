"""From a video, of whatever kind and length, to clips of L frames as the model was trained on."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from strm_lightning.data.decode.video import VideoError, count_frames, iter_frames, read_frames
from strm_lightning.data.sampling import FramePolicy, select_frames
from strm_lightning.data.transforms import ClipTransform
from strm_lightning.errors import InputError, InputTypeError

Video: TypeAlias = str | Path | np.ndarray | Tensor  # a file, or pixel levels [F, H, W, 3] as uint8
Videos: TypeAlias = Sequence[Video] | np.ndarray | Tensor  # several: a list, or an array with one axis more


@dataclass(frozen=True)
class Preprocessing:
    """How a video becomes a clip; the test-time choices of `EpisodeDataModule`.

    Attributes:
        num_frames: frames of a clip, L.
        image_size: height and width of a clip in pixels, after the central crop.
        short_side: short side of a frame before the crop, in pixels; 0 for ``image_size`` x 256 / 224.
        frame_policy: which frames of the video.
    """

    num_frames: int = 8
    image_size: int = 224
    short_side: int = 0
    frame_policy: FramePolicy = "segments"

    @property
    def transform(self) -> ClipTransform:
        """Resize and central crop."""
        return ClipTransform(self.image_size, self.short_side, flip=False)


def read_clip(video: Video, how: Preprocessing) -> UInt8[Tensor, "L 3 S S"]:
    """Read one clip that spans the whole video; a video with fewer frames than a clip repeats some.

    Raises:
        VideoError: the file cannot be read, or the array has no frame.
        TypeError: the array is not ``[F, H, W, 3]`` of uint8.
    """
    if isinstance(video, (str, Path)):
        chosen = select_frames(how.frame_policy, count_frames(video), how.num_frames, None)
        return how.transform(read_frames(video, chosen), None)
    frames = check_array(video)
    chosen = select_frames(how.frame_policy, len(frames), how.num_frames, None)
    return how.transform(frames[chosen], None)


def check_first_frame(path: str | Path) -> None:
    """Decode the first frame of a video file, which takes milliseconds; damage further on is found by `read_clip`.

    Raises:
        VideoError: there is no such file, or it is empty, has no video in it or is damaged at its start.
    """
    next(iter(iter_frames(path)))


def check_array(video: np.ndarray | Tensor) -> UInt8[Tensor, "F H W 3"]:
    """A decoded video as a tensor, refused in words where it is anything but ``[F, H, W, 3]`` of uint8."""
    if not isinstance(video, (np.ndarray, Tensor)):
        raise InputTypeError(
            f"a video is a path or an array [frames, height, width, 3] of uint8, not {type(video).__name__}"
        )
    frames = torch.as_tensor(video)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
        dtype = str(frames.dtype).removeprefix("torch.")
        raise InputTypeError(
            f"a decoded video is [frames, height, width, 3] of uint8, not {list(frames.shape)} of {dtype}"
        )
    if not frames.numel():
        raise VideoError(f"array of shape {list(frames.shape)}: has no pixels")
    return frames


def is_one(videos: Video | Videos) -> bool:
    """Whether this is one video, and not a row of them."""
    return isinstance(videos, (str, Path)) or (isinstance(videos, (np.ndarray, Tensor)) and videos.ndim not in (1, 5))


def in_a_row(videos: Video | Videos) -> list[Video]:
    """One video or several as a list."""
    return [cast("Video", videos)] if is_one(videos) else list(cast("Sequence[Video]", videos))


def video_name(video: Video) -> str:
    """The path, or the shape of an array."""
    return str(video) if isinstance(video, (str, Path)) else f"array {'x'.join(map(str, video.shape))}"


@dataclass
class _Window:
    start: float
    picks: list[Tensor] = field(default_factory=list)


def windows(
    video: Video, how: Preprocessing, *, seconds: float, stride: float, fps: float = 25.0
) -> Iterator[tuple[float, float, UInt8[Tensor, "L 3 S S"]]]:
    """Cut a video into clips ``(start, end, pixels)``; one begins every ``stride`` seconds.

    A clip takes a frame from the middle of each of L equal parts of its window. Only these frames are kept, so memory
    depends on ``seconds / stride`` and not on the length of the video. A window that the video's end cuts off is
    completed with the last frame if more than half of it was seen; a video shorter than a window is one clip. Times
    count from the first frame. A window in which a file has no frame, as in a gap between its time stamps, is left out.

    Args:
        video: a file or an array.
        how: size and number of frames of a clip.
        seconds: length of a window.
        stride: from the start of a window to the start of the next, in seconds.
        fps: frames a second of an array; a file knows its own times.

    Raises:
        ValueError: a length is not positive.
        VideoError: the file cannot be read, told when the damage is reached.
    """
    if not (seconds > 0 and stride > 0 and fps > 0):
        raise InputError(f"windows of {seconds} s every {stride} s at {fps} frames a second: give positive numbers")
    middles = [(i + 0.5) * seconds / how.num_frames for i in range(how.num_frames)]
    opened: deque[_Window] = deque()
    coming, now, any_closed = 0.0, 0.0, False
    image: np.ndarray | None = None
    for newest, time in _from_zero(_timed_frames(video, fps)):
        gap, before = time - now > seconds, image
        image, now = newest, time
        if coming + seconds <= now:
            coming += stride * (math.floor((now - seconds - coming) / stride) + 1)
        while now >= coming:
            opened.append(_Window(coming))
            coming += stride
        if gap and before is not None:  # windows that end in the gap do not have the new frame
            _fill([w for w in opened if w.start + seconds <= now], before, now, middles, how)
        _fill(opened, image, now, middles, how)
        while opened and len(opened[0].picks) == how.num_frames:
            any_closed = True
            yield opened[0].start, opened[0].start + seconds, torch.stack(opened.popleft().picks)
    if image is None or not any_closed:
        yield 0.0, now, read_clip(video, how)
        return
    for window in opened:
        if len(window.picks) > how.num_frames / 2:
            missing = how.num_frames - len(window.picks)
            yield window.start, now, torch.stack(window.picks + [_shrink(image, how)] * missing)


def _fill(
    opened: Iterable[_Window], image: np.ndarray, now: float, middles: Sequence[float], how: Preprocessing
) -> None:
    """Give a frame to the windows that are due for one at this time; it is resized once."""
    small = None
    for window in opened:
        due = sum(now >= window.start + middle for middle in middles) - len(window.picks)
        if due:
            small = _shrink(image, how) if small is None else small
            window.picks += [small] * due


def _timed_frames(video: Video, fps: float) -> Iterator[tuple[np.ndarray, float]]:
    if isinstance(video, (str, Path)):
        return iter_frames(video)
    return ((image, i / fps) for i, image in enumerate(check_array(video).numpy()))


def _from_zero(frames: Iterator[tuple[np.ndarray, float]]) -> Iterator[tuple[np.ndarray, float]]:
    """Count times from the first frame; where time stamps jump back, as in joined files, go on from the last time."""
    origin, last = math.inf, 0.0
    for image, time in frames:
        if time - origin < last:
            origin = time - last
        last = time - origin
        yield image, last


def _shrink(image: np.ndarray, how: Preprocessing) -> UInt8[Tensor, "3 S S"]:
    return how.transform(torch.from_numpy(image)[None], None)[0]
