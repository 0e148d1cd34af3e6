"""Decode and encode single images."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from strm_lightning.data.decode import limits
from strm_lightning.data.decode.video import VideoError

try:
    import simplejpeg
except ImportError:  # optional; Pillow decodes to the same pixels, but slower
    simplejpeg = None


_COLOURS = {"Gray", "RGB", "YCbCr"}  # Pillow decodes JPEGs of other colour spaces


def decode_image(data: bytes, place: str) -> UInt8[np.ndarray, "H W 3"]:
    """Decode one image to RGB, with the same pixels as Pillow; 16-bit samples are reduced to their upper 8 bits.

    Args:
        data: the encoded image.
        place: description of the image, for error messages.

    Raises:
        VideoError: the data is damaged, no image, or larger than `limits.MAX_PIXELS`.
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
    except Exception as error:  # decoders raise many kinds of errors for damaged images
        raise VideoError(f"{place}: cannot be decoded ({error})") from error


def _check_size(height: int, width: int, place: str) -> None:
    if reason := limits.refuse_size(height, width):
        raise VideoError(f"{place}: {reason}")


def encode_jpeg(image: UInt8[np.ndarray, "H W 3"], quality: int) -> bytes:
    """Encode an image as JPEG, with chroma at half resolution."""
    if simplejpeg is not None:
        return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "420"))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()
