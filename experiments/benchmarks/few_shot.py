"""Accuracy and calibration of the classifier on a folder of clips for each class, with one example and with five.

    python experiments/benchmarks/few_shot.py egogestar [--ckpt best.ckpt | --matching lag] [--way 5] [--episodes 2000]
    python experiments/benchmarks/few_shot.py egogestar --unknown FOLDER        # clips that are of none of the classes

Every clip is encoded once. An episode draws classes, examples and one query per class that is not an example. The
interval is the 95 % interval over episodes, as in the papers. The expected calibration error (10 bins) is that of the
first 100 episodes, with the default temperature and with the one that is fitted to the examples. With ``--unknown``
the script also prints how many clips of the classes a fitted threshold accepts, and how many other clips it rejects.
"""

import argparse
import random
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from strm_lightning.classifier import FewShotClassifier
from strm_lightning.classifier.calibration import calibrate
from strm_lightning.classifier.encoder import encode_each
from strm_lightning.classifier.support import EncodedClip, SupportSet
from strm_lightning.classifier.videos import find_examples, find_videos
from strm_lightning.models import STRM

SHOTS, CALIBRATED = (1, 5), 100
Clips = Mapping[str, list[EncodedClip]]
Episode = tuple[dict[str, list[EncodedClip]], list[EncodedClip]]  # examples by class, one query a class


def draw(clips: Clips, way: int, shot: int, index: int) -> Episode:
    rng = random.Random(f"0/test/0/{index}")
    drawn = {label: rng.sample(clips[label], shot + 1) for label in rng.sample(sorted(clips), way)}
    return {label: members[:-1] for label, members in drawn.items()}, [members[-1] for members in drawn.values()]


def stack(clips: list[EncodedClip]) -> dict[str, Tensor]:
    return {name: torch.stack([clip.features[name] for clip in clips]) for name in clips[0].features}


def accuracy(model: STRM, qc_weight: float, clips: Clips, way: int, shot: int, episodes: int) -> str:
    right = torch.empty(episodes)
    for index in range(episodes):
        examples, queries = draw(clips, way, shot, index)
        support = {name: t.unflatten(0, (way, shot)) for name, t in stack([*chain(*examples.values())]).items()}
        logits = model.head.match_encoded(support, stack(queries)).combined(qc_weight)
        right[index] = (logits.argmax(1).cpu() == torch.arange(way)).float().mean()
    return f"{shot}-shot {right.mean():.1%} ± {1.96 * right.std() / episodes**0.5:.1%}"


def calibration(model: STRM, qc_weight: float, clips: Clips, others: list[EncodedClip], way: int, shot: int) -> str:
    set_, fitted, targets, kept, rejected = [], [], [], [], []
    strange = stack(others) if others else None
    for index in range(CALIBRATED):
        examples, queries = draw(clips, way, shot, index)
        support = SupportSet(model, qc_weight)
        for label, members in examples.items():
            support.add(label, [replace(clip) for clip in members])
        logits = support.match(stack(queries)).combined(qc_weight).cpu().double()
        use = calibrate(support, "fit", "fit" if shot > 1 else None)
        set_.append(torch.softmax(logits / model.head.matching.default_temperature(support.shots), 1))
        fitted.append(torch.softmax(logits / use.temperature, 1))
        targets.append(torch.tensor([support.labels.index(label) for label in examples]))
        if strange is not None:
            best = support.match(strange).combined(qc_weight).cpu().double().amax(1)
            kept.append((logits.amax(1) >= use.min_logit).double().mean().item())
            rejected.append((best < use.min_logit).double().mean().item())
    off = [
        multiclass_calibration_error(torch.cat(p), torch.cat(targets), way, n_bins=10, norm="l1")
        for p in (set_, fitted)
    ]
    if shot == 1:
        return f"{shot}-shot calibration error {off[0]:.3f} (one clip a class: nothing to fit)"
    known = f"; known clips kept {mean(kept):.0%}, others rejected {mean(rejected):.0%}" if kept else ""
    return f"{shot}-shot calibration error {off[0]:.3f} as set, {off[1]:.3f} fitted" + known


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a folder of clips for each class")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ckpt", help="checkpoint of a trained model; without, a pretrained backbone")
    which.add_argument("--matching", default="auto", help="matching method without weights, on the backbone")
    parser.add_argument("--image_size", type=int, default=224, help="image size without a checkpoint")
    parser.add_argument("--unknown", help="folder of clips that are of none of the classes")
    parser.add_argument("--way", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=2000)
    options = parser.parse_args()
    if options.ckpt:
        classifier = FewShotClassifier.from_checkpoint(options.ckpt, jobs=2)
    else:
        classifier = FewShotClassifier.from_backbone(matching=options.matching, image_size=options.image_size, jobs=2)
    clips = classifier.fit(find_examples(options.folder), progress=True).support.clips
    model, qc_weight = classifier.model, classifier.qc_weight
    others = []
    if options.unknown:
        found = encode_each(find_videos([options.unknown]), model, classifier.preprocessing, jobs=2)
        others = [clip for clip in found if isinstance(clip, EncodedClip)]
    print(f"{len(clips)} classes, {sum(map(len, clips.values()))} clips, {options.way}-way")
    for shot in SHOTS:
        print(accuracy(model, qc_weight, clips, options.way, shot, options.episodes), flush=True)
    for shot in SHOTS:
        print(calibration(model, qc_weight, clips, others, options.way, shot), flush=True)


if __name__ == "__main__":
    main()
