"""Base class of backbones: pixels to maps ``[..., T, D, h, w]``, and the registry of backbones by name.

A backbone looks at single frames (``frame_wise``) or at segments of consecutive frames. One of your own is one class::

    @register_backbone("my_video_net")
    class MyVideoNet(ClipBackbone):
        mean_of_pixels, std_of_pixels = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

        def __init__(self, name, *, pretrained=True, weights=None, **options):
            super().__init__(name, build_the_network(), dim=256, **options)

        def steps_of_segment(self, frames):
            return frames // 2

        def maps(self, segments):  # normalised pixels [n, F, 3, H, W]
            return self.net(segments)  # [n, F // 2, 256, h, w]
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from strm_lightning.errors import InputError
from strm_lightning.messages import check_positive

BatchNormPolicy = Literal["train", "frozen"]
TORCHVISION_PREFIX = "torchvision/"  # of the names of torchvision's video models

_BACKBONES: dict[str, "type[ClipBackbone]"] = {}


class ClipBackbone(nn.Module):
    """A network without pooling and classifier, with the pixel normalisation of its pretraining.

    A subclass implements `maps` and, unless it is ``frame_wise``, `steps_of_segment`. Normalisation, segments, chunks
    and the policies of batch norm are those of this class.

    Args:
        name: name of the backbone, for messages and stored features.
        net: the network; its parameters and buffers are those of the backbone.
        dim: channels D of the maps.
        normalize: subtract the mean and divide by the standard deviation of the pretraining data; False leaves pixels
            in 0 .. 1, as the official STRM code does.
        batch_norm: ``train`` uses and updates batch statistics in training; ``frozen`` uses the pretrained statistics,
            and still trains scale and shift. ``Trainer(sync_batchnorm=True)`` shares statistics between devices.
        chunk_frames: in training, process this many frames at a time and recompute their activations in the backward
            pass: memory for one chunk instead of an episode, for a third more computation. The gradients are the same.
            Needs ``batch_norm="frozen"`` or a network without batch norm. Segments are not split.
        checkpoint_blocks: in training, store only the inputs of blocks and recompute the rest in the backward pass.
            The gradients are the same with any ``batch_norm``. The subclass implements it.
        num_segments: number of segments of a clip that are encoded separately. The maps of a clip are those of its
            segments, joined in time. No effect on a ``frame_wise`` backbone.

    Attributes:
        frame_wise: whether the map of a time step depends on a single frame.
        dim: channels D of the maps.
        channels: channels of each stage in ``dim``, for backbones that concatenate maps of several stages.
        mean: mean of the pretraining data, ``[3, 1, 1]``.
        std: standard deviation of the pretraining data, ``[3, 1, 1]``.
        pretrained_on: data set of the loaded weights, or None if it is unknown or does not matter for the test classes.

    Raises:
        InputError: training options exclude each other.
    """

    frame_wise: ClassVar[bool] = False
    mean_of_pixels: Sequence[float] = (0.485, 0.456, 0.406)
    std_of_pixels: Sequence[float] = (0.229, 0.224, 0.225)
    pretrained_on: str | None = None
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        net: nn.Module,
        *,
        dim: int,
        normalize: bool = True,
        batch_norm: BatchNormPolicy = "train",
        chunk_frames: int | None = None,
        checkpoint_blocks: bool = False,
        num_segments: int = 1,
    ) -> None:
        super().__init__()
        self.name, self.net, self.dim, self.num_segments = name, net, dim, num_segments
        self.channels: tuple[int, ...] = (dim,)
        mean, std = (self.mean_of_pixels, self.std_of_pixels) if normalize else ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.batch_norm, self.chunk_frames, self.checkpoint_blocks = batch_norm, chunk_frames, checkpoint_blocks
        self._momenta = [norm.momentum for norm in self._batch_norms()]
        self._check_training_options()
        self.train()

    def maps(self, segments: Tensor) -> Tensor:
        """Compute maps from normalised pixels.

        Args:
            segments: segments ``[n, F, 3, H, W]``, or frames ``[F, 3, H, W]`` if the backbone is ``frame_wise``.

        Returns:
            Maps ``[n, T', D, h, w]`` of the time steps of each segment, or ``[F, D, h, w]`` of each frame.
        """
        raise NotImplementedError

    def steps_of_segment(self, frames: int) -> int:
        """Return the number of time steps T' of a segment of ``frames`` frames.

        Raises:
            InputError: the network does not accept segments of this length.
        """
        raise NotImplementedError

    def steps(self, num_frames: int) -> int:
        """Return the number of time steps T of a clip of ``num_frames`` frames.

        Raises:
            InputError: the network does not accept segments of this length.
        """
        return (
            num_frames if self.frame_wise else self.num_segments * self.steps_of_segment(self._segment_of(num_frames))
        )

    def check_size(self, size: int) -> None:
        """Check that the network accepts frames of ``size`` x ``size`` pixels; a subclass may refuse some sizes.

        Raises:
            InputError: it does not.
        """

    def forward(self, clips: UInt8[Tensor, "*B L 3 H W"] | Float[Tensor, "*B L 3 H W"]) -> Float[Tensor, "*B T D h w"]:
        """Compute the map of every time step.

        Args:
            clips: pixels, ``[..., L, 3, H, W]``: 0 .. 255 as uint8, or 0 .. 1 as floating point.

        Returns:
            Maps, ``[..., T, D, h, w]``; one time step for each frame if the backbone is ``frame_wise``.

        Raises:
            InputError: the clips have another shape or type.
        """
        _check_clips(clips)
        pixels, length = self.normalize(clips.flatten(0, -4)), 1
        if not self.frame_wise:
            length = self._segment_of(clips.shape[-4])
            pixels = pixels.unflatten(0, (-1, length))
        chunk = max(self.chunk_frames // length, 1) if self.chunk_frames and torch.is_grad_enabled() else None
        self._update_statistics(True)
        maps = self.maps(pixels) if chunk is None else self._chunked(pixels, chunk)
        if (chunk or self.checkpoint_blocks) and torch.is_grad_enabled():
            self._update_statistics(False)  # the backward pass runs the layers again on the same frames
        maps = maps if self.frame_wise else maps.flatten(0, 1)
        return maps.unflatten(0, (*clips.shape[:-4], -1))

    def train(self, mode: bool = True) -> "ClipBackbone":
        super().train(mode)
        if self.batch_norm == "frozen":
            for norm in self._batch_norms():
                norm.eval()
        return self

    def normalize(self, frames: Tensor) -> Tensor:
        """Convert pixels to floating point and normalise them."""
        # Convolutions are a third faster on CPUs with channels-last input. The weights are not converted, since
        # safetensors cannot save them in this layout.
        pixels = frames.to(self.mean.dtype, copy=True, memory_format=torch.channels_last)
        if frames.dtype == torch.uint8:
            pixels.div_(255.0)
        return pixels.sub_(self.mean).div_(self.std)

    def _segment_of(self, num_frames: int) -> int:
        if num_frames % self.num_segments:
            raise InputError(
                f"{num_frames} frames of a clip cannot be divided into {self.num_segments} segments: set "
                "data.num_frames to a multiple of data.num_segments"
            )
        return num_frames // self.num_segments

    def _chunked(self, pixels: Tensor, size: int) -> Tensor:
        return torch.cat([checkpoint(self.maps, chunk, use_reentrant=False) for chunk in pixels.split(size)])

    def _batch_norms(self) -> list[_BatchNorm]:
        return [module for module in self.net.modules() if isinstance(module, _BatchNorm)]

    def _update_statistics(self, update: bool) -> None:
        for norm, momentum in zip(self._batch_norms(), self._momenta, strict=True):
            norm.momentum = momentum if update else 0.0

    def _check_training_options(self) -> None:
        if self.batch_norm not in ("train", "frozen"):
            raise InputError(
                f"batch_norm {self.batch_norm!r}: choose 'train' or 'frozen'; for statistics over all devices set "
                "trainer.sync_batchnorm: true"
            )
        check_positive(chunk_frames=self.chunk_frames, num_segments=self.num_segments)
        if self.chunk_frames and self.batch_norm == "train" and self._batch_norms():
            raise InputError(
                f"chunk_frames {self.chunk_frames}: backbone {self.name!r} has batch norm, which would use statistics "
                "of one chunk; set batch_norm: frozen, or save memory with checkpoint_blocks: true instead"
            )


_Backbone = TypeVar("_Backbone", bound=type[ClipBackbone])


def register_backbone(name: str) -> Callable[[_Backbone], _Backbone]:
    """Register a class of backbones; ``backbone: NAME`` then selects it.

    Raises:
        InputError: the name is in use.
    """

    def register(kind: _Backbone) -> _Backbone:
        known = _BACKBONES.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
            raise InputError(f"backbone {name!r}: the name is in use by {known.__module__}.{known.__qualname__}")
        _BACKBONES[name] = kind
        return kind

    return register


def registered_backbone(name: str) -> Any:
    """Return the class that `register_backbone` registered under a name, or None."""
    return _BACKBONES.get(name)


def _check_clips(clips: Tensor) -> None:
    if clips.ndim < 4 or clips.shape[-3] != 3 or not (clips.dtype == torch.uint8 or clips.is_floating_point()):
        raise InputError(
            f"clips of shape {list(clips.shape)} and type {clips.dtype}: a backbone takes [..., L, 3, H, W] (frames, "
            "RGB, rows, columns), pixels 0 .. 255 as uint8 or 0 .. 1 as floating point"
        )
