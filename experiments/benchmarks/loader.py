"""Episodes per second of each data layout, compared with a loader like those of published code.

The baseline reads a zip of JPEG frames from memory, scans the whole index for every clip, decodes and resizes with
Pillow, and returns float32. Episodes, frames and crops are the same. All loaders run alternately, and each ratio is of
two runs of the same round. The script also measures the time to draw an episode, and the time to start a data module on
an existing index of 70,000 videos.

    python experiments/benchmarks/loader.py [--rounds 5] [--sizes 240x320,256x340] [--workers 0,2]
"""

import argparse
import io
import json
import os
import random
import tempfile
import time
import zipfile
from pathlib import Path
from statistics import median

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from strm_lightning.data.cache.store import MANIFEST
from strm_lightning.data.datamodule import EpisodeDataModule
from strm_lightning.data.episodes import EpisodeGenerator
from strm_lightning.data.loaders import ClipReader, EpisodeDataset
from strm_lightning.data.prepare import prepare
from strm_lightning.data.sampling import select_frames
from strm_lightning.data.transforms import ClipTransform
from strm_lightning.data.video_sets import load_video_sets

WAY, SHOT, QUERY, L, SIZE = 5, 5, 5, 8, 224
CLASSES, CLIPS, FRAMES = 6, 10, 60


class Literal(Dataset[tuple[Tensor, ...]]):
    """The baseline: one zip in memory, one list of all videos, Pillow, float32."""

    def __init__(self, archive: Path, seed: int) -> None:
        self.bytes, self.seed = archive.read_bytes(), seed
        frames: dict[str, list[str]] = {}
        with zipfile.ZipFile(io.BytesIO(self.bytes)) as opened:
            for name in sorted(opened.namelist()):
                frames.setdefault(name.rpartition("/")[0], []).append(name)
        self.videos = [(video.split("/")[0], paths) for video, paths in frames.items()]
        self.zip: zipfile.ZipFile | None = None

    def pick(self, class_name: str, nth: int) -> list[str]:
        """Find a video by a scan over the index."""
        return [paths for label, paths in self.videos if label == class_name][nth]

    def clip(self, paths: list[str]) -> Tensor:
        assert self.zip is not None
        images = []
        for number in select_frames("release", len(paths), L, None):
            image = Image.open(io.BytesIO(self.zip.read(paths[number]))).convert("RGB")
            width, height = image.size
            if min(width, height) != 256:
                short = 256 / min(width, height)
                size = (256, int(height * short)) if width < height else (int(width * short), 256)
                image = image.resize(size, Image.Resampling.BILINEAR)
            left, top = round((image.size[0] - SIZE) / 2), round((image.size[1] - SIZE) / 2)
            array = np.array(image.crop((left, top, left + SIZE, top + SIZE)))
            images.append(torch.from_numpy(array).permute(2, 0, 1).contiguous().float().div(255))
        return torch.stack(images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, ...]:
        self.zip = self.zip or zipfile.ZipFile(io.BytesIO(self.bytes))
        rng = random.Random(f"{self.seed}/test/0/{key[1]}")
        names = sorted({label for label, _ in self.videos})
        support, query = [], []
        for name in (names[c] for c in rng.sample(range(len(names)), WAY)):
            count = sum(label == name for label, _ in self.videos)
            picks = rng.sample(range(count), SHOT + QUERY)
            clips = [self.clip(self.pick(name, nth)) for nth in picks]
            support, query = support + clips[:SHOT], query + clips[SHOT:]
        return torch.stack(support), torch.stack(query)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"zip": None}


def write_videos(root: Path, height: int, width: int) -> None:
    """Write clips of moving gradients and texture, which compress about as well as real videos."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(height), np.arange(width))
    for label in range(CLASSES):
        for clip in range(CLIPS):
            path = root / f"class{label}" / f"clip{clip:02}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            texture = np.repeat(np.repeat(rng.integers(0, 90, (height // 8, width // 10 + 1, 3)), 8, 0), 10, 1)[
                :, :width
            ]
            with av.open(str(path), "w") as container:
                stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "23"})
                stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
                for number in range(FRAMES):
                    wave = 80 + 70 * np.sin(ramp / (15 + label) + number / 4)[..., None]
                    image = (wave + np.roll(texture, 3 * number, 1)[:height]).clip(0, 255).astype(np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image))))
                container.mux(stream.encode())


def write_zip(videos: Path, archive: Path) -> None:
    """Write the same frames as JPEG into an uncompressed zip."""
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(videos.rglob("*.mp4")):
            with av.open(str(path)) as container:
                for number, frame in enumerate(container.decode(video=0), start=1):
                    buffer = io.BytesIO()
                    frame.to_image().save(buffer, "JPEG", quality=90)
                    opened.writestr(f"{path.parent.name}/{path.stem}/{number:08}.jpg", buffer.getvalue())


def layouts(folder: Path, height: int, width: int) -> dict[str, Path]:
    """Write the same clips in every layout."""
    write_videos(folder / "videos", height, width)
    write_zip(folder / "videos", folder / "frames.zip")
    with zipfile.ZipFile(folder / "frames.zip") as opened:
        opened.extractall(folder / "frames")
    for name, kind in (("raw cache", "raw"), ("jpeg cache", "jpeg"), ("kept cache", "keep")):
        prepare(str(folder / "frames.zip"), str(folder / name), format=kind, policies=["release"])
    return {
        "raw cache": folder / "raw cache",
        "jpeg cache": folder / "jpeg cache",
        "kept cache": folder / "kept cache",
        "jpeg zip": folder / "frames.zip",
        "jpeg folders": folder / "frames",
        "video files": folder / "videos",
    }


def ours(root: Path, seed: int) -> EpisodeDataset:
    videos = load_video_sets(root, {"test": [f"class{i}" for i in range(CLASSES)]}, progress=False)["test"]
    generator = EpisodeGenerator(videos.members, WAY, SHOT, QUERY, "test", seed)
    return EpisodeDataset(generator, ClipReader(videos, L, "release", ClipTransform(SIZE, 256)))


def as_is(batch: object) -> object:
    return batch


def turns(dataset: Dataset[object], workers: int, episodes: int) -> DataLoader[object]:
    literal = isinstance(dataset, Literal)
    return DataLoader(
        dataset,
        batch_size=1,
        sampler=[(0, index) for index in range(episodes)],
        num_workers=workers,
        collate_fn=None if literal else as_is,
        persistent_workers=workers > 0,
    )


def seconds(loader: DataLoader[object]) -> float:
    """Measure a pass over all episodes."""
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def check_same_pixels(sides: dict[str, Dataset[object]]) -> None:
    """Check that the lossless layouts and the baseline differ by less than two levels, from Pillow's resize."""
    literal = sides["literal"][0, 0]
    for name in ("raw cache", "kept cache", "jpeg zip", "jpeg folders"):
        episode = sides[name][0, 0]
        for clips, theirs in ((episode.support.flatten(0, 1), literal[0]), (episode.query, literal[1])):
            difference = (clips.float() - theirs * 255).abs().max().item()
            assert difference < 1.01, f"{name} differs by {difference} levels"


