"""Encode each frame of a video once, and gather the clips of any number of windows from the stored maps."""

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from strm_lightning.classifier.clips import ClipConfig
from strm_lightning.data.sampling import select_frames
from strm_lightning.episode import PooledMaps
from strm_lightning.messages import check_positive
from strm_lightning.models.backbones.timm import Backbone
from strm_lightning.models.enrichment.pooling import pool_maps, scale
from strm_lightning.models.matching.base import Encoded
from strm_lightning.models.strm import STRM

_WINDOWS_AT_ONCE = 32


class FrameStore:
    """Encoded frames of the last time steps of a video; memory does not depend on the length of the video.

    A window of n steps is a clip of n frames, from which the frame policy chooses L. Pooled maps of each frame are
    stored, or maps if the head subtracts the mean of the clip before pooling (``center_clip``), so a frame is encoded
    once. A backbone that is not a `Backbone` may mix the frames of a clip: pixels are stored, and each window is
    encoded separately.

    Args:
        model: the model, in evaluation mode.
        config: number of frames of a clip, and which frames of a window they are.
        capacity: number of steps to store.

    Raises:
        InputError: the capacity is not positive.
    """

    def __init__(self, model: STRM, config: ClipConfig, capacity: int) -> None:
        check_positive(capacity=capacity)
        self.model, self.config, self.capacity = model, config, capacity
        self.end = 0  # step after the last one
        self._rings: list[Tensor] = []  # [capacity, ...]; step t is in row t % capacity
        self._frame_wise = isinstance(model.backbone, Backbone)

    def tensors(self) -> list[Tensor]:
        """Return the stored tensors."""
        return self._rings

    def push(self, frames: UInt8[Tensor, "n 3 S S"], steps: Sequence[int] | None = None) -> None:
        """Encode frames and store them.

        Args:
            frames: pixels.
            steps: time step of each frame, ascending; a step without a frame repeats the frame before it. None for the
                next steps.
        """
        steps = range(self.end, self.end + len(frames)) if steps is None else steps
        self.add(self.encode_frames(frames), steps)

    @torch.inference_mode()
    def add(self, values: Sequence[Tensor], steps: Sequence[int]) -> None:
        """Store frames that `encode_frames` encoded; for ``steps`` see `push`."""
        if not self._rings:
            self._rings = [value.new_zeros(self.capacity, *value.shape[1:]) for value in values]
        for i, step in enumerate(steps):
            missing = range(max(self.end, step - self.capacity + 1), step)
            before = (self.end - 1) % self.capacity
            for ring, value in zip(self._rings, values, strict=True):
                if self.end and missing:
                    ring[[t % self.capacity for t in missing]] = ring[before].clone()
                ring[step % self.capacity] = value[i]
            self.end = step + 1

    @torch.inference_mode()
    def encode(self, windows: Sequence[tuple[int, int]]) -> Encoded:
        """Encode windows, each from its first step to the step after its last one.

        Returns:
            Encoded clips, with leading axis ``len(windows)``.
        """
        parts = [
            self._encode_windows(windows[i : i + _WINDOWS_AT_ONCE]) for i in range(0, len(windows), _WINDOWS_AT_ONCE)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @torch.inference_mode()
    def encode_frames(self, frames: UInt8[Tensor, "n 3 S S"]) -> list[Tensor]:
        """Compute what is stored of frames, such as their pooled maps."""
        if not self._frame_wise:
            return [frames]
        head = self.model.head
        maps = self.model.backbone(frames.to(next(self.model.parameters()).device))
        if head.center_clip:
            return [maps]
        pooled = pool_maps(maps, head.patch_grid)
        return [pooled.grid, pooled.mean]

    def _encode_windows(self, windows: Sequence[tuple[int, int]]) -> Encoded:
        model, head = self.model, self.model.head
        policy, count = self.config.frame_policy, self.config.num_frames
        chosen = [[start + i for i in select_frames(policy, end - start, count, None)] for start, end in windows]
        rows = torch.tensor(chosen) % self.capacity
        gathered = [ring[rows.to(ring.device)] for ring in self._rings]
        if not self._frame_wise:
            features = model.encode(gathered[0].to(next(model.parameters()).device))
        elif head.center_clip:
            features = head.enrich(gathered[0])
        else:
            pooled = PooledMaps(grid=gathered[0], mean=gathered[1])
            features = head.enrich_pooled(scale(pooled) if head.scale_clip else pooled)
        return head.encode(features)
