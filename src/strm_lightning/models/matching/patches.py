"""Patches compared in place and in order: a matching method without weights."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from strm_lightning.episode import VideoFeatures
from strm_lightning.models.matching.base import Encoded, Evidence, Matching, mean_over_shots, register_matching


@register_matching("patches")
class Patches(Matching):
    """Cosine of two clips as one vector each: all patches of all time steps, minus their mean over the clip.

    What does not move is subtracted; position and order are kept. The logit of a class is the mean cosine with its
    support clips. It suits actions that are seen at the same place and pace, and has nothing to train.
    """

    reads = frozenset({"patches"})
    temperature = 0.02

    def encode(self, clip: VideoFeatures) -> Encoded:
        assert clip.patches is not None
        moving = clip.patches - clip.patches.mean(-3, keepdim=True)
        unit = F.normalize(moving.flatten(-3), dim=-1)
        return {"patches": unit.view_as(moving)}

    def match(
        self, support: Encoded, query: Encoded, shot_mask: Bool[Tensor, "*B N K"] | None = None
    ) -> dict[str, Tensor]:
        clips, queries = support["patches"].flatten(-3), query["patches"].flatten(-3)
        scores = queries @ clips.flatten(-3, -2).mT
        return {"patches": mean_over_shots(scores.unflatten(-1, clips.shape[-3:-1]), shot_mask)}

    def clip_scores(self, support: Encoded, query: Encoded) -> Float[Tensor, "Q V"]:
        return query["patches"].flatten(1) @ support["patches"].flatten(1).T

    def explain(
        self, support: Encoded, query: Encoded, label: int, shot_mask: Bool[Tensor, "N K"] | None = None
    ) -> dict[str, Evidence]:
        clips = support["patches"][label]
        clips = clips if shot_mask is None else clips[shot_mask[label]]
        products = torch.einsum("lpd,klpd->kl", query["patches"].float(), clips.float()) / len(clips)
        return {
            "patches": Evidence(
                contributions=torch.diag_embed(products),
                weights=torch.diag_embed(products.clamp_min(0)),
                kind="similarity",
            )
        }

    def patch_weights(self, clip: Encoded) -> Float[Tensor, "L PP"]:
        energy = clip["patches"].float().square().sum(-1)
        return energy / energy.sum(-1, keepdim=True).clamp_min(1e-12)

    def floats_per_pair(self, encoded: Encoded) -> int:
        return 1
