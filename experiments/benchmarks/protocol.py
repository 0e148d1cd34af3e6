"""Time of 10,000 test episodes: encoding every episode against a feature bank, and matching alone.

    python experiments/benchmarks/protocol.py [--part protocol matching] [--backbone resnet18 --image_size 112]

``protocol`` generates 24 classes of 100 videos (320 x 240, H.264) and tests one model on the same 5-way 5-shot
episodes, one query per class, without and with a bank. Without a bank the test would take hours: the median time of
some episodes, measured before and after the test with a bank, is extrapolated. The test with a bank is measured
completely, or in part with ``--videos`` and ``--episodes``. Both must make the same predictions.

``matching`` matches random features at the paper's sizes (ResNet-50: D 2048, d 1152) and compares its FLOP/s with those
of a large matrix product, measured alternately.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import av
import lightning as L
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from strm_lightning import EpisodeDataModule, STRMModule
from strm_lightning.data.episodes import EpisodeGenerator
from strm_lightning.data.loaders import EpisodeDataset
from strm_lightning.evaluation.bank import FeatureBank
from strm_lightning.evaluation.matching import match_from_bank
from strm_lightning.models.head import STRMHead

CLASSES, VIDEOS, WAY, SHOT, L_FRAMES, TUPLES = 24, 100, 5, 5, 8, 28
WIDTH, HEIGHT, LENGTH = 320, 240, 40


def write_videos(root: Path, videos: int, distinct: int = 10) -> None:
    """Write videos of moving noise: ``distinct`` files of each class, and copies of them."""
    rng = np.random.default_rng(0)
    for number in range(CLASSES):
        folder = root / f"class {number:02}"
        folder.mkdir(parents=True)
        for serial in range(videos):
            path = folder / f"{serial:03}.mp4"
            if serial >= distinct:
                shutil.copy(folder / f"{serial % distinct:03}.mp4", path)
                continue
            still = rng.integers(0, 255, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
            step = rng.integers(-4, 5, 2)
            with av.open(str(path), "w") as file:
                stream = file.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
                stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
                for t in range(LENGTH):
                    image = np.ascontiguousarray(np.roll(still, t * step, (0, 1)))
                    file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                file.mux(stream.encode(None))


class Clock(L.Callback):
    """Measures the seconds of each step, decoding included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.last = time.perf_counter()

    def on_test_batch_end(self, *arguments: object) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


def run_test(model: STRMModule, root: Path, way: str, options: argparse.Namespace, episodes: int) -> Clock:
    clock = Clock()
    data = EpisodeDataModule(
        str(root / "videos"), {"test": [f"class {n:02}" for n in range(CLASSES)]}, way=WAY, shot=SHOT,
        query_per_class=1, num_frames=L_FRAMES, image_size=options.image_size, num_workers=0, test_episodes=episodes,
        evaluation=way,
    )  # fmt: skip
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", default_root_dir=root, callbacks=[clock], **quiet)
    trainer.test(model, datamodule=data, verbose=False)
    return clock


