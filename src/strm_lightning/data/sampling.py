"""Policies that choose the L frames of a clip from the frames of a video."""

import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from strm_lightning.errors import InputError
from strm_lightning.messages import check_positive

FramePolicy = Literal["release", "segments", "dense"]
FRAME_STRIDE = 2


def select_frames(
    policy: FramePolicy,
    available: int,
    num_frames: int,
    rng: random.Random | None,
    *,
    num_segments: int = 1,
    frame_stride: int = FRAME_STRIDE,
) -> list[int]:
    """Choose the frame numbers of a clip, ascending, from a video of ``available`` frames.

    ``release``: evenly spaced (truncated) between two ends; in training each end is at random within
    ``min(5, excess / 2)`` frames of the video's ends, in test they are the second and the second to last frame.
    ``segments``: one frame of each of L equal segments, at random in training, at the centre in test.
    ``dense``: for video backbones, ``num_segments`` runs of L / ``num_segments`` frames with a stride, one in each of
    as many equal parts of the video, at random in training, in the middle of the part in test. In a part that is
    shorter than the run, the frames of the run are evenly spaced.
    Frames of a video shorter than the clip are repeated, in order.

    Args:
        policy: name of the policy.
        available: number of frames of the video.
        num_frames: frames of a clip, L.
        rng: generator for the training choice; None for the deterministic test choice.
        num_segments: runs of ``dense``; it divides L.
        frame_stride: step from a frame of a run of ``dense`` to the next.

    Raises:
        InputError: the policy is unknown, a count is below 1, or L is no multiple of ``num_segments``.

    Examples:
        >>> select_frames("segments", available=80, num_frames=8, rng=None)
        [5, 15, 25, 35, 45, 55, 65, 75]
        >>> select_frames("release", available=80, num_frames=8, rng=None)
        [1, 12, 23, 34, 45, 56, 67, 78]
    """
    if available < 1 or num_frames < 1:
        raise InputError(f"cannot choose {num_frames} of {available} frames")
    if policy == "release":
        return _between(*_release_ends(available, num_frames, rng), num_frames)
    if policy == "segments":
        if rng is None:
            return [(2 * i + 1) * available // (2 * num_frames) for i in range(num_frames)]
        return [min(int((i + rng.random()) * available / num_frames), available - 1) for i in range(num_frames)]
    if policy == "dense":
        check_dense(num_frames, num_segments, frame_stride)
        ends = [available * i // num_segments for i in range(num_segments + 1)]
        parts = [range(start, max(end, start + 1)) for start, end in pairwise(ends)]
        return [frame for part in parts for frame in _run(part, num_frames // num_segments, frame_stride, rng)]
    raise InputError(f"unknown frame policy {policy!r}: choose {' or '.join(get_args(FramePolicy))}")


def reachable_frames(policies: FramePolicy | Sequence[FramePolicy], available: int, num_frames: int) -> list[int]:
    """Return all frame numbers that the policies can choose, in training or in test, ascending.

    With 8 frames a clip, ``release`` can choose at most 48 frames of a video of any length, ``segments`` and ``dense``
    all.
    """
    policies = [policies] if isinstance(policies, str) else policies
    if set(policies) - {"release"}:
        return list(range(available))
    chosen = select_frames("release", available, num_frames, None)
    return sorted({*_reached_by_release(available, num_frames)}.union(chosen))


def check_dense(num_frames: int, num_segments: int, frame_stride: int) -> None:
    """Check the options of the policy ``dense``.

    Raises:
        InputError: a number is not positive, or the frames cannot be divided into the segments.
    """
    check_positive(num_frames=num_frames, num_segments=num_segments, frame_stride=frame_stride)
    if num_frames % num_segments:
        raise InputError(f"num_frames {num_frames} is not a multiple of num_segments {num_segments}")


def _run(part: range, length: int, stride: int, rng: random.Random | None) -> list[int]:
    spare = len(part) - ((length - 1) * stride + 1)
    if spare < 0:
        return _between(part[0], part[-1], length)
    start = part[0] + (spare // 2 if rng is None else rng.randint(0, spare))
    return list(range(start, start + length * stride, stride))


def _release_ends(available: int, num_frames: int, rng: random.Random | None) -> tuple[int, int]:
    if available < max(num_frames, 3):
        return 0, available - 1
    if rng is None:
        return 1, available - 2
    pad = _release_pad(available, num_frames)
    return rng.randint(0, pad), available - 1 - rng.randint(0, pad)


def _release_pad(available: int, num_frames: int) -> int:
    return max(0, min(5, (available - num_frames) // 2))


def _between(start: int, end: int, num_frames: int) -> list[int]:
    return [int(position) for position in np.linspace(start, end, num_frames)]


@lru_cache(maxsize=4096)
def _reached_by_release(available: int, num_frames: int) -> tuple[int, ...]:
    pads = range(_release_pad(available, num_frames) + 1)
    chosen = (_between(start, available - 1 - cut, num_frames) for start in pads for cut in pads)
    return tuple(sorted(set().union(*chosen)))
