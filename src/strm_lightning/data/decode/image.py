"""Decode and encode single images."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from strm_lightning.data.decode import limits
from strm_lightning.data.decode.video import VideoError

try:
    import simplejpeg
except ImportError:  # an extra; Pillow decodes to the same pixels, slower
    simplejpeg = None


_COLOURS = {"Gray", "RGB", "YCbCr"}  # the other ways to code a JPEG are left to Pillow


def decode_image(data: bytes, place: str) -> UInt8[np.ndarray, "H W 3"]:
    """Decode one image to RGB, to the pixels that Pillow gives; of 16 bits a sample the upper 8 are kept.

    Raises:
        VideoError: damaged, no image, or of more than `limits.MAX_PIXELS`; ``place`` says where it is.
    """
    try:
        if simplejpeg is not None and data[:2] == b"\xff\xd8":
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours in _COLOURS:
                _check_size(height, width, place)
                image: np.ndarray = simplejpeg.decode_jpeg(data, "RGB")
                return image
        with Image.open(io.BytesIO(data)) as opened:  # reads the header only
            _check_size(opened.height, opened.width, place)
            if opened.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
                grey = (np.asarray(opened, np.int64).clip(0, 65535) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.array(opened.convert("RGB"))
    except VideoError:
        raise
    except Exception as error:  # readers of images raise whatever they stumble upon
        raise VideoError(f"{place}: cannot be decoded ({error})") from error


def _check_size(height: int, width: int, place: str) -> None:
    if reason := limits.refuse_size(height, width):
        raise VideoError(f"{place}: {reason}")


def encode_jpeg(image: UInt8[np.ndarray, "H W 3"], quality: int) -> bytes:
    """Encode an image as JPEG, chroma at half resolution."""
    if simplejpeg is not None:
        return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "420"))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()
