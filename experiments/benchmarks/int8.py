"""Accuracy with an int8 encoding beside the float one, on folders of clips, in the same episodes.

    python experiments/benchmarks/int8.py egogestar ssv2_excerpt signs [--episodes 1000] [--encoded_examples]

A folder has a folder of clips for each class. As in ``strm export --int8``, the ranges of values are measured on up to
16 clips, in turn over the classes, and examples are encoded in float; with ``--encoded_examples`` they are encoded in
int8 too. The clips that are measured are left out of the episodes. An episode draws classes, examples and one query per
class. "same labels" is the share of queries that have the same label with both. Intervals are the 95 % ones over
episodes; that of the difference is paired.
"""

import argparse
import sys
import tempfile
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from experiments.benchmarks.own_videos import draw
from strm_lightning.classifier import FewShotClassifier
from strm_lightning.classifier.clips import read_clip
from strm_lightning.classifier.export import graphs, quantize
from strm_lightning.classifier.videos import Video, find_examples
from strm_lightning.models import STRMHead

Encoded = dict[str, Tensor]


def encode(path: Path, clips: list[np.ndarray], threads: int) -> Encoded:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [put.name for put in session.get_outputs()]
    rows = [session.run(names, {"frames": clip[None]}) for clip in tqdm(clips, path.name, disable=None)]
    return {
        name: torch.from_numpy(np.concatenate(parts))
        for name, parts in zip(names, zip(*rows, strict=True), strict=True)
    }


@torch.inference_mode()
def logits(head: STRMHead, own: Encoded, queries: Encoded, examples: list[int], asked: list[int], way: int) -> Tensor:
    support = {name: tensor[examples].unflatten(0, (way, -1)) for name, tensor in own.items()}
    return head.match_encoded(support, {name: tensor[asked] for name, tensor in queries.items()}).combined(0.1)


def compare(
    head: STRMHead, exact: Encoded, small: Encoded, own: Encoded, classes: list[int], way: int, shot: int, episodes: int
) -> str:
    right, same = torch.empty(2, episodes), torch.empty(episodes)
    for index in range(episodes):
        examples, asked = draw(classes, way, shot, index)
        found = [logits(head, a, b, examples, asked, way) for a, b in ((exact, exact), (own, small))]
        labels = [scores.argmax(1) for scores in found]
        right[:, index] = torch.stack([(label == torch.arange(way)).float().mean() for label in labels])
        same[index] = (labels[0] == labels[1]).float().mean()
    cells = [*right, right[1] - right[0]]
    means = [f"{100 * cell.mean():.1f} ± {196 * cell.std() / episodes**0.5:.1f}" for cell in cells]
    exact_, int8, difference = means
    return f"{shot}-shot float {exact_}, int8 {int8}, difference {difference}; same labels {100 * same.mean():.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--matching", default="auto")
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--way", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--limit", type=int, help="clips of each class")
    parser.add_argument("--measured", type=int, default=quantize.CALIBRATION_CLIPS, help="clips to measure ranges on")
    parser.add_argument("--encoded_examples", action="store_true", help="encode the examples in int8 too")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    classifier = FewShotClassifier.from_backbone(matching=options.matching, device="cpu")
    model, how = classifier.model, classifier.preprocessing
    with tempfile.TemporaryDirectory() as folder:
        exact, small = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        graphs.export_encoding(model, how.image_size, exact)
        for name in options.folders:
            found = find_examples(name)
            members = [[(c, video) for video in found[label][: options.limit]] for c, label in enumerate(sorted(found))]
            in_turn: list[tuple[int, Video]] = [clip for clip in chain(*zip_longest(*members)) if clip is not None]
            pixels = [read_clip(video, how).numpy() for _, video in tqdm(in_turn, name, disable=None)]
            small.write_bytes(exact.read_bytes())
            quantize.quantize_encoding(small, iter(pixels[: options.measured]))
            rest = pixels[options.measured :]
            tensors = [encode(path, rest, options.threads) for path in (exact, small)]
            own = tensors[1] if options.encoded_examples else tensors[0]
            classes = [c for c, _ in in_turn[options.measured :]]
            print(f"{name}: {len(members)} classes, {len(rest)} clips, {options.way}-way", flush=True)
            for shot in options.shots:
                print(" ", compare(model.head, *tensors, own, classes, options.way, shot, options.episodes), flush=True)


if __name__ == "__main__":
    main()
