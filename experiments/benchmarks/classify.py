"""Time from a video file to its label: decoding, encoding, and matching with 5 to 400 classes.

    python experiments/benchmarks/classify.py [--seconds 4] [--rounds 5] [--threads 1] [--matching lag | --ckpt a.ckpt]

The video is generated (640 x 480, 30 frames a second, H.264). The features of the examples are random; the time of
matching does not depend on their values. ``--matching NAME`` uses a method without weights on the pretrained backbone;
``auto`` is what ``strm classify`` uses without a checkpoint. Without ``--matching`` and ``--ckpt``, STRM's heads have
random weights.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import av
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from strm_lightning.classifier import FewShotClassifier
from strm_lightning.classifier.clips import ClipConfig, read_clip
from strm_lightning.classifier.encoder import encode
from strm_lightning.classifier.support import EncodedClip, SupportSet
from strm_lightning.models import STRM


def write_video(path: Path, seconds: float) -> None:
    rng = np.random.default_rng(0)
    still = rng.integers(0, 255, (480, 640, 3), dtype=np.uint8) // 4
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for i in range(round(30 * seconds)):
            image = still.copy()
            image[200:300, (4 * i) % 540 : (4 * i) % 540 + 100] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def milliseconds(run: Callable[[], object], rounds: int) -> float:
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * median(times)


def support_of(model: STRM, like: EncodedClip, classes: int, shots: int) -> SupportSet:
    support = SupportSet(model)
    for c in range(classes):
        features = [{k: torch.randn_like(t) for k, t in like.features.items()} for _ in range(shots)]
        support.add(f"class {c:04}", [EncodedClip("", "", like.thumbnail, f) for f in features])
    return support


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="length of the video")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shots", type=int, default=5)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ckpt", help="checkpoint of a trained model")
    which.add_argument("--matching", help="a matching method without weights on the pretrained backbone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.ckpt or options.matching:
        of = FewShotClassifier
        if options.ckpt:
            classifier = of.from_checkpoint(options.ckpt, device="cpu")
        else:
            classifier = of.from_backbone(matching=options.matching, device="cpu")
        model, how = classifier.model, classifier.preprocessing
    else:
        sizes = {"proj_dim": 256, "match_dim": 256, "qc_dim": 256, "center_clip": True, "patch_pooling": "layout"}
        model, how = STRM("tf_efficientnet_lite0", pretrained=False, **sizes).eval(), ClipConfig(8, 112)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "query.mp4"
        write_video(path, options.seconds)
        pixels = read_clip(path, how)
        clip = encode([("query", pixels)], model)[0]
        decode = milliseconds(lambda: read_clip(path, how), options.rounds)
        encoding = milliseconds(lambda: encode([("query", pixels)], model), options.rounds)
    query = {name: tensor[None] for name, tensor in clip.features.items()}
    print(f"{options.seconds:g} s of 640 x 480 at 30 frames a second, {how.image_size} px, {options.threads} threads")
    print(f"{'classes':>8}{'clips':>7}{'decode':>9}{'encode':>9}{'match':>9}{'total':>9}   ms; match per clip")
    for classes in (5, 25, 100, 400):
        support = support_of(model, clip, classes, options.shots)
        match = milliseconds(lambda s=support: s.match(query), options.rounds)
        clips = classes * options.shots
        total = decode + encoding + match
        print(
            f"{classes:>8}{clips:>7}{decode:>9.1f}{encoding:>9.1f}{match:>9.1f}{total:>9.1f}   {match / clips:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
