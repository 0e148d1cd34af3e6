"""Ablate the heads over class splits and seeds, from stored maps of a frozen backbone, on the same test episodes.

    python experiments/ablation/run.py ROOT --out FILE.json [--splits 3] [--seeds 1] [--steps 400] …

ROOT is a folder ``class/video.mp4``, or ``moving-shapes`` (whose own split is used). Every part is switched on by
itself and together; every variant is tested on the same episodes, so that differences are paired. As a control each
test is also done with the frames of the queries reversed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from strm_lightning.data.datamodule import MOVING_SHAPES, EpisodeDataModule
from strm_lightning.data.episodes import EpisodeSampler
from strm_lightning.episode import Episode, MatchLogits, PooledMaps
from strm_lightning.evaluation.bank import FeatureBank
from strm_lightning.models import Backbone, STRMHead
from strm_lightning.models.pooling import pool_maps

OFF = {"patch_enrichment": False, "frame_enrichment": False, "query_class": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "TRX": OFF,
    "+ PLE": OFF | {"patch_enrichment": True},
    "+ FLE": OFF | {"frame_enrichment": True},
    "+ QC": OFF | {"query_class": True},
    "STRM": {},
    "TRX + center": OFF | {"center_clip": True},
    "STRM + center": {"center_clip": True},
    "STRM + layout": {"patch_pooling": "layout"},
    "STRM + both": {"center_clip": True, "patch_pooling": "layout"},
    "TRX + both": OFF | {"center_clip": True, "patch_pooling": "layout"},
}


def encode(data: EpisodeDataModule, backbone: Backbone, center: bool) -> FeatureBank[PooledMaps]:
    """Pooled maps of every video, in half precision: a bank of the whole data set."""
    rows = [int(r) for videos in data.videos.values() for members in videos.members for r in members]
    bank: FeatureBank[PooledMaps] = FeatureBank(rows)
    for batch in tqdm(data.video_loader(next(iter(data.videos)), rows), f"Encoding, center_clip={center}"):
        bank.fill([batch], lambda clips: pool_maps(backbone(clips), 4, center_clip=center).to(torch.float16))
    return bank


def logits(
    head: STRMHead, bank: FeatureBank[PooledMaps], episodes: list[Episode], reverse: bool = False
) -> MatchLogits:
    """Logits of a batch of episodes; with the queries played backwards as a control."""
    episode = Episode.stack(episodes)
    support, query = (bank.get(rows).to(torch.float32) for rows in (episode.support_ids, episode.query_ids))
    if reverse:
        query = PooledMaps(grid=query.grid.flip(-3), mean=query.mean.flip(-2))
    return head.match(head.enrich_pooled(support), head.enrich_pooled(query))


def train(head: STRMHead, bank: FeatureBank[PooledMaps], sampler: EpisodeSampler, steps: int, lr: float) -> None:
    """AdamW and one cycle, an episode a step."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for step in range(steps):
        episode, _ = sampler.draw(0, step)
        found = logits(head, bank, [episode])
        loss = F.cross_entropy(found.trm[0], episode.query_labels)
        if found.qc is not None:
            loss = loss + 0.1 * F.cross_entropy(found.qc[0], episode.query_labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.inference_mode()
def test(
    head: STRMHead, bank: FeatureBank[PooledMaps], sampler: EpisodeSampler, episodes: int, reverse: bool
) -> list[float]:
    """Accuracy of each test episode."""
    found: list[float] = []
    for start in range(0, episodes, 10):
        drawn = [sampler.draw(0, index)[0] for index in range(start, start + 10)]
        labels = torch.stack([episode.query_labels for episode in drawn])
        found += (logits(head, bank, drawn, reverse).combined().argmax(-1) == labels).float().mean(-1).tolist()
    return found


def run(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Accuracies of every test episode, by variant and kind of test, over splits and seeds."""
    backbone = Backbone("tf_efficientnet_lite0", weights="pip:efficientnet_lite0").eval()
    variants = {name: VARIANTS[name] for name in options.variants or VARIANTS}
    banks: dict[bool, FeatureBank[PooledMaps]] = {}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in variants}
    for split in range(options.splits):
        shares: Any = (
            "random" if options.root in MOVING_SHAPES else dict(zip(("train", "test"), options.shares, strict=True))
        )
        data = EpisodeDataModule(
            options.root, shares, split_seed=split, image_size=options.size, num_workers=2, flip=False
        )
        data.prepare_data()
        data.setup()
        samplers = {
            shot: EpisodeSampler(data.videos["test"].members, 5, shot, 1, "test", split) for shot in options.shots
        }
        for seed in range(options.seeds):
            episodes = EpisodeSampler(data.videos["train"].members, 5, options.train_shot, 2, "train", seed)
            for name, switches in variants.items():
                center = switches.get("center_clip", False)
                if center not in banks:
                    banks[center] = encode(data, backbone, center)
                torch.manual_seed(seed)
                head = STRMHead(
                    backbone.dim, proj_dim=options.dim, match_dim=options.dim, qc_dim=options.dim, **switches
                )
                train(head, banks[center], episodes, options.steps, options.lr)
                head.eval()
                for shot, sampler in samplers.items():
                    for reverse in (False, True):
                        rates = test(head, banks[center], sampler, options.episodes, reverse)
                        key = f"{shot}-shot" + (" reversed" if reverse else "")
                        found[name].setdefault(key, []).extend(rates)
                last = {key: f"{np.mean(rates[-options.episodes :]):.1%}" for key, rates in found[name].items()}
                print(f"split {split} seed {seed} {name:<14} {last}", flush=True)
    return found


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: accuracy, and the paired difference to the first variant, each with its 95 % interval over episodes."""
    kinds = list(next(iter(found.values())))
    first = next(iter(found.values()))
    lines = ["| variant | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for name, rates in found.items():
        cells = []
        for kind in kinds:
            mine, difference = np.array(rates[kind]), np.array(rates[kind]) - np.array(first[kind])
            half = 1.96 / len(mine) ** 0.5
            cell = f"{mine.mean():.1%} ± {half * mine.std():.1%}"
            cells.append(
                cell if rates is first else f"{cell} ({difference.mean():+.1%} ± {half * difference.std():.1%})"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the accuracy of every episode")
    parser.add_argument("--shares", type=float, nargs=2, default=(0.5, 0.5), help="shares of classes to train and test")
    parser.add_argument("--splits", type=int, default=3, help="class splits; moving shapes have one")
    parser.add_argument("--seeds", type=int, default=1, help="first weights and training episodes of each split")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--episodes", type=int, default=500, help="test episodes of each split and seed")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--train-shot", type=int, default=1)
    parser.add_argument("--dim", type=int, default=256, help="channels of the heads")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS))
    options = parser.parse_args()
    found = run(options)
    part = options.out.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.rename(options.out)
    print(table(found))


if __name__ == "__main__":
    main()
