"""STRM: a backbone and a head; `encode` processes each video, `match` each episode."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from strm_lightning.episode import MatchLogits, PooledMaps, VideoFeatures
from strm_lightning.errors import InputError
from strm_lightning.messages import check_positive
from strm_lightning.models.backbones.base import BatchNormPolicy, ClipBackbone, registered_backbone
from strm_lightning.models.backbones.build import build_backbone
from strm_lightning.models.head import STRMHead
from strm_lightning.models.weights.hub import HubModel
from strm_lightning.models.weights.state import plain_name


class STRM(nn.Module, HubModel):
    """Spatio-temporal relation modelling for few-shot action recognition (CVPR 2022, arXiv 2112.05132).

    Clips are encoded separately, so a video that is in many episodes needs to be encoded only once.

    Args:
        backbone: a timm model name; ``torchvision/`` and a video model, such as ``torchvision/r2plus1d_18``; or a name
            given to `register_backbone`.
        pretrained: load the pretrained weights of timm or torchvision, unless ``weights`` is set.
        weights: a local .safetensors or .pth file for the backbone (a classifier in it is ignored), or
            ``pip:efficientnet_lite0`` (or ``lite1``, ``lite2``) for the ImageNet weights of the extra ``weights``.
        normalize: normalise pixels as in the backbone's pretraining; False leaves them in 0 .. 1, as the official code
            does.
        backbone_stage: stage of a timm model whose map is used: -1 for the output, -2 for the finer grid of the last
            stage but one, and so on. A list, such as ``[-1, -2]``, concatenates the maps of several stages.
        num_frames: frames L of a clip. The head has the time steps of the backbone: L, or fewer with a video backbone.
        num_segments: segments of a clip that a video backbone encodes separately; it divides ``num_frames``.
        batch_norm: ``train`` or ``frozen``; see `ClipBackbone`.
        chunk_frames: frames to process at a time in training, to save memory; see `ClipBackbone`.
        checkpoint_blocks: recompute activations in the backward pass, to save memory; see `ClipBackbone`.
        separate_calls: process support and queries in two calls of the backbone, each with its own batch statistics in
            training, as the official code does. By default, an episode is one batch.
        **head_options: options of `STRMHead`.

    Raises:
        InputError: an option of the backbone or of `STRMHead` is wrong, or the clip has too few time steps for Omega.
        MissingFileError: ``weights`` does not exist.
    """

    def __init__(
        self,
        backbone: str = "resnet50.tv_in1k",
        *,
        pretrained: bool = True,
        weights: str | Path | None = None,
        normalize: bool = True,
        backbone_stage: int | Sequence[int] = -1,
        num_frames: int = 8,
        num_segments: int = 1,
        batch_norm: BatchNormPolicy = "train",
        chunk_frames: int | None = None,
        checkpoint_blocks: bool = False,
        separate_calls: bool = False,
        **head_options: Any,
    ) -> None:
        super().__init__()
        self.separate_calls = separate_calls
        self.backbone = build_backbone(
            backbone,
            pretrained=pretrained,
            weights=weights,
            stage=backbone_stage,
            normalize=normalize,
            batch_norm=batch_norm,
            chunk_frames=chunk_frames,
            checkpoint_blocks=checkpoint_blocks,
            num_segments=num_segments,
        )
        check_positive(num_frames=num_frames)
        self.num_frames, steps = num_frames, self.backbone.steps(num_frames)
        try:
            stages = self.backbone.channels
            dim = stages if len(stages) > 1 else self.backbone.dim
            self.head = STRMHead(dim, num_frames=steps, **head_options)
        except InputError as error:
            if steps == num_frames:
                raise
            raise InputError(
                f"{error} (backbone {backbone!r} gives {steps} time steps of {num_frames} frames in "
                f"{num_segments} segments: raise data.num_frames or data.num_segments)"
            ) from error

    def pool(self, clips: UInt8[Tensor, "*B L 3 H W"] | Float[Tensor, "*B L 3 H W"]) -> PooledMaps:
        """Compute the pooled maps of clips: the part of `encode` without weights of the head."""
        return self.head.pool(self.backbone(clips))

    def encode(self, clips: UInt8[Tensor, "*B L 3 H W"] | Float[Tensor, "*B L 3 H W"]) -> VideoFeatures:
        """Compute the features of clips, such as H and E.

        Args:
            clips: pixels, ``[..., L, 3, H, W]``: 0 .. 255 as uint8, or 0 .. 1 as floating point.

        Raises:
            InputError: the clips have another shape or type.
        """
        return self.head.enrich_pooled(self.pool(clips))

    def match(
        self, support: VideoFeatures, query: VideoFeatures, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> MatchLogits:
        """Compute the logits of each query for each class; see `STRMHead.match`."""
        return self.head.match(support, query, shot_mask)

    def forward(
        self,
        support: UInt8[Tensor, "*B N K L 3 H W"] | Float[Tensor, "*B N K L 3 H W"],
        query: UInt8[Tensor, "*B Q L 3 H W"] | Float[Tensor, "*B Q L 3 H W"],
    ) -> MatchLogits:
        """Encode and match one episode, or ``B`` of them with a leading axis.

        Args:
            support: pixels of the support clips, see `encode`.
            query: pixels of the queries.

        Returns:
            Logits, ``[..., Q, N]``.
        """
        if self.separate_calls:
            return self.match(self.encode(support), self.encode(query))
        way, shot = support.shape[-6:-4]
        axis = support.ndim - 6  # the axis of clips, after the leading axes
        features = self.encode(torch.cat([support.flatten(-6, -5), query], dim=axis))
        return self.match(
            features.map(lambda tensor: tensor.narrow(axis, 0, way * shot).unflatten(axis, (way, shot))),
            features.map(lambda tensor: tensor.narrow(axis, way * shot, query.shape[axis])),
        )


def own_classes(model: nn.Module) -> dict[str, str]:
    """Find submodules of an `STRM` whose class is not part of this package or of torch.

    The network of the backbone, a registered backbone and a registered matching method are left out, since options can
    rebuild them. Checkpoints store the names of the other classes, because options and tensors do not describe the
    model.

    Returns:
        Class names by the names of the submodules.
    """
    found, head = {}, getattr(model, "head", None)
    head = head if isinstance(head, STRMHead) else None
    for name, part in model.named_modules():
        name = plain_name(f"model.{name}.").rstrip(".")
        kind, package = type(part), type(part).__module__.partition(".")[0]
        known = ("model.backbone.net.", f"model.head.{head.matching_name}.") if head else ("model.backbone.net.",)
        registered = isinstance(part, ClipBackbone) and registered_backbone(part.name) is kind
        if package not in ("strm_lightning", "torch") and not registered and not f"{name}.".startswith(known):
            found[name] = f"{kind.__module__}.{kind.__qualname__}"
    return found
