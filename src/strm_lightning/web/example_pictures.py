"""Pictures of examples for the page: the frames of a clip beside each other, which the page shows one by one."""

import base64

from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from strm_lightning.data.decode.image import encode_jpeg

_QUALITY = 85
_BLANK = 1  # side in pixels of the pictures of an examples file without thumbnails


def film_strip(thumbnail: UInt8[Tensor, "L 3 s s"]) -> dict[str, object]:
    """Return a JPEG image of the frames of a clip beside each other as ``{"url": data URL, "frames": L}``.

    The URL is None for a clip of an examples file that contains no pictures.
    """
    if thumbnail.shape[-1] <= _BLANK:
        return {"url": None, "frames": len(thumbnail)}
    strip = rearrange(thumbnail, "l c h w -> h (l w) c").numpy()
    return {
        "url": f"data:image/jpeg;base64,{base64.b64encode(encode_jpeg(strip, _QUALITY)).decode()}",
        "frames": len(thumbnail),
    }
