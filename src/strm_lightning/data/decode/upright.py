"""Convert decoded frames to upright RGB."""

import struct
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

_TURNS = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))  # display matrices of 0 to 3 left turns


class UprightRGB:
    """Convert frames to RGB, rotated and mirrored by the display matrix of the video.

    All frames are converted with the size and matrix of the first one, even if the stream changes. One reformatter is
    used for all frames of a video; a new one for each frame takes 4 times as long.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None
        self._matrix = (1, 0, 0, 1)

    def __call__(self, frame: VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
        if self._size is None:
            self._size, self._matrix = (frame.width, frame.height), _display_matrix(frame)
        image = self._reformatter.reformat(frame, *self._size, format="rgb24").to_ndarray()
        return image if self._matrix == (1, 0, 0, 1) else _displayed(image, self._matrix)


def _display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """Return (a, b, c, d) of a frame's display matrix, rounded to quarter turns; (1, 0, 0, 1) if it has none.

    The pixel (x, y) is shown at (a x + c y, b x + d y), with y down. PyAV's ``frame.rotation`` ignores mirroring.
    """
    try:
        side_data: Any = frame.side_data  # missing in PyAV's type annotation
        data = bytes(side_data["DISPLAYMATRIX"])
    except KeyError:
        return 1, 0, 0, 1
    except ValueError:  # the frame has another kind of side data, unknown to PyAV
        return _TURNS[round(frame.rotation / 90) % 4]
    a, b, _, c, d = struct.unpack("=5i", data[:20])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return -1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1
    return 0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0


def _displayed(image: UInt8[np.ndarray, "H W 3"], matrix: tuple[int, int, int, int]) -> UInt8[np.ndarray, "h w 3"]:
    a, b, c, d = matrix
    if not a:
        image = image.transpose(1, 0, 2)
    return np.ascontiguousarray(image[:: b + d, :: a + c])
