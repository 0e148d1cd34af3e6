"""STRM: a backbone and its heads, `encode` for each video and `match` for each episode."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from strm_lightning.episode import MatchLogits, PooledMaps, VideoFeatures
from strm_lightning.models.backbones.timm import Backbone, BatchNormPolicy
from strm_lightning.models.head import STRMHead
from strm_lightning.models.weights.state import plain_name


class STRM(nn.Module):
    """Spatio-temporal relation modelling for few-shot action recognition (CVPR 2022, arXiv 2112.05132).

    Encoding looks at one clip alone and matching at one episode, so a video that is in many episodes is encoded once.

    Args:
        backbone: a timm model name.
        pretrained: load timm's pretrained weights, unless ``weights`` are given.
        weights: a local .safetensors or .pth file for the backbone (a classifier in it is ignored), or
            ``pip:efficientnet_lite0`` for the ImageNet weights that the extra ``weights`` installs.
        normalize: normalise pixels as the backbone's pretraining did; False leaves them in 0 .. 1, as released.
        batch_norm: ``train`` or ``frozen``; see `Backbone`.
        chunk_frames: frames that go through the backbone at a time in training; see `Backbone`.
        checkpoint_blocks: keep less and compute more in the backward pass; see `Backbone`.
        separate_calls: send support and queries through the backbone in two calls, each with its own statistics of
            batch norm in training, as released; one call sees the episode as one batch.
        **head_options: options of `STRMHead`.
    """

    def __init__(
        self,
        backbone: str = "resnet50.tv_in1k",
        *,
        pretrained: bool = True,
        weights: str | Path | None = None,
        normalize: bool = True,
        batch_norm: BatchNormPolicy = "train",
        chunk_frames: int | None = None,
        checkpoint_blocks: bool = False,
        separate_calls: bool = False,
        **head_options: Any,
    ) -> None:
        super().__init__()
        self.separate_calls = separate_calls
        self.backbone = Backbone(
            backbone,
            pretrained=pretrained,
            weights=weights,
            normalize=normalize,
            batch_norm=batch_norm,
            chunk_frames=chunk_frames,
            checkpoint_blocks=checkpoint_blocks,
        )
        self.head = STRMHead(self.backbone.dim, **head_options)

    def pool(self, clips: UInt8[Tensor, "*B L 3 H W"] | Float[Tensor, "*B L 3 H W"]) -> PooledMaps:
        """The part of `encode` before anything of the head is learned."""
        return self.head.pool(self.backbone(clips))

    def encode(self, clips: UInt8[Tensor, "*B L 3 H W"] | Float[Tensor, "*B L 3 H W"]) -> VideoFeatures:
        """Features of each clip by itself, H and E.

        Args:
            clips: pixels, ``[..., L, 3, H, W]``: levels 0 .. 255 as uint8, or 0 .. 1 as floating point.
        """
        return self.head.enrich_pooled(self.pool(clips))

    def match(
        self, support: VideoFeatures, query: VideoFeatures, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> MatchLogits:
        """Logits of each query for each class; see `STRMHead.match`."""
        return self.head.match(support, query, shot_mask)

    def forward(
        self,
        support: UInt8[Tensor, "*B N K L 3 H W"] | Float[Tensor, "*B N K L 3 H W"],
        query: UInt8[Tensor, "*B Q L 3 H W"] | Float[Tensor, "*B Q L 3 H W"],
    ) -> MatchLogits:
        """Encode and match one episode, or ``B`` of them with a leading axis.

        All clips go through the backbone in one call, so that batch norm sees the episode as one batch in training,
        unless ``separate_calls`` is set.
        """
        if self.separate_calls:
            return self.match(self.encode(support), self.encode(query))
        way, shot = support.shape[-6:-4]
        axis = support.ndim - 6  # of the clips, behind the leading axes
        features = self.encode(torch.cat([support.flatten(-6, -5), query], dim=axis))
        return self.match(
            features.map(lambda tensor: tensor.narrow(axis, 0, way * shot).unflatten(axis, (way, shot))),
            features.map(lambda tensor: tensor.narrow(axis, way * shot, query.shape[axis])),
        )


def own_classes(model: nn.Module) -> dict[str, str]:
    """Parts of an `STRM` whose classes are neither this package's nor torch's, by name.

    The timm network and a registered matching method, which options can build again, are left out. A checkpoint names
    the others, since options and tensors alone would build another model.
    """
    found, head = {}, getattr(model, "head", None)
    head = head if isinstance(head, STRMHead) else None
    for name, part in model.named_modules():
        name = plain_name(f"model.{name}.").rstrip(".")
        kind, package = type(part), type(part).__module__.partition(".")[0]
        known = ("model.backbone.net.", f"model.head.{head.matching_name}.") if head else ("model.backbone.net.",)
        if package not in ("strm_lightning", "torch") and not f"{name}.".startswith(known):
            found[name] = f"{kind.__module__}.{kind.__qualname__}"
    return found
