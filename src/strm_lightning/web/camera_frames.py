"""Frames that the browser takes from a camera and sends as JPEG images."""

import base64
import binascii

import numpy as np
from jaxtyping import UInt8

from strm_lightning.data.decode.image import decode_image
from strm_lightning.errors import InputError

_PREFIX = "data:image/jpeg;base64,"
_MOST_PIXELS = 2**21  # of one frame
_JPEG_START = b"\xff\xd8"


def decode_frames(images: object, count: int) -> UInt8[np.ndarray, "L H W 3"]:
    """Decode the frames of a clip.

    Args:
        images: data URLs of JPEG images of one size.
        count: number of frames L.

    Raises:
        InputError: these are not ``count`` JPEG images of one size.
    """
    if not isinstance(images, list) or len(images) != count:
        raise InputError(f"a recording has {count} frames: keep the camera on for its whole length and record again")
    frames = [_decode(image, number) for number, image in enumerate(images, start=1)]
    if len({frame.shape for frame in frames}) > 1:
        raise InputError("the camera changed the size of its frames: record again")
    return np.stack(frames)


def _decode(image: object, number: int) -> UInt8[np.ndarray, "H W 3"]:
    place = f"frame {number} of the camera"
    if not isinstance(image, str) or not image.startswith(_PREFIX):
        raise InputError(f"{place}: is no JPEG image")
    try:
        data = base64.b64decode(image[len(_PREFIX) :], validate=True)
    except binascii.Error as error:
        raise InputError(f"{place}: is no JPEG image") from error
    if not data.startswith(_JPEG_START):
        raise InputError(f"{place}: is no JPEG image")
    frame = decode_image(data, place)
    if frame.shape[0] * frame.shape[1] > _MOST_PIXELS:
        raise InputError(f"{place}: has more than {_MOST_PIXELS} pixels")
    return frame
