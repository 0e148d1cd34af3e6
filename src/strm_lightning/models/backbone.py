"""Any timm backbone as one module: clips of pixels in, maps ``[..., L, D, h, w]`` out."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn

from strm_lightning.models.lite0 import EFFICIENTNET_LITE0, lite0_file, rename_lite0

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

    Raises:
        ValueError: the name is unknown to timm, the weights do not fit, or the model gives no spatial map.
        FileNotFoundError: ``weights`` is not there.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, *, pretrained: bool = True, weights: str | Path | None = None, normalize: bool = True
    ) -> None:
        super().__init__()
        self.net = _create(name, pretrained=pretrained and weights is None)
        self.name = name
        if weights is not None:
            load_weights(self.net, weights)
        config: dict[str, Any] = self.net.pretrained_cfg
        mean, std = (config["mean"], config["std"]) if normalize else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.dim = self._probe(config["input_size"][-1])

    def forward(self, clips: UInt8[Tensor, "*B L 3 H W"] | Float[Tensor, "*B L 3 H W"]) -> Float[Tensor, "*B L D h w"]:
        """Maps of every frame.

        Args:
            clips: pixels, ``[..., L, 3, H, W]``: levels 0 .. 255 as uint8, or 0 .. 1 as floating point.
        """
        frames = self.normalize(clips.flatten(0, -4))
        maps = self._maps(frames)
        return maps.unflatten(0, clips.shape[:-3])

    def normalize(self, frames: Tensor) -> Tensor:
        """Pixels as the network wants them; bytes become floats here, on the device."""
        pixels = frames.to(self.mean.dtype).div_(255.0) if frames.dtype == torch.uint8 else frames
        return (pixels - self.mean) / self.std

    def _maps(self, frames: Tensor) -> Tensor:
        features = self.net.forward_features(frames)
        if isinstance(features, (tuple, list)):
            features = features[-1]
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            raise ValueError(f"backbone {self.name!r} gives no spatial map, so there are no patches to enrich")
        if features.ndim == 4:
            channels_last = features.shape[-1] == self.net.num_features != features.shape[1]
            return rearrange(features, "f h w d -> f d h w") if channels_last else features
        return self._tokens_to_map(features, (frames.shape[-2], frames.shape[-1]))

    def _tokens_to_map(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        tokens = tokens[:, getattr(self.net, "num_prefix_tokens", 0) :]
        feat_size = getattr(getattr(self.net, "patch_embed", None), "dynamic_feat_size", lambda _: (0, 0))
        rows, columns = feat_size(size)
        if rows * columns != tokens.shape[1]:  # a family that merges patches on the way: square in, square out
            rows = columns = round(tokens.shape[1] ** 0.5)
        if rows * columns != tokens.shape[1]:
            raise ValueError(
                f"backbone {self.name!r} gives {tokens.shape[1]} tokens that form no grid, so there is no spatial map"
            )
        return rearrange(tokens, "f (h w) d -> f d h w", h=rows, w=columns)

    @torch.no_grad()
    def _probe(self, size: int) -> int:
        """Channels of the maps, found by one forward pass: what a family calls num_features is not always that."""
        training = self.net.training
        self.net.eval()
        maps = self._maps(torch.zeros(1, 3, size, size))
        self.net.train(training)
        return int(maps.shape[1])


def _create(name: str, *, pretrained: bool) -> Any:  # timm families share no typed interface
    if not timm.is_model(name):
        near = get_close_matches(name.split(".")[0], timm.list_models(), n=4, cutoff=0.5)
        raise ValueError(
            f"backbone {name!r} is unknown to timm {timm.__version__}; near names: {', '.join(near) or 'none'}"
        )
    for options in _ANY_SIZE:
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="", **options)
        except TypeError as error:
            if not any(option in str(error) for option in options):
                raise
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
    result = net.load_state_dict({k.removeprefix("module."): v for k, v in state.items()}, strict=False)
    unknown = [key for key in result.unexpected_keys if not key.startswith(classifier)]
    if result.missing_keys or unknown:
        raise ValueError(
            f"weights {weights}: not of this backbone; {len(result.missing_keys)} tensors are missing "
            f"(such as {result.missing_keys[:2]}) and {len(unknown)} are unknown (such as {unknown[:2]})"
        )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a file, without running any code that it may hold.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or is no state dict.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights {path}: no such file")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"weights {path}: not a file of tensors that can be read safely ({reason})") from error
    for key in ("state_dict", "model_state_dict", "model"):
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"weights {path}: not a state dict (tensors by name)")
    return state
