"""Recognise actions in videos with the exported classifier in this folder.

    python predict.py a.mp4 b.mp4              # file, label, probability
    python predict.py --json a.mp4             # a JSON object for each video, with all probabilities
    python predict.py --examples clips a.mp4   # an export without examples: clips/CLASS/*.mp4

Needs onnxruntime, numpy and av (PyAV). The frames, their size and the resize are those of strm_lightning.
"""

import argparse
import json
import struct
from pathlib import Path

import av
import numpy as np
import onnxruntime
from av.video.reformatter import VideoReformatter


class Classifier:
    """The classifier in a folder that ``strm export`` wrote.

    Args:
        folder: the folder.
        threads: number of threads; 0 for all cores.
    """

    def __init__(self, folder, threads=0):
        folder, options = Path(folder), onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.config = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.encoding, self.matching = (
            onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
            for name in ("encode.onnx", "match.onnx")
        )
        self.labels, self.chunks = self.config["labels"], self.config["chunks"]
        examples = folder / "examples.npz"
        self.examples = dict(np.load(examples)) if examples.is_file() else {}

    def fit(self, videos):
        """Replace the examples by ``{label: [file, ...]}``; only if the export has none."""
        encoded = [[self.encode(self.read_clip(path)) for path in paths] for _, paths in sorted(videos.items())]
        shape = len(encoded), max(map(len, encoded))
        present = np.array([[k < len(clips) for k in range(shape[1])] for clips in encoded])
        self.examples = {"0/present": present}
        for name, like in encoded[0][0].items():
            rows = np.zeros((*shape, *like.shape[1:]), like.dtype)
            rows[present] = np.concatenate([clip[name] for clips in encoded for clip in clips])
            self.examples[f"0/support.{name}"] = rows
        self.labels, self.chunks = sorted(videos), [list(range(len(encoded)))]

    def predict(self, path):
        """Return the label of a video, or ``unknown``, and the probability of each class in descending order."""
        return self.decide(self.logits(self.encode(self.read_clip(path))))

    def decide(self, logits):
        """Return label and probabilities for the logits ``[N]``."""
        scaled = logits / self.config["temperature"]
        shares = np.exp(scaled - scaled.max())
        shares /= shares.sum()
        order = np.argsort(-shares, kind="stable")
        best, lowest = order[0], self.config["min_logit"]
        known = shares[best] >= self.config["min_probability"] and (lowest is None or logits[best] >= lowest)
        probabilities = {self.labels[i]: float(shares[i]) for i in order}
        return self.labels[best] if known else "unknown", probabilities

    def logits(self, query):
        """Match an encoded clip with the examples; return logits ``[N]`` in the order of ``labels``."""
        found = np.empty(len(self.labels))
        for number, columns in enumerate(self.chunks):
            tensors = {**self.examples, **{f"{number}/query.{name}": tensor for name, tensor in query.items()}}
            inputs = {put.name: tensors[f"{number}/{put.name}"] for put in self.matching.get_inputs()}
            found[columns] = self.matching.run(["logits"], inputs)[0][0]
        return found

    def encode(self, clip):
        """Encode a clip ``[L, 3, S, S]`` of uint8; return tensors by name, with a leading axis of 1."""
        names = [put.name for put in self.encoding.get_outputs()]
        return dict(zip(names, self.encoding.run(names, {"frames": clip[None]}), strict=True))

    def read_clip(self, path):
        """Decode the frames of a clip; return ``[L, 3, S, S]`` of uint8."""
        number, policy = self.config["preprocessing"]["num_frames"], self.config["preprocessing"]["frame_policy"]
        total = sum(1 for _ in decode(path))  # the length in the container is often wrong
        if policy == "segments":
            chosen = [(2 * i + 1) * total // (2 * number) for i in range(number)]
        else:
            chosen = np.linspace(*((0, total - 1) if total < max(number, 3) else (1, total - 2)), number).astype(int)
        wanted = set(map(int, chosen))
        images = {i: self.resize(upright_rgb(*frame)) for i, frame in enumerate(decode(path)) if i in wanted}
        return np.stack([images[int(i)] for i in chosen]).transpose(0, 3, 1, 2)

    def resize(self, image):
        """Resize the short side of an image ``[H, W, 3]`` and crop the centre."""
        short, crop = self.config["preprocessing"]["short_side"], self.config["preprocessing"]["image_size"]
        sizes = [int(short * side / min(image.shape[:2])) for side in image.shape[:2]]
        for axis in (1, 0):
            image = np.moveaxis(resize_axis(np.moveaxis(image, axis, 0), sizes[axis], crop), 0, axis)
        return image


def resize_axis(image, size, crop):
    """Resize the first axis of uint8 pixels to ``size`` (bilinear, antialiased); compute the central ``crop`` of it."""
    first, scale = round((size - crop) / 2), len(image) / size
    support, taps = max(scale, 1.0), []
    for i in range(size):
        centre = scale * (i + 0.5)
        start, end = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), len(image))
        weights = np.maximum(1 - np.abs(np.arange(start, end) - centre + 0.5) / support, 0)
        taps.append((start, end, weights / weights.sum()))
    bits, largest = 0, max(weights.max() for _, _, weights in taps)
    while bits < 22 and int(0.5 + largest * 2 ** (bits + 1)) < 2**15:  # fixed point, as in torch
        bits += 1
    rows = [
        np.tensordot(np.floor(0.5 + weights * 2**bits), image[start:end].astype(np.float64), 1)
        for start, end, weights in taps[first : first + crop]
    ]
    return np.clip(np.floor(np.stack(rows) / 2**bits + 0.5), 0, 255).astype(np.uint8)


def decode(path):
    """Yield each frame of a video with the tools to convert it: the first frame and the reformatter."""
    with av.open(str(path)) as container:
        stream, reformatter, first = container.streams.video[0], VideoReformatter(), None
        stream.codec_context.thread_count = 1  # with more threads, the frames after damage are lost without an error
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise ValueError(f"{path}: is damaged")
            first = first or frame
            yield frame, first, reformatter
    if first is None:
        raise ValueError(f"{path}: has no frame that can be decoded")


def upright_rgb(frame, first, reformatter):
    """Convert a frame to ``[H, W, 3]``, in the size of the first frame and rotated as the video is displayed."""
    image = reformatter.reformat(frame, first.width, first.height, format="rgb24").to_ndarray()
    try:
        a, b, _, c, d = struct.unpack("=5i", bytes(first.side_data["DISPLAYMATRIX"])[:20])
    except KeyError:
        return image
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return image.transpose(1, 0, 2)[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]


def main():
    """Parse the command line and print a line for each video."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--examples", type=Path)
    options = parser.parse_args()
    classifier = Classifier(Path(__file__).parent)
    if options.examples:
        folders = [folder for folder in options.examples.iterdir() if folder.is_dir()]
        classifier.fit({folder.name: sorted(folder.iterdir()) for folder in folders})
    for video in options.videos:
        label, probabilities = classifier.predict(video)
        if options.json:
            print(json.dumps({"video": video, "label": label, "probabilities": probabilities}))
        else:
            print(f"{video}  {label}  {max(probabilities.values()):.2f}")


if __name__ == "__main__":
    main()
