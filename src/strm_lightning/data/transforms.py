"""Resize, crop and flip the frames of a clip, with the same crop and flip for all frames."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from strm_lightning.errors import InputError


@dataclass(frozen=True)
class ClipTransform:
    """Resize the short side to ``short_side``, crop a square of ``image_size`` and (in training) flip, all on uint8.

    The crop is random in training and central in test, with its corner at ``int(round((size - image_size) / 2))``.

    Attributes:
        image_size: side of the crop in pixels, S.
        short_side: short side of the frames before the crop; by default ``image_size * 256 / 224``, rounded.
        flip: mirror half of the training clips; wrong if classes name directions (Something-Something).

    Raises:
        InputError: ``image_size`` is below 1 or above ``short_side``.
    """

    image_size: int
    short_side: int = 0
    flip: bool = True

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise InputError(f"image_size is {self.image_size}: give a positive number")
        if not self.short_side:
            object.__setattr__(self, "short_side", round(self.image_size * 256 / 224))
        if self.short_side < self.image_size:
            raise InputError(f"short_side {self.short_side} is smaller than the crop of {self.image_size} pixels")

    def __call__(
        self,
        frames: UInt8[Tensor, "L H W 3"],
        rng: random.Random | None,
        out: UInt8[Tensor, "L 3 S S"] | None = None,
    ) -> UInt8[Tensor, "L 3 S S"]:
        """Transform one clip.

        Args:
            frames: RGB frames of the clip, channels last.
            rng: generator for the crop and the flip of training, in the order rows, columns, flip; None for test.
            out: tensor to write the clip to (for example in shared memory); allocated if None.
        """
        frames = resize_short_side(frames, self.short_side)
        size, (height, width) = self.image_size, frames.shape[1:3]
        top, left = (_offset(extent - size, rng) for extent in (height, width))
        mirror = rng is not None and self.flip and rng.random() < 0.5
        crop = frames[:, top : top + size, left : left + size].permute(0, 3, 1, 2)
        out = torch.empty(crop.shape, dtype=torch.uint8) if out is None else out
        np.copyto(out.numpy(), crop.numpy()[..., ::-1] if mirror else crop.numpy())  # twice as fast as Tensor.copy_
        return out


def resize_short_side(frames: UInt8[Tensor, "L H W 3"], short_side: int) -> UInt8[Tensor, "L h w 3"]:
    """Resize the shorter side to ``short_side`` pixels (bilinear, antialiased) and keep the aspect ratio.

    Frames of that size are returned unchanged. Pixels differ from Pillow's ``resize`` by at most one level.
    """
    if min(frames.shape[1:3]) == short_side:
        return frames
    # Imported here, since torchvision takes longer to import than a help text to print.
    from torchvision.transforms.v2 import InterpolationMode  # type: ignore[import-untyped]
    from torchvision.transforms.v2 import functional as tv

    view = frames.permute(0, 3, 1, 2)  # channels-last in memory: several times faster to resize
    resized: Tensor = tv.resize(view, [short_side], interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized.permute(0, 2, 3, 1)


def _offset(slack: int, rng: random.Random | None) -> int:
    return round(slack / 2) if rng is None else rng.randint(0, slack)
