"""Clips against a literal Pillow pipeline: short side by bilinear resize, then a crop."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from strm_lightning.data.transforms import ClipTransform, resize_short_side


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth structure with some noise, as in a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    noise = rng.integers(-12, 13, (height, width, 3))
    return np.clip(np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + noise, 0, 255).astype(
        np.uint8
    )


def by_pillow(image: np.ndarray, short_side: int, size: int) -> np.ndarray:
    pil = Image.fromarray(image)
    width, height = pil.size
    if min(width, height) != short_side:
        scale = (
            (short_side, int(short_side * height / width))
            if width < height
            else (int(short_side * width / height), short_side)
        )
        pil = pil.resize(scale, Image.Resampling.BILINEAR)
    left, top = round((pil.size[0] - size) / 2), round((pil.size[1] - size) / 2)
    return np.asarray(pil.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(("height", "width"), [(256, 340), (341, 256), (240, 320), (480, 640), (176, 144), (256, 256)])
def test_test_clips_equal_pillow_within_a_level(height: int, width: int) -> None:
    frames = np.stack([picture(height, width, seed) for seed in range(2)])
    ours = ClipTransform(224, flip=True)(torch.from_numpy(frames), None).permute(0, 2, 3, 1).numpy()
    theirs = np.stack([by_pillow(frame, 256, 224) for frame in frames])
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= (0 if min(height, width) == 256 else 1)
    assert (difference > 0).mean() < 0.01


def test_all_frames_of_a_training_clip_share_crop_and_flip() -> None:
    frames = torch.from_numpy(picture(40, 50)).expand(8, -1, -1, -1)
    seen = set()
    for i in range(60):
        clip = ClipTransform(28, flip=True, short_side=40)(frames, random.Random(i))
        assert (clip == clip[:1]).all()
        found = [
            (top, left, flip)
            for flip in (False, True)
            for top in range(13)
            for left in range(23)
            if torch.equal(
                (clip[0].flip(-1) if flip else clip[0]).permute(1, 2, 0), frames[0, top : top + 28, left : left + 28]
            )
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert {flip for *_, flip in seen} == {False, True}
    assert {top for top, *_ in seen} >= {0, 12}
    assert len({left for _, left, _ in seen}) > 15


def test_flip_can_be_turned_off() -> None:
    ramp = torch.arange(50, dtype=torch.uint8).view(1, 1, 50, 1).expand(2, 40, 50, 3)
    transform = ClipTransform(28, flip=False, short_side=40)
    for i in range(30):
        clip = transform(ramp, random.Random(i)).int()
        assert (clip.diff(dim=-1) == 1).all()


def test_clips_are_written_where_they_are_wanted() -> None:
    frames = torch.from_numpy(picture(64, 64)).unsqueeze(0)
    out = torch.zeros(2, 1, 3, 32, 32, dtype=torch.uint8)
    clip = ClipTransform(32, flip=True, short_side=36)(frames, random.Random(1), out=out[1])
    assert clip.data_ptr() == out[1].data_ptr()
    assert out[1].any()
    assert not out[0].any()
    torch.testing.assert_close(clip, ClipTransform(32, flip=True, short_side=36)(frames, random.Random(1)))


def test_sizes_are_checked_and_have_a_default() -> None:
    assert ClipTransform(224, flip=True).short_side == 256
    assert ClipTransform(64, flip=True).short_side == 73
    with pytest.raises(ValueError, match="short_side 100 is smaller than the crop of 112"):
        ClipTransform(112, flip=True, short_side=100)
    with pytest.raises(ValueError, match="give a positive number"):
        ClipTransform(0, flip=True)


def test_frames_of_the_right_size_are_not_resized() -> None:
    frames = torch.from_numpy(picture(256, 300)).unsqueeze(0)
    assert resize_short_side(frames, 256) is frames