def protocol(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    model = STRMModule(options.backbone, pretrained=False)
    videos, episodes = CLASSES * options.videos, options.episodes
    shape = f"{WAY}-way {SHOT}-shot, 1 query a class"
    print(f"{CLASSES} x {options.videos} videos, {WIDTH} x {HEIGHT}, {LENGTH} frames; {shape}")
    print(f"{options.backbone} at {options.image_size} px, {options.threads} threads", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_videos(root / "videos", options.videos)
        seconds, answers = [], []
        for way, count in (("episodes", options.literal), ("bank", episodes), ("episodes", options.literal)):
            clock = run_test(model, root, way, options, count)
            assert model.results is not None
            assert model.report is not None
            answers.append(model.results.predicted)
            if way == "bank":
                timing = model.report["timing"]
            else:
                seconds += clock.seconds[1:]  # the first step also allocates memory
    anew, bank, again = answers
    assert np.array_equal(anew, again)
    same = int((anew == bank[: len(anew)]).all(1).sum())
    each, encoding, matching_s = median(seconds), timing["encoding_s"], timing["matching_s"]
    print(f"literal  {each:.2f} s an episode, median of {len(seconds)}")
    print(f"bank     {videos} videos encoded in {encoding:.0f} s, {episodes} episodes matched in {matching_s:.1f} s")
    print(f"         the same predictions in {same} of {len(anew)} episodes")
    all_videos, all_episodes = CLASSES * VIDEOS, 10_000
    whole = encoding * all_videos / videos + matching_s * all_episodes / episodes
    how = "measured" if (videos, episodes) == (all_videos, all_episodes) else "extrapolated"
    print(f"{all_episodes} episodes over {all_videos} videos")
    print(f"literal  {each * all_episodes / 3600:.1f} h, extrapolated")
    print(f"bank     {whole / 60:.1f} min, {how}: {each * all_episodes / whole:.0f} x faster", flush=True)


def gemm_rate(clock: Callable[[], float], size: int = 2048, repeats: int = 2) -> float:
    """Measure the FLOP/s of a large float32 matrix product."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    torch.mm(a, b)
    start = clock()
    for _ in range(repeats):
        torch.mm(a, b)
    return repeats * 2 * size**3 / (clock() - start)


@torch.inference_mode()
def matching(options: argparse.Namespace, dim: int = 2048, match_dim: int = 1152) -> None:
    members = [np.arange(c * VIDEOS, (c + 1) * VIDEOS) for c in range(CLASSES)]
    episodes = EpisodeDataset(EpisodeGenerator(members, WAY, SHOT, 1, "test"), None)
    query, support = WAY * TUPLES, WAY * SHOT * TUPLES
    clock = time.process_time if options.cpu_time else time.perf_counter
    for qc_dim, name in ((dim, "D"), (dim // 2, "D/2")):
        head = STRMHead(dim, match_dim=match_dim, qc_dim=qc_dim).eval()
        bank = FeatureBank(range(CLASSES * VIDEOS))
        generator = torch.Generator().manual_seed(0)
        for rows in bank.rows.split(100):
            sizes = (match_dim, match_dim, qc_dim)
            keys, values, relations = (torch.randn(len(rows), TUPLES, n, generator=generator) for n in sizes)
            found = {"keys": keys, "values": values, "qc.relations": relations.relu_()}
            bank.put(torch.stack([rows, torch.zeros_like(rows)], 1), found)
        print(f"{bank.describe()}; D {dim}, d {match_dim}, QC {name}; {options.threads} threads", flush=True)
        # Scores and prototypes of TRM, distances of QC; a multiply-add is two operations.
        work = 2 * query * support * (2 * match_dim + qc_dim)
        rates, seconds, batch = [], [], 16
        for first in range(0, options.episodes, batch):
            if first % (20 * batch) == 0:
                rates.append(gemm_rate(clock))
            start = clock()
            episode = episodes.__getitems__([(0, first + i) for i in range(min(batch, options.episodes - first))])
            match_from_bank(head, bank, episode, torch.device("cpu"))
            seconds.append(clock() - start)
        total, each, gemm = sum(seconds), np.array(seconds) / batch, np.array(rates)
        print(f"  {options.episodes} episodes in {total:.0f} s, {work / 1e9:.2f} GFLOP each")
        for name, share in (("median", 0.5), ("the quickest tenth", 0.1)):
            time_of_one, product = np.quantile(each, share), np.quantile(gemm, 1 - share)
            print(
                f"  {name}: {1e3 * time_of_one:.1f} ms each, {work / time_of_one / 1e9:.0f} GFLOP/s, "
                f"{work / time_of_one / product:.0%} of the {product / 1e9:.0f} GFLOP/s of a matrix product",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=("protocol", "matching"), default=["protocol", "matching"])
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--videos", type=int, default=VIDEOS, help="videos per class")
    parser.add_argument("--literal", type=int, default=6, help="episodes without a bank, before and after")
    parser.add_argument("--backbone", default="resnet18", help="timm model, with random weights")
    parser.add_argument("--image_size", type=int, default=112)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--cpu_time", action="store_true", help="matching: CPU time of all threads, if there is other load"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for part in options.part:
        (protocol if part == "protocol" else matching)(options)


if __name__ == "__main__":
    main()
