"""How often the classifier is right on a folder of videos by class, from one example and from five; none is trained on.

    python experiments/benchmarks/few_shot.py egogestar [--ckpt best.ckpt] [--way 5] [--episodes 2000]

Every clip is encoded once. An episode draws classes, examples and one query a class, which share no clip; the interval
is the 95 % one over episodes, as in the papers.
"""

import argparse
import random
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from strm_lightning.classifier import FewShotClassifier
from strm_lightning.classifier.commands import find_examples


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a folder of clips for each class")
    parser.add_argument("--ckpt", help="checkpoint of a trained model; without, the bare backbone")
    parser.add_argument("--image_size", type=int, default=224, help="of the bare backbone")
    parser.add_argument("--way", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=2000)
    options = parser.parse_args()
    if options.ckpt:
        classifier = FewShotClassifier.from_checkpoint(options.ckpt)
    else:
        classifier = FewShotClassifier.from_backbone(weights="pip:efficientnet_lite0", image_size=options.image_size)
    support = classifier.fit(find_examples(options.folder), progress=True).support
    features = {label: support.features(label) for label in support.labels}
    matcher = classifier.matcher
    print(f"{len(features)} classes, {sum(map(len, support.clips.values()))} clips, {options.way}-way")
    for shot in (1, 5):
        right = []
        for index in range(options.episodes):
            rng = random.Random(f"0/test/0/{index}")
            drawn = [
                (c, rng.sample(range(len(support.clips[c])), shot + 1)) for c in rng.sample([*features], options.way)
            ]
            examples, query = (
                {
                    name: torch.stack([features[c][name][pick(rows)] for c, rows in drawn])
                    for name in features[drawn[0][0]]
                }
                for pick in (lambda rows: rows[:-1], lambda rows: rows[-1])
            )
            logits = matcher.match(examples, query).combined(matcher.qc_weight)
            right.append((logits.argmax(1) == torch.arange(options.way)).float().mean().item())
        interval = 1.96 * np.std(right) / len(right) ** 0.5
        print(f"{shot}-shot {np.mean(right):.1%} ± {interval:.1%}", flush=True)


if __name__ == "__main__":
    main()
