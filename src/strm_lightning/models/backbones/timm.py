"""Feature maps ``[..., L, D, h, w]`` of clips from any timm model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from strm_lightning.errors import InputError
from strm_lightning.messages import check_positive, did_you_mean
from strm_lightning.models.weights.loading import load_weights

BatchNormPolicy = Literal["train", "frozen"]

# Options that allow any image size; each family of timm accepts one of these sets.
_ANY_SIZE: tuple[dict[str, bool], ...] = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"strict_img_size": False},
    {},
)


class Backbone(nn.Module):
    """A timm model without pooling and classifier, with the pixel normalisation of its pretraining.

    Convolutional maps, channels-last maps (Swin) and patch tokens with or without prefix tokens (ViT, DINOv2, DINOv3)
    are returned as ``[..., D, h, w]``.

    Args:
        name: a timm model name, such as ``resnet50.tv_in1k``.
        pretrained: load timm's pretrained weights, unless ``weights`` is set.
        weights: a local .safetensors or .pth file with a state dict of this timm model (a classifier in it is ignored),
            or ``pip:efficientnet_lite0`` (or ``lite1``, ``lite2``) for the ImageNet weights of the extra ``weights``.
        normalize: subtract the mean and divide by the standard deviation of the pretraining data; False leaves pixels
            in 0 .. 1, as the official STRM code does.
        batch_norm: ``train`` uses and updates batch statistics in training; ``frozen`` uses the pretrained statistics,
            and still trains scale and shift. ``Trainer(sync_batchnorm=True)`` shares statistics between devices.
        chunk_frames: in training, process this many frames at a time and recompute their activations in the backward
            pass: memory for one chunk instead of an episode, for a third more computation. The gradients are the same.
            Needs ``batch_norm="frozen"`` or a network without batch norm.
        checkpoint_blocks: in training, store only the inputs of blocks and recompute the rest in the backward pass
            (timm's gradient checkpointing). The gradients are the same with any ``batch_norm``.

    Raises:
        InputError: timm has no such model, the weights are of another model, the model has no spatial map, or training
            options exclude each other.
        MissingFileError: ``weights`` does not exist.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = True,
        weights: str | Path | None = None,
        normalize: bool = True,
        batch_norm: BatchNormPolicy = "train",
        chunk_frames: int | None = None,
        checkpoint_blocks: bool = False,
    ) -> None:
        super().__init__()
        try:
            self.net = _create(name, pretrained=pretrained and weights is None)
        except AssertionError as error:  # timm cannot disable the pooling of some families
            raise InputError(f"backbone {name!r} has no spatial map: timm raised {str(error)!r}") from error
        self.name = name
        if weights is not None:
            load_weights(self.net, weights)
        config: dict[str, Any] = self.net.pretrained_cfg
        mean, std = (config["mean"], config["std"]) if normalize else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.batch_norm, self.chunk_frames, self.checkpoint_blocks = batch_norm, chunk_frames, checkpoint_blocks
        self.dim = self._probe(config["input_size"][-2:])
        self._momenta = [norm.momentum for norm in self._batch_norms()]
        self._check_training_options()
        if checkpoint_blocks:
            self._checkpoint_blocks()
        self.train()

    def forward(self, clips: UInt8[Tensor, "*B L 3 H W"] | Float[Tensor, "*B L 3 H W"]) -> Float[Tensor, "*B L D h w"]:
        """Compute the map of every frame.

        Args:
            clips: pixels, ``[..., L, 3, H, W]``: 0 .. 255 as uint8, or 0 .. 1 as floating point.

        Returns:
            Maps, ``[..., L, D, h, w]``.

        Raises:
            InputError: the clips have another shape or type.
        """
        _check_clips(clips)
        frames = self.normalize(clips.flatten(0, -4))
        self._update_statistics(True)
        maps = self._chunked(frames) if self.chunk_frames and torch.is_grad_enabled() else self._maps(frames)
        if (self.chunk_frames or self.checkpoint_blocks) and torch.is_grad_enabled():
            self._update_statistics(False)  # the backward pass runs the layers again on the same frames
        return maps.unflatten(0, clips.shape[:-3])

    def train(self, mode: bool = True) -> "Backbone":
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

    def _chunked(self, frames: Tensor) -> Tensor:
        chunks = frames.split(self.chunk_frames or len(frames))
        maps = [checkpoint(self._maps, chunk, use_reentrant=False) for chunk in chunks]
        return torch.cat(maps)

    def _checkpoint_blocks(self) -> None:
        try:
            self.net.set_grad_checkpointing()
        except (AssertionError, AttributeError) as error:
            raise InputError(f"checkpoint_blocks: not supported by timm for backbone {self.name!r}") from error

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
        check_positive(chunk_frames=self.chunk_frames)
        if self.chunk_frames and self.batch_norm == "train" and self._batch_norms():
            raise InputError(
                f"chunk_frames {self.chunk_frames}: backbone {self.name!r} has batch norm, which would use statistics "
                "of one chunk; set batch_norm: frozen, or save memory with checkpoint_blocks: true instead"
            )

    def _maps(self, frames: Tensor) -> Tensor:
        features = self.net.forward_features(frames)
        if isinstance(features, (tuple, list)):  # a map with its class token, or several stages
            features = next((f for f in features if isinstance(f, Tensor) and f.ndim == 4), features[-1])
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            raise InputError(f"backbone {self.name!r} has no spatial map, which the patches are pooled from")
        if features.ndim == 4:
            channels_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"  # timm sets it unless it is NCHW
            return rearrange(features, "f h w d -> f d h w") if channels_last else features
        return self._tokens_to_map(features, (frames.shape[-2], frames.shape[-1]))

    def _tokens_to_map(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        tokens = tokens[:, getattr(self.net, "num_prefix_tokens", 0) :]
        feat_size = getattr(getattr(self.net, "patch_embed", None), "dynamic_feat_size", lambda _: (0, 0))
        rows, columns = feat_size(size)
        if rows * columns != tokens.shape[1]:  # a family that merges patches: assume the aspect ratio of the frame
            rows = max(round((tokens.shape[1] * size[0] / size[1]) ** 0.5), 1)
            columns = tokens.shape[1] // rows
        if rows * columns != tokens.shape[1] or tokens.shape[1] == 1:  # a single token is a class token
            raise InputError(
                f"backbone {self.name!r} returns {tokens.shape[1]} tokens that form no grid, so it has no spatial map"
            )
        return rearrange(tokens, "f (h w) d -> f d h w", h=rows, w=columns)

    def check_size(self, size: int) -> None:
        """Check that the network accepts frames of ``size`` x ``size`` pixels.

        Raises:
            InputError: it does not.
        """
        usual = self.net.pretrained_cfg["input_size"][-2:]
        if size not in usual:
            try:
                self._probe((size, size))
            except (AssertionError, RuntimeError, ValueError) as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise InputError(
                    f"backbone {self.name!r} does not accept frames of {size} x {size} pixels, but of "
                    f"{usual[0]} x {usual[1]} ({reason}); set data.image_size"
                ) from error

    @torch.no_grad()
    def _probe(self, size: Sequence[int]) -> int:
        """Return the channels of the maps, from a forward pass: in some families ``num_features`` differs."""
        training = self.training
        try:
            maps = self.eval()._maps(torch.zeros(1, 3, *size, device=self.mean.device, dtype=self.mean.dtype))
        finally:
            self.train(training)
        return int(maps.shape[1])


def _check_clips(clips: Tensor) -> None:
    if clips.ndim < 4 or clips.shape[-3] != 3 or not (clips.dtype == torch.uint8 or clips.is_floating_point()):
        raise InputError(
            f"clips of shape {list(clips.shape)} and type {clips.dtype}: a backbone takes [..., L, 3, H, W] (frames, "
            "RGB, rows, columns), pixels 0 .. 255 as uint8 or 0 .. 1 as floating point"
        )


def _create(name: str, *, pretrained: bool) -> Any:  # timm families share no typed interface
    if not timm.is_model(name):
        hint = did_you_mean(name.split(".")[0], timm.list_models())
        raise InputError(
            f"backbone {name!r} is unknown to timm {timm.__version__}; {hint}timm.list_models() returns all names"
        )
    for options in _ANY_SIZE:
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="", **options)
        except TypeError as error:
            if not any(option in str(error) for option in options):
                raise
        except (OSError, RuntimeError) as error:  # no network, or the model has no published weights
            if not pretrained:
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"backbone {name!r}: the pretrained weights cannot be loaded ({reason}); set weights: a local file, or "
                "pretrained: false"
            ) from error
    raise AssertionError("the last set of options is empty")
