"""How well methods without training recognise own videos, on several folders, and what changes of the queries cost.

    python experiments/benchmarks/own_videos.py egogestar ssv2_excerpt signs [--matching auto patches] [--episodes 1000]
    python experiments/benchmarks/own_videos.py egogestar --vary --limit 8

A folder has a folder of clips (video files or folders of frames) for each class. Each clip is encoded once. An episode
draws classes, examples and one query per class; the interval is the 95 % one over episodes. With ``--vary`` the queries
are changed, and the examples are not:

- late start, early end: 15 % of the frames are missing at the start or at the end;
- faster: the action is played 1.3 times as fast, and the last frame is shown for the rest of the time;
- shifted: the picture is moved by 12 % of its width to the left, and its right edge is repeated.
"""

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from strm_lightning.classifier import FewShotClassifier
from strm_lightning.classifier.load_model import DEFAULT_BACKBONE, DEFAULT_STAGES
from strm_lightning.classifier.videos import find_examples, read_path
from strm_lightning.episode import PooledMaps
from strm_lightning.models import STRMHead

Change = Callable[[np.ndarray], np.ndarray]  # frames [F, H, W, 3]


def late(frames: np.ndarray) -> np.ndarray:
    return frames[round(0.15 * len(frames)) :]


def early(frames: np.ndarray) -> np.ndarray:
    return frames[: len(frames) - round(0.15 * len(frames))]


def faster(frames: np.ndarray) -> np.ndarray:
    return frames[(np.arange(len(frames)) * 1.3).astype(int).clip(max=len(frames) - 1)]


def shifted(frames: np.ndarray) -> np.ndarray:
    step = round(0.12 * frames.shape[2])
    return np.concatenate([frames[:, :, step:], np.repeat(frames[:, :, -1:], step, 2)], 2)


SUMS = ("auto", "lag_energy", "kernel_ridge")  # compare both stages of the backbone; other methods the last one
CHANGES: dict[str, Change] = {"late start": late, "early end": early, "faster": faster, "shifted": shifted}


@torch.inference_mode()
def pool(classifier: FewShotClassifier, frames: np.ndarray) -> PooledMaps:
    config = classifier.preprocessing
    clip = config.transform(torch.from_numpy(frames[config.frames_of(len(frames))]), None)
    maps: PooledMaps = classifier.model.pool(clip[None])
    return PooledMaps(grid=maps.grid[0], mean=maps.mean[0])


def stack(maps: list[PooledMaps]) -> PooledMaps:
    return PooledMaps(grid=torch.stack([m.grid for m in maps]), mean=torch.stack([m.mean for m in maps]))


def draw(classes: list[int], way: int, shot: int, index: int) -> tuple[list[int], list[int]]:
    """Return the positions of the examples, class by class, and of the queries of an episode."""
    rng = random.Random(f"0/test/0/{index}")
    by_class = {c: [i for i, other in enumerate(classes) if other == c] for c in set(classes)}
    drawn = [rng.sample(by_class[c], shot + 1) for c in rng.sample(sorted(by_class), way)]
    return [i for members in drawn for i in members[:-1]], [members[-1] for members in drawn]


@torch.inference_mode()
def accuracy(
    head: STRMHead, maps: PooledMaps, changed: PooledMaps, classes: list[int], way: int, shot: int, episodes: int
) -> tuple[float, float]:
    of_head = (PooledMaps(grid=m.grid[..., : head.in_dim], mean=m.mean[..., : head.in_dim]) for m in (maps, changed))
    own, queries = (head.encode(head.enrich_pooled(m)) for m in of_head)
    right = torch.empty(episodes)
    for index in range(episodes):
        examples, asked = draw(classes, way, shot, index)
        support = {name: tensor[examples].unflatten(0, (way, shot)) for name, tensor in own.items()}
        query: dict[str, Tensor] = {name: tensor[asked] for name, tensor in queries.items()}
        logits = head.match_encoded(support, query).combined(0.1)
        right[index] = (logits.argmax(1) == torch.arange(way)).float().mean()
    return 100 * float(right.mean()), 196 * float(right.std()) / episodes**0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--matching", nargs="+", default=["auto", "patches", "lag", "energy", "motionmap", "meanpatch"])
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--way", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--limit", type=int, help="clips of each class")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, help="timm model; the last two stages are used")
    parser.add_argument("--weights", help="as for `strm classify`")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--vary", action="store_true", help="also change the queries")
    options = parser.parse_args()
    classifier = FewShotClassifier.from_backbone(
        options.backbone,
        weights=options.weights,
        image_size=options.image_size,
        backbone_stage=DEFAULT_STAGES,
        device="cpu",
    )
    channels = classifier.model.backbone.channels
    heads = {
        name: STRMHead(channels if name in SUMS else channels[0], matching=name).eval() for name in options.matching
    }
    for folder in options.folders:
        examples = find_examples(folder)
        maps: dict[str, list[PooledMaps]] = {}
        classes: list[int] = []
        clips = [(c, video) for c, label in enumerate(sorted(examples)) for video in examples[label][: options.limit]]
        for c, video in tqdm(clips, folder, disable=not sys.stderr.isatty()):
            frames = read_path(video, range).numpy()
            classes.append(c)
            maps.setdefault("", []).append(pool(classifier, frames))
            for name, change in CHANGES.items() if options.vary else ():
                maps.setdefault(name, []).append(pool(classifier, change(frames)))
        stacked = {name: stack(members) for name, members in maps.items()}
        counts = f"{len(set(classes))} classes, {len(classes)} clips, {options.way}-way"
        print(f"{folder}: {counts}; {options.backbone}, {options.image_size} pixels", flush=True)
        for name, head in heads.items():
            for change, changed in stacked.items():
                cells = []
                for shot in options.shots:
                    found, half = accuracy(head, stacked[""], changed, classes, options.way, shot, options.episodes)
                    cells.append(f"{shot}-shot {found:.1f} ± {half:.1f}")
                print(f"  {name:<12} {change or 'unchanged':<11} {', '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
