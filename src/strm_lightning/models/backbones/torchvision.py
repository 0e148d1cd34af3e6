"""Maps ``[..., T, D, h, w]`` of clips from torchvision's video models."""

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torchvision.models import get_model, get_model_weights, list_models, video  # type: ignore[import-untyped]

from strm_lightning.errors import InputError
from strm_lightning.messages import did_you_mean
from strm_lightning.models.backbones.base import TORCHVISION_PREFIX, ClipBackbone
from strm_lightning.models.weights.loading import load_weights

_FRAMES = 16  # of a segment in pretraining, for checks of sizes
_CLASSIFIERS = ("fc", "classifier", "head")


class VideoBackbone(ClipBackbone):
    """A video model of torchvision without pooling and classifier.

    Of 16 frames, ``r3d_18``, ``r2plus1d_18`` and ``s3d`` give 2 time steps, ``swin3d_t``, ``swin3d_s``, ``swin3d_b``,
    ``mvit_v1_b`` and ``mvit_v2_s`` give 8, and ``mc3_18`` gives 16. The MViT take 16 frames of 224 x 224 pixels only.

    Args:
        name: a torchvision model name with prefix, such as ``torchvision/r2plus1d_18``.
        pretrained: download torchvision's default weights, trained on Kinetics-400, unless ``weights`` is set.
        weights: a local .safetensors or .pth file with a state dict of this model (a classifier in it is ignored).
        **options: options of `ClipBackbone`.

    Attributes:
        image_size: height and width of the frames in pretraining, in pixels.

    Raises:
        InputError: torchvision has no such video model, the weights are of another model or cannot be downloaded, or
            training options exclude each other.
        MissingFileError: ``weights`` does not exist.
    """

    def __init__(
        self, name: str, *, pretrained: bool = True, weights: str | Path | None = None, **options: Any
    ) -> None:
        net = _create(name, pretrained=pretrained and weights is None)
        for classifier in _CLASSIFIERS:
            if hasattr(net, classifier):
                setattr(net, classifier, nn.Identity())
        if weights is not None:
            load_weights(net, weights)
        preset = _preset(name)
        self.mean_of_pixels, self.std_of_pixels, self.image_size = preset.mean, preset.std, preset.crop_size[0]
        if weights is not None:
            self.pretrained_on = f"the data of {Path(weights).name}, Kinetics-400 if torchvision published it"
        elif pretrained:
            self.pretrained_on = "Kinetics-400"
        super().__init__(name, net, dim=0, **options)
        self.dim = self._shape_on_meta(_FRAMES, self.image_size)[2]

    def maps(self, segments: Tensor) -> Tensor:
        return rearrange(self._features(rearrange(segments, "n f c h w -> n c f h w")), "n d t h w -> n t d h w")

    def steps_of_segment(self, frames: int) -> int:
        return self._shape_on_meta(frames, self.image_size)[1]

    def check_size(self, size: int) -> None:
        self._shape_on_meta(_FRAMES, size)

    def _features(self, pixels: Tensor) -> Tensor:
        net: Any = self.net
        if isinstance(net, video.MViT):
            return self._tokens(net, pixels)
        if isinstance(net, video.SwinTransformer3d):
            blocks = [net.patch_embed, net.pos_drop, *_flat(net.features), net.norm]
            return rearrange(self._run(blocks, pixels), "n t h w d -> n d t h w")
        if isinstance(net, video.S3D):
            return self._run(net.features, pixels)
        return self._run([net.stem, *net.layer1, *net.layer2, *net.layer3, *net.layer4], pixels)

    def _tokens(self, net: Any, pixels: Tensor) -> Tensor:
        tokens = net.pos_encoding(net.conv_proj(pixels).flatten(2).mT)
        sizes = (net.pos_encoding.temporal_size, *net.pos_encoding.spatial_size)
        for block in net.blocks:
            tokens, sizes = self._call(block, tokens, sizes)
        steps, rows, columns = sizes
        tokens = net.norm(tokens)[:, 1:]  # without the class token
        return rearrange(tokens, "n (t h w) d -> n d t h w", t=steps, h=rows, w=columns)

    def _run(self, blocks: Any, pixels: Tensor) -> Tensor:
        for block in blocks:
            pixels = self._call(block, pixels)
        return pixels

    def _call(self, block: nn.Module, *inputs: Any) -> Any:
        if self.checkpoint_blocks and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _shape_on_meta(self, frames: int, size: int) -> torch.Size:
        """Compute the shape of the maps of a segment without computing values.

        Raises:
            InputError: the network does not accept such a segment.
        """
        if isinstance(self.net, video.MViT):
            places = self.net.pos_encoding
            # The strides of the first convolution.
            wanted = (2 * places.temporal_size, *(4 * side for side in places.spatial_size))
            if (frames, size, size) != wanted:
                raise InputError(
                    f"backbone {self.name!r} takes segments of {wanted[0]} frames of {wanted[1]} x {wanted[2]} pixels "
                    f"only, not {frames} frames of {size} x {size}: set data.num_frames to {wanted[0]} for each of "
                    f"data.num_segments, and data.image_size to {wanted[1]}"
                )
        state = {name: tensor.to("meta") for name, tensor in self.state_dict(keep_vars=True).items()}
        pixels = torch.empty(1, frames, 3, size, size, device="meta")
        try:
            with torch.no_grad():
                return functional_call(_Maps(self), {f"backbone.{k}": v for k, v in state.items()}, (pixels,)).shape
        except RuntimeError as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"backbone {self.name!r} does not accept segments of {frames} frames of {size} x {size} pixels "
                f"({reason}); set data.num_frames, data.num_segments and data.image_size"
            ) from error


class _Maps(nn.Module):
    """Call `VideoBackbone.maps` as a forward pass."""

    def __init__(self, backbone: VideoBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, segments: Tensor) -> Tensor:
        return self.backbone.maps(segments)


def pretraining_size(name: str) -> int:
    """Return the height and width of the frames in the pretraining of a model.

    Raises:
        InputError: torchvision has no such video model.
    """
    return int(_preset(name).crop_size[0])


def _preset(name: str) -> Any:
    _check_name(name)
    return get_model_weights(name.removeprefix(TORCHVISION_PREFIX)).DEFAULT.transforms()


def _flat(stages: nn.Sequential) -> list[nn.Module]:
    """Return the blocks of a Swin transformer: those of its stages, and the layers between the stages."""
    return [block for stage in stages for block in (stage if isinstance(stage, nn.Sequential) else [stage])]


def _check_name(name: str) -> None:
    short, known = name.removeprefix(TORCHVISION_PREFIX), list_models(module=video)
    if short not in known:
        hint = did_you_mean(short, known)
        raise InputError(f"backbone {name!r}: {hint}torchvision's video models are {', '.join(known)}")


def _create(name: str, *, pretrained: bool) -> nn.Module:
    _check_name(name)
    short = name.removeprefix(TORCHVISION_PREFIX)
    try:
        return get_model(short, weights="DEFAULT" if pretrained else None)
    except (OSError, RuntimeError) as error:  # no network, or a damaged download
        if not pretrained:
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        url = get_model_weights(short).DEFAULT.url
        raise InputError(
            f"backbone {name!r}: the pretrained weights {url} cannot be downloaded ({reason}); set weights: a local "
            "file, or pretrained: false"
        ) from error
