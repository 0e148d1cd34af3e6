"""Importance of each patch of a clip for a prediction, by occlusion; it works with any matching method."""

import torch
from jaxtyping import Float
from torch import Tensor

from strm_lightning.classifier.support import SupportSet
from strm_lightning.episode import PooledMaps

_AT_ONCE = 32  # occluded clips that are encoded together


@torch.inference_mode()
def patch_importance(support: SupportSet, maps: PooledMaps, label: str, rival: str) -> Float[Tensor, "L P P"]:
    """Return by how much the lead of one class over another shrinks when a patch is occluded.

    The features of the patch in one frame are replaced by their median over the clip at the same place, which removes
    what is there for a part of the time. (The mean over the clip contains a share of it, so that patches without it
    would change too.) Occlusion as by Zeiler and Fergus (ECCV 2014), on pooled features.

    Args:
        support: the support set.
        maps: pooled maps of the clip, without leading axes.
        label: the class whose lead is explained.
        rival: the class that it leads.

    Returns:
        Difference of ``logit(label) - logit(rival)`` without and with occlusion; positive where the patch is evidence
        for the label.
    """
    head, columns = support.model.head, [support.labels.index(name) for name in (label, rival)]
    steps, patches, _ = maps.grid.shape
    still = maps.grid.median(0).values

    def lead(grid: Tensor, mean: Tensor) -> Float[Tensor, " n"]:
        encoded = head.encode(head.enrich_pooled(PooledMaps(grid=grid, mean=mean)))
        first, second = support.match(encoded).combined(support.qc_weight).float()[:, columns].unbind(1)
        return first - second

    parts = []
    places = torch.cartesian_prod(torch.arange(steps), torch.arange(patches)).to(still.device)
    for part in places.split(_AT_ONCE):
        frame, patch = part.unbind(1)
        rows = torch.arange(len(part), device=still.device)
        grid, mean = (tensor.expand(len(part), *tensor.shape).clone() for tensor in (maps.grid, maps.mean))
        mean[rows, frame] += (still[patch] - grid[rows, frame, patch]) / patches
        grid[rows, frame, patch] = still[patch]
        parts.append(lead(grid, mean))
    importance = lead(maps.grid[None], maps.mean[None]) - torch.cat(parts)
    return importance.view(steps, head.patch_grid, head.patch_grid)
