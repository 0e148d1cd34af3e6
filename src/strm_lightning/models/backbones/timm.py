"""Maps ``[..., L, D, h, w]`` of clips from any timm model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from strm_lightning.errors import InputError
from strm_lightning.messages import did_you_mean
from strm_lightning.models.backbones.base import ClipBackbone
from strm_lightning.models.weights.loading import load_weights

# Options that allow any image size; each family of timm accepts one of these sets.
_ANY_SIZE: tuple[dict[str, bool], ...] = (
    {"strict_img_size": False},  # first: Swin of earlier timm versions accepts the other options without effect
    {"dynamic_img_size": True, "dynamic_img_pad": True},
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
            finer, and so on. Later stages are removed. Several stages: their maps are enlarged to the finest grid
            (nearest neighbour) and concatenated, in this order.
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
        stage: int | Sequence[int] = -1,
        **options: Any,
    ) -> None:
        stages = [stage] if isinstance(stage, int) else list(stage)
        if not stages or len(set(stages)) < len(stages):
            raise InputError(f"backbone_stage {stages}: give one stage or more, each once")
        try:
            net = _create(name, pretrained=pretrained and weights is None)
        except AssertionError as error:  # timm cannot disable the pooling of some families
            reason = str(error) or repr(error)
            raise InputError(f"backbone {name!r} has no spatial map: timm raised {reason}") from error
        if weights is not None:
            load_weights(net, weights)
        config: dict[str, Any] = net.pretrained_cfg
        self.mean_of_pixels, self.std_of_pixels = config["mean"], config["std"]
        self.stages = tuple(stages)
        self.stage_indices = _cut_after(net, name, stages)
        super().__init__(name, net, dim=0, **options)
        self.channels = self._probe(config["input_size"][-2:])
        self.dim = sum(self.channels)
        if self.checkpoint_blocks:
            self._checkpoint_blocks()

    def maps(self, frames: Tensor) -> Tensor:
        maps = self._maps_of_stages(frames)
        size = max((stage.shape[-2], stage.shape[-1]) for stage in maps)
        same = [m if m.shape[-2:] == size else F.interpolate(m, size) for m in maps]
        return same[0] if len(same) == 1 else torch.cat(same, 1)

    def _maps_of_stages(self, frames: Tensor) -> list[Tensor]:
        net: Any = self.net
        indices = list(self.stage_indices.values())
        if not indices:
            return [self._as_map(net.forward_features(frames), frames)]
        if -1 not in self.stages:
            found = net.forward_intermediates(frames, indices, stop_early=True, intermediates_only=True)
            last = None
        else:
            last, found = net.forward_intermediates(frames, indices)
        by_index = dict(zip(sorted(indices), found, strict=True))
        return [
            by_index[self.stage_indices[stage]] if stage in self.stage_indices else self._as_map(last, frames)
            for stage in self.stages
        ]

    def _as_map(self, features: Any, frames: Tensor) -> Tensor:
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
    def _probe(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the channels of each stage, from a forward pass: in some families ``num_features`` differs."""
        training = self.training
        try:
            frames = torch.zeros(1, 3, *size, device=self.mean.device, dtype=self.mean.dtype)
            maps = self.eval()._maps_of_stages(frames)
        finally:
            self.train(training)
        return tuple(int(stage.shape[1]) for stage in maps)


def _cut_after(net: Any, name: str, wanted: Sequence[int]) -> dict[int, int]:
    """Remove the stages after the last wanted one (negative, from the end); return the indices of all but -1, from 0.

    Raises:
        InputError: the model has no such stage, or one without a finer grid than the last.
    """
    stages = list(net.feature_info) if hasattr(net, "feature_info") else []
    grids = [info["reduction"] for info in stages]
    finer = [index - len(grids) for index, reduction in enumerate(grids) if reduction < grids[-1]]
    for stage in wanted:
        if stage != -1 and (stage not in finer or not hasattr(net, "prune_intermediate_layers")):
            choices = f"choose {', '.join(map(str, finer))} or -1" if finer else "its blocks have the same grid; use -1"
            raise InputError(
                f"backbone_stage {stage}: backbone {name!r} has no such stage with a finer grid; {choices}"
            )
    indices = {stage: len(stages) + stage for stage in wanted if stage != -1}
    if -1 not in wanted:
        net.prune_intermediate_layers([max(indices.values())], prune_norm=True, prune_head=True)
        if hasattr(net, "head"):  # ConvNeXt of earlier timm versions keeps a norm there, which DDP would find unused
            net.head = nn.Identity()
    return indices


def _create(name: str, *, pretrained: bool) -> Any:  # timm families share no typed interface
    import timm  # takes longer to import than a help text to print; it also imports wandb and torchvision

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
