"""Accuracy and time of one pretrained backbone with matching methods that need no training, on a folder of clips.

    python experiments/benchmarks/backbones.py FOLDER --backbone tf_efficientnet_lite0 \
        --weights pip:efficientnet_lite0 [--stage -2] [--image_size 224] [--patch_grid 4] \
        [--methods patches lag_energy kernel_ridge] [--episodes 1000] [--maps FOLDER]

The maps of every clip are computed once and pooled to the grid; ``--maps`` keeps them in a folder. An episode draws
classes, examples and one query of each class, the same ones for every backbone and method. The interval is the 95 %
interval over episodes; it does not cover other classes. The time is that of the backbone alone, without decoding.
"""

import argparse
import random
import sys
from pathlib import Path
from time import perf_counter, process_time

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from strm_lightning.data.detect import list_videos
from strm_lightning.data.sampling import select_frames
from strm_lightning.data.transforms import ClipTransform
from strm_lightning.episode import PooledMaps
from strm_lightning.models import STRM, STRMHead

SHOTS = (1, 5)


def pooled_maps(model: STRM, folder: str, image_size: int) -> dict[str, Tensor]:
    listing = list_videos(Path(folder), "auto")
    counts = listing.count(list(listing.paths), progress=False)
    store = listing.open({name: n for name, n in counts.items() if isinstance(n, int)}, {})
    transform, clips, seconds = ClipTransform(image_size, 0, flip=False), [], 0.0
    for row in tqdm(range(len(store.videos)), disable=None):
        chosen = select_frames("segments", int(store.frame_counts[row]), model.num_frames, None)
        clip = transform(store.read(row, chosen), None)
        start = process_time()
        clips.append(model.pool(clip))
        seconds += process_time() - start
    return {
        "grid": torch.stack([clip.grid for clip in clips]),
        "mean": torch.stack([clip.mean for clip in clips]),
        "seconds": torch.tensor(seconds / len(clips)),
        "classes": [name.rpartition("/")[0] for name in store.videos],
    }


def accuracy(head: STRMHead, encoded: dict[str, Tensor], classes: list[str], way: int, shot: int, episodes: int) -> str:
    members = {name: [row for row, other in enumerate(classes) if other == name] for name in sorted(set(classes))}
    right, batch = torch.empty(episodes), 20
    for first in range(0, episodes, batch):
        support, query = [], []
        for index in range(first, min(first + batch, episodes)):
            rng = random.Random(f"0/test/0/{index}")
            drawn = [rng.sample(members[name], shot + 1) for name in rng.sample(sorted(members), way)]
            support.append([rows[:-1] for rows in drawn])
            query.append([rows[-1] for rows in drawn])
        logits = head.match_encoded(
            {name: tensor[torch.tensor(support)] for name, tensor in encoded.items()},
            {name: tensor[torch.tensor(query)] for name, tensor in encoded.items()},
        ).combined()
        right[first : first + len(query)] = (logits.argmax(-1) == torch.arange(way)).float().mean(-1)
    return f"{shot}-shot {right.mean():.1%} ± {1.96 * right.std() / episodes**0.5:.1%}"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a folder of clips for each class")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", help="weights of the backbone; without, the pretrained weights of its library")
    parser.add_argument("--stage", type=int, default=-1, help="stage of the backbone whose map is used")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--patch_grid", type=int, default=4)
    parser.add_argument("--methods", nargs="+", default=["patches", "lag_energy", "kernel_ridge"])
    parser.add_argument("--way", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--maps", help="folder that keeps the pooled maps")
    options = parser.parse_args()
    sizes = {"num_frames": 8, "patch_grid": options.patch_grid}
    name = f"{Path(options.folder).name}-{options.backbone}-{options.image_size}-{options.patch_grid}{options.stage}"
    kept = Path(options.maps, f"{name}.pt") if options.maps else None
    if kept is not None and kept.is_file():
        maps = torch.load(kept)
    else:
        network = {"weights": options.weights, "backbone_stage": options.stage}
        model = STRM(options.backbone, **network, matching="patches", **sizes).eval()
        start = perf_counter()
        maps = pooled_maps(model, options.folder, options.image_size)
        print(f"encoded in {perf_counter() - start:.0f} s")
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save(maps, kept)
    print(f"{name}: {len(maps['classes'])} clips, {maps['seconds']:.3f} s of CPU a clip")
    for method in options.methods:
        head = STRMHead(maps["mean"].shape[-1], matching=method, **sizes).eval()
        encoded = head.encode(head.enrich_pooled(PooledMaps(grid=maps["grid"], mean=maps["mean"])))
        for shot in SHOTS:
            print(
                f"  {method} {accuracy(head, encoded, maps['classes'], options.way, shot, options.episodes)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
