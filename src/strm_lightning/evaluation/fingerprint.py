"""Fingerprint of a feature bank: a hash of weights, videos, preprocessing, options and package versions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from inspect import signature
from itertools import chain
from typing import Any

from torch import nn

from strm_lightning._version import __version__
from strm_lightning.data.datamodule import EpisodeDataModule
from strm_lightning.data.splits.stages import Stage
from strm_lightning.models.head import STRMHead
from strm_lightning.models.matching.base import matching_class, source_hash
from strm_lightning.models.weights.state import hash_state

_PACKAGES = ("torch", "torchvision", "timm", "av")


def bank_fingerprint(
    data: EpisodeDataModule,
    stage: Stage,
    rows: Sequence[int],
    network: nn.Module,
    options: Mapping[str, Any],
    *,
    views: int = 0,
    precision: str = "32-true",
) -> str:
    """Compute the SHA-256 of everything that decides the features of videos.

    Args:
        data: data module of the videos; its preprocessing is included.
        stage: stage of the videos.
        rows: rows of the videos.
        network: module that encodes them; all parameters and buffers are included.
        options: options that change the features and are not part of the weights.
        views: number of random views of each video; 0 for the view of validation and test.
        precision: precision of the trainer.
    """
    store = data.videos[stage].store
    stamps = [[row, store.videos[row], int(store.frame_counts[row]), store.stamp(row)] for row in rows]
    transform = asdict(data.transform)
    parts = {
        "network": _hash_of(network),
        "options": dict(options),
        "videos": stamps,
        "frames": [data.num_frames, data.frame_policy, data.num_segments, data.frame_stride],
        # Flip and seed affect random views only.
        "transform": transform if views else {k: v for k, v in transform.items() if k != "flip"},
        "views": [views, data.seed] if views else [],
        "precision": precision,
        "versions": [__version__, *map(version, _PACKAGES)],
    }
    return sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def feature_options(options: Mapping[str, Any], *, pooled: bool) -> dict[str, Any]:
    """Select the model options that change its features, and add version and source hash of the matching method.

    The source of the weights and memory options of training are not included.

    Args:
        options: options of the model.
        pooled: select for the pooled maps before the head, not for the encoded clips.
    """
    head = {name: p.default for name, p in signature(STRMHead).parameters.items() if p.default is not p.empty}
    names = ("patch_grid", "center_clip", "scale_clip") if pooled else tuple(head)
    found = {"backbone": options["backbone"], **{name: options.get(name, head[name]) for name in names}}
    found |= {"backbone_stage": options.get("backbone_stage", -1), "num_segments": options.get("num_segments", 1)}
    if not pooled:
        method = matching_class(found["matching"])
        found |= {"matching_version": method.version, "matching_source": source_hash(method)}
    return found


def _hash_of(network: nn.Module) -> str:
    # Two heads may differ in their classes only.
    classes = [f"{name} {type(m).__module__}.{type(m).__qualname__}" for name, m in network.named_modules()]
    # Non-persistent buffers change features too.
    tensors = dict(chain(network.named_parameters(), network.named_buffers()))
    return hash_state(tensors, "\n".join(classes))