def compare(height: int, width: int, workers: list[int], rounds: int, episodes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        roots = layouts(Path(folder), height, width)
        sides: dict[str, Dataset[object]] = {"literal": Literal(roots["jpeg zip"], seed=0)}
        sides |= {name: ours(root, seed=0) for name, root in roots.items()}
        check_same_pixels(sides)
        for count in workers:
            loaders = {name: turns(dataset, count, episodes) for name, dataset in sides.items()}
            times: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(rounds + 1):
                for name, loader in loaders.items():
                    times[name].append(seconds(loader) / episodes)
            for name, values in times.items():
                ratios = [theirs / ours for theirs, ours in zip(times["literal"], values, strict=True)]
                print(  # without the first round, which starts the workers
                    f"{height}x{width}  {count} workers  {name:<13} {1 / median(values[1:]):7.2f} episodes/s"
                    f"  {median(ratios[1:]):6.2f} x",
                    flush=True,
                )


def sampling(videos: int) -> None:
    """Measure the time to draw the clips of an episode, without reading them."""
    classes = min(64, videos // 10)
    labels = np.sort(np.arange(videos) % classes)
    members = tuple(np.flatnonzero(labels == c) for c in range(classes))
    generator = EpisodeGenerator(members, WAY, SHOT, QUERY, "train", 0)
    named = [f"class{label}" for label in labels.tolist()]

    def literal(index: int) -> None:
        rng = random.Random(index)
        for name in rng.sample(sorted(set(named)), WAY):
            for _ in range(SHOT + QUERY):
                [row for row, label in enumerate(named) if label == name][rng.randrange(10)]

    def per_call(choose: object, calls: int) -> float:
        start = time.perf_counter()
        for index in range(calls):
            choose(index)
        return (time.perf_counter() - start) / calls

    theirs = median(per_call(literal, 1) for _ in range(5))
    mine = median(per_call(lambda index: generator.draw(0, index), 50) for _ in range(5))
    print(f"sampling among {videos} videos: {mine * 1e3:.2f} ms an episode, literal {theirs * 1e3:.0f} ms", flush=True)


def start_up(videos: int, classes: int = 100) -> None:
    """Measure the setup of a data module with an existing index."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["STRM_CACHE"] = f"{folder}/index"
        one, names = Path(folder) / "one", [f"class{i % classes}/{i}" for i in range(videos)]
        for number in range(8):
            (one / "a" / "v").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 16)).save(one / "a" / "v" / f"{number}.jpg")
        prepare(str(one), f"{folder}/one cache", format="keep")
        clip = Path(folder) / "one cache" / "a" / "v.clip"
        for name in names:
            for place, target in (("frames", one / "a" / "v"), ("cache", clip)):
                path = Path(folder) / place / (name + target.suffix)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(target)
        manifest = json.loads((Path(folder) / "one cache" / MANIFEST).read_text())
        manifest["videos"] = dict.fromkeys(names, manifest["videos"]["a/v"])
        (Path(folder) / "cache" / MANIFEST).write_text(json.dumps(manifest))
        image = (one / "a" / "v" / "0.jpg").read_bytes()
        with zipfile.ZipFile(f"{folder}/frames.zip", "w") as opened:
            for name in names:
                for number in range(8):
                    opened.writestr(f"{name}/{number}.jpg", image)
        for place in ("frames", "cache", "frames.zip"):
            times = []
            for _ in range(4):
                data = EpisodeDataModule(f"{folder}/{place}", num_workers=0)
                start = time.perf_counter()
                data.setup("fit")
                times.append(time.perf_counter() - start)
            print(
                f"start on {videos} videos, {place:<10} {times[0]:6.2f} s the first time, then {min(times):.2f} s",
                flush=True,
            )
        del os.environ["STRM_CACHE"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=4, help="episodes per run")
    parser.add_argument(
        "--sizes", default="240x320,256x340", help="sizes of frames; empty for drawing and start-up only"
    )
    parser.add_argument("--workers", default="0,2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for videos in (60, 70_000, 200_000):
        sampling(videos)
    start_up(70_000)
    for size in filter(None, options.sizes.split(",")):
        height, width = map(int, size.split("x"))
        workers = [int(count) for count in options.workers.split(",")]
        compare(height, width, workers, options.rounds, options.episodes)


if __name__ == "__main__":
    main()
