"""Size and speed of an exported classifier, float and int8, beside PyTorch in the same run.

    python experiments/benchmarks/exported.py [--matching auto | --ckpt a.ckpt] [--threads 1] [--rounds 5]

The examples' features and the pixels are random, since matching and encoding take as long whatever they are. Rounds of
PyTorch, ONNX and int8 alternate, so that the load of the machine changes all; a ratio is the median of the ratios of
the rounds. Only the encoding has an int8 form, and only if most of the backbone's weights are in convolutions.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from strm_lightning.classifier import FewShotClassifier
from strm_lightning.classifier.export import graphs, quantize
from strm_lightning.classifier.export.predict import Classifier
from strm_lightning.classifier.support import EncodedClip
from strm_lightning.errors import InputError


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(name: str, rounds: int, *runs: Callable[[], object]) -> None:
    """Print the times of PyTorch, ONNX and, if there is a third run, int8."""
    for run in runs:
        run()
    times = [[seconds(run) for run in runs] for _ in range(rounds)]
    cells = [f"{median(column) * 1000:>10.1f}" for column in zip(*times, strict=True)] + [f"{'-':>10}"] * (
        3 - len(runs)
    )
    ratios = [median(first[i] / first[i + 1] for first in times) for i in range(len(runs) - 1)]
    print(f"{name:<28}{''.join(cells)}{''.join(f'{ratio:>16.2f}' for ratio in ratios)}", flush=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shots", type=int, default=5)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ckpt", help="checkpoint of a trained model")
    which.add_argument("--matching", default="auto", help="a matching method without weights")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.ckpt:
        classifier = FewShotClassifier.from_checkpoint(options.ckpt, device="cpu")
    else:
        classifier = FewShotClassifier.from_backbone(matching=options.matching, device="cpu")
    model, how = classifier.model, classifier.preprocessing
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (how.num_frames, 3, *[how.image_size] * 2), dtype=np.uint8))
    query = model.head.encode(model.encode(pixels[None]))
    with tempfile.TemporaryDirectory() as folder:
        encode, match = (Path(folder) / name for name in ("encode.onnx", "match.onnx"))
        graphs.export_encoding(model, how.image_size, encode)
        graphs.export_matching(model, classifier.qc_weight, match, shots=options.shots)
        (Path(folder) / "model.json").write_text('{"labels": [], "chunks": []}')
        exported = Classifier(folder, threads=options.threads)
        encodings = [exported]
        weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        sizes = {
            "weights in PyTorch": weights,
            "match.onnx": match.stat().st_size,
            "encode.onnx": encode.stat().st_size,
        }
        try:
            quantize.check_backbone(model)
            quantize.quantize_encoding(encode, [pixels.numpy()])
            encodings.append(Classifier(folder, threads=options.threads))
            sizes["in int8"] = encode.stat().st_size
        except InputError as error:
            print(error)
    print(", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sizes.items()), end="")
    print(f"; {options.threads} threads, {how.num_frames} x {how.image_size} px")
    print(f"{'':<28}{'PyTorch':>10}{'ONNX':>10}{'int8':>10}{'PyTorch / ONNX':>16}{'ONNX / int8':>16}   ms")
    clip = pixels.numpy()
    compare(
        "encode",
        options.rounds,
        lambda: model.head.encode(model.encode(pixels[None])),
        *(partial(encoding.encode, clip) for encoding in encodings),
    )
    arrays = exported.encode(clip)
    for classes in (5, 25, 100):
        for c in range(classes):
            features = [
                {k: torch.randn_like(t[0]) / t[0].numel() ** 0.5 for k, t in query.items()}
                for _ in range(options.shots)
            ]
            classifier.support.add(f"class {c:04}", [EncodedClip("", "", torch.empty(0), f) for f in features])
        exported.examples, exported.chunks = graphs.example_arrays(classifier.support)
        exported.labels = classifier.support.labels
        compare(
            f"match, {classes} classes of {options.shots}",
            options.rounds,
            lambda: classifier.support.match(query),
            lambda: exported.logits(arrays),
        )
        for label in classifier.support.labels:
            classifier.support.remove(label)


if __name__ == "__main__":
    main()
