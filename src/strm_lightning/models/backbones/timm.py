"""Any timm backbone as one module: clips of pixels in, maps ``[..., L, D, h, w]`` out."""

from collections.abc import Sequence
from difflib import get_close_matches
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
from strm_lightning.models.weights.loading import read_state_dict
from strm_lightning.models.weights.packaged import EFFICIENTNET_LITE0, lite0_file, rename_lite0

BatchNormPolicy = Literal["train", "frozen"]

# Families whose image size is fixed at construction unless asked otherwise; other families refuse the words.
_ANY_SIZE: tuple[dict[str, bool], ...] = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"strict_img_size": False},
    {},
)


class Backbone(nn.Module):
    """A timm model without its pooling and classifier.

    Convolutional maps, channels-last maps (Swin) and patch tokens with or without prefix tokens (ViT, DINOv2, DINOv3)
    all come out as ``[..., D, h, w]``. The pixel normalisation that the weights were trained with is part of it.

    Args:
        name: a timm model name, such as ``resnet50.tv_in1k``.
        pretrained: load timm's pretrained weights for that name, unless ``weights`` are given.
        weights: a local .safetensors or .pth file with a state dict of this timm model (a classifier in it is ignored),
            or ``pip:efficientnet_lite0`` for the ImageNet weights that the extra ``weights`` installs.
        normalize: subtract the mean and divide by the standard deviation of the pretraining data; False leaves pixels
            in 0 .. 1, as the released STRM code does.
        batch_norm: ``train`` lets batch norm take the statistics of each call, and remember them, in training;
            ``frozen`` keeps those of the pretraining, while scale and shift still learn. To share statistics among
            devices is the trainer's business: ``Trainer(sync_batchnorm=True)``.
        chunk_frames: in training, send this many frames through the network at a time, and compute each chunk's
            activations anew in the backward pass: memory for one chunk instead of an episode, for a third more work.
            The gradients are the same; statistics of a chunk would not be, so it needs ``batch_norm="frozen"`` or a
            network without batch norm.
        checkpoint_blocks: in training, keep only what goes from block to block and compute the rest anew in the
            backward pass, as timm does it. The gradients are the same under any ``batch_norm``.

    Raises:
        ValueError: the name is unknown to timm, the weights do not fit, the model gives no spatial map, or the options
            for training exclude each other.
        FileNotFoundError: ``weights`` is not there.
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
        except AssertionError as error:  # a family of several branches, or one that is nothing without its classifier
            raise InputError(f"backbone {name!r} gives no spatial map: timm says {str(error)!r}") from error
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
        """Maps of every frame.

        Args:
            clips: pixels, ``[..., L, 3, H, W]``: levels 0 .. 255 as uint8, or 0 .. 1 as floating point.

        Raises:
            ValueError: the clips are of another shape or type.
        """
        _check_clips(clips)
        frames = self.normalize(clips.flatten(0, -4))
        self._remember_statistics(True)
        maps = self._chunked(frames) if self.chunk_frames and torch.is_grad_enabled() else self._maps(frames)
        if (self.chunk_frames or self.checkpoint_blocks) and torch.is_grad_enabled():
            self._remember_statistics(False)  # the backward pass runs the layers again, on what they have seen
        return maps.unflatten(0, clips.shape[:-3])

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        if self.batch_norm == "frozen":
            for norm in self._batch_norms():
                norm.eval()
        return self

    def normalize(self, frames: Tensor) -> Tensor:
        """Pixels as the network wants them; bytes become floats here, on the device, in one copy."""
        # Convolutions follow their input's layout: a third faster on CPUs, and what tensor cores want. The weights stay
        # as they are, since safetensors saves no others.
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
            raise InputError(f"checkpoint_blocks: timm cannot do it for backbone {self.name!r}") from error

    def _batch_norms(self) -> list[_BatchNorm]:
        return [module for module in self.net.modules() if isinstance(module, _BatchNorm)]

    def _remember_statistics(self, remember: bool) -> None:
        for norm, momentum in zip(self._batch_norms(), self._momenta, strict=True):
            norm.momentum = momentum if remember else 0.0

    def _check_training_options(self) -> None:
        if self.batch_norm not in ("train", "frozen"):
            raise InputError(
                f"batch_norm {self.batch_norm!r}: choose 'train' or 'frozen'; for statistics over all devices set "
                "trainer.sync_batchnorm: true"
            )
        if self.chunk_frames is None:
            return
        if self.chunk_frames < 1:
            raise InputError(f"chunk_frames is {self.chunk_frames}: give a positive number")
        if self.batch_norm == "train" and self._batch_norms():
            raise InputError(
                f"chunk_frames {self.chunk_frames}: backbone {self.name!r} has batch norm, whose statistics would be "
                "those of a chunk; set batch_norm: frozen, or save memory with checkpoint_blocks: true instead"
            )

    def _maps(self, frames: Tensor) -> Tensor:
        features = self.net.forward_features(frames)
        if isinstance(features, (tuple, list)):  # a map and its class token, or several stages
            features = next((f for f in features if isinstance(f, Tensor) and f.ndim == 4), features[-1])
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            raise InputError(f"backbone {self.name!r} gives no spatial map, so there are no patches to enrich")
        if features.ndim == 4:
            channels_last = features.shape[-1] == self.net.num_features != features.shape[1]
            return rearrange(features, "f h w d -> f d h w") if channels_last else features
        return self._tokens_to_map(features, (frames.shape[-2], frames.shape[-1]))

    def _tokens_to_map(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        tokens = tokens[:, getattr(self.net, "num_prefix_tokens", 0) :]
        feat_size = getattr(getattr(self.net, "patch_embed", None), "dynamic_feat_size", lambda _: (0, 0))
        rows, columns = feat_size(size)
        if rows * columns != tokens.shape[1]:  # a family that merges patches on the way: the map has the frame's shape
            rows = max(round((tokens.shape[1] * size[0] / size[1]) ** 0.5), 1)
            columns = tokens.shape[1] // rows
        if rows * columns != tokens.shape[1] or tokens.shape[1] == 1:  # a single token is the class's, not a place's
            raise InputError(
                f"backbone {self.name!r} gives {tokens.shape[1]} tokens that form no grid, so there is no spatial map"
            )
        return rearrange(tokens, "f (h w) d -> f d h w", h=rows, w=columns)

    def check_size(self, size: int) -> None:
        """Find out whether frames of ``size`` x ``size`` pixels can go through, before anything else is done.

        Raises:
            ValueError: they cannot.
        """
        usual = self.net.pretrained_cfg["input_size"][-2:]
        if size not in usual:
            try:
                self._probe((size, size))
            except (AssertionError, RuntimeError, ValueError) as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise InputError(
                    f"backbone {self.name!r} cannot take frames of {size} x {size} pixels, as it can of "
                    f"{usual[0]} x {usual[1]} ({reason}); set data.image_size"
                ) from error

    @torch.no_grad()
    def _probe(self, size: Sequence[int]) -> int:
        """Channels of the maps, found by one forward pass: what a family calls num_features is not always that."""
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
            "RGB, rows, columns), levels 0 .. 255 as uint8 or 0 .. 1 as floating point"
        )


def _create(name: str, *, pretrained: bool) -> Any:  # timm families share no typed interface
    if not timm.is_model(name):
        near = get_close_matches(name.split(".")[0], timm.list_models(), n=4, cutoff=0.5)
        raise InputError(
            f"backbone {name!r} is unknown to timm {timm.__version__}; near names: {', '.join(near) or 'none'}"
        )
    for options in _ANY_SIZE:
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="", **options)
        except TypeError as error:
            if not any(option in str(error) for option in options):
                raise
        except (OSError, RuntimeError) as error:  # no net, or none were ever published
            if not pretrained:
                raise
            raise InputError(
                f"backbone {name!r}: its pretrained weights cannot be had ({_first_line(error)}); give weights: a "
                "local file, or pretrained: false"
            ) from error
    raise AssertionError("the last set of options is empty")


def load_weights(net: nn.Module, weights: str | Path) -> None:
    """Load local weights into a timm model; a classifier in them is left out.

    Args:
        net: a timm model.
        weights: a .safetensors or .pth file, or ``pip:efficientnet_lite0`` for the weights of the extra ``weights``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a state dict, or is not of this model.
    """
    from_pip = str(weights) == EFFICIENTNET_LITE0
    path = lite0_file() if from_pip else Path(weights)
    state = read_state_dict(path)
    state = rename_lite0(state) if from_pip else state
    classifier = ("fc.", "head.", "classifier.", "head_dist.")
    try:
        result = net.load_state_dict({k.removeprefix("module."): v for k, v in state.items()}, strict=False)
    except RuntimeError as error:
        raise InputError(f"weights {weights}: not of this backbone; its tensors have other shapes") from error
    unknown = [key for key in result.unexpected_keys if not key.startswith(classifier)]
    if result.missing_keys or unknown:
        raise InputError(
            f"weights {weights}: not of this backbone; {len(result.missing_keys)} tensors are missing "
            f"(such as {result.missing_keys[:2]}) and {len(unknown)} are unknown (such as {unknown[:2]})"
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
