"""Rates and memory of training and evaluation on one GPU (or, at toy size, a CPU).

    python experiments/benchmarks/gpu.py [--device cuda] [--backbone resnet50] [--steps 10]

- training step, with float32 and bf16, each without and with torch.compile: images a second for episodes of 5 ways, 5
  shots, 25 queries and 8 frames; forward and backward of the backbone alone as a share of the time of the step; peak
  memory, and the estimate of `memory_of_step`. On a CPU, peak memory is not measured.
- loader: images a second of `EpisodeDataModule` from a frame cache of generated videos, to compare with the step.
- bank: encoded videos a second, and the time to match 10,000 episodes from it, extrapolated from ``--episodes``.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import av
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from strm_lightning import STRM, EpisodeDataModule
from strm_lightning.data.prepare import prepare
from strm_lightning.data.transforms import ClipTransform
from strm_lightning.episode import Episode
from strm_lightning.evaluation.bank import FeatureBank
from strm_lightning.evaluation.matching import match_from_bank
from strm_lightning.training.memory import memory_of_step

FRAMES = 8


def seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median time of ``run`` after one call that warms up."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def training(options: argparse.Namespace, device: torch.device) -> None:
    """Print images a second, the share of the backbone and the memory of a training step."""
    row("training step", "images/s", "backbone's share", "peak memory", "estimate")
    row(*["---"] * 5)
    way, shot, queries, size = options.way, options.shot, options.way * options.queries, options.image_size
    images = (way * shot + queries) * FRAMES
    support = torch.rand(way, shot, FRAMES, 3, size, size, device=device)
    query = torch.rand(queries, FRAMES, 3, size, size, device=device)
    labels = torch.arange(way, device=device).repeat_interleave(options.queries)
    for dtype in (torch.float32, torch.bfloat16):
        for compiled in (False, True) if options.compile else (False,):
            torch.manual_seed(0)
            model = STRM(options.backbone, pretrained=False, match_dim=options.match_dim).to(device).train()
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            network: nn.Module = model
            if compiled:
                network = torch.compile(model)
            how = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

            def step(network: nn.Module = network, optimizer: torch.optim.Optimizer = optimizer, how=how) -> None:
                optimizer.zero_grad()
                with how:
                    logits = network(support, query).combined(0.1)
                    loss = F.cross_entropy(logits.float(), labels)
                loss.backward()
                optimizer.step()

            def bare(model: STRM = model, how=how) -> None:
                frames = torch.cat([support.flatten(0, 2), query.flatten(0, 1)])
                with how:
                    maps: Tensor = model.backbone(frames)
                maps.float().square().mean().backward()

            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            whole = seconds(step, device, options.steps)
            peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
            share = seconds(bare, device, options.steps) / whole
            estimate = memory_of_step(model, way=way, shot=shot, queries=queries, image_size=size, dtype=dtype)
            row(
                f"{str(dtype).removeprefix('torch.')}{', compiled' if compiled else ''}",
                f"{images / whole:.0f}",
                f"{share:.0%}",
                "not measured" if peak is None else f"{peak:.1f} GB",
                estimate,
            )


def write_videos(root: Path, classes: int, videos: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(classes * videos):
        path = root / f"class {number // videos:02}" / f"{number % videos}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        still = rng.integers(0, 255, (15, 20, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for step in range(32):
                image = np.ascontiguousarray(np.roll(still, 3 * step, 1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))


def loader(options: argparse.Namespace) -> None:
    """Print the images a second of the loader of training episodes."""
    clips = options.way * (options.shot + options.queries)
    with tempfile.TemporaryDirectory() as folder:
        write_videos(Path(folder) / "videos", options.way, options.shot + options.queries)
        prepare(f"{folder}/videos", f"{folder}/cache", short_side=ClipTransform(options.image_size).short_side)
        names = [f"class {number:02}" for number in range(options.way)]
        data = EpisodeDataModule(
            f"{folder}/cache", {"train": names}, way=options.way, shot=options.shot, query_per_class=options.queries,
            image_size=options.image_size, num_workers=options.workers, train_episodes=options.steps + 2,
        )  # fmt: skip
        data.prepare_data()
        data.setup()
        episodes = iter(data.train_dataloader())
        next(episodes)  # starts the workers
        start = time.perf_counter()
        for _ in range(options.steps):
            next(episodes)
        rate = options.steps * clips * FRAMES / (time.perf_counter() - start)
    row("loader", f"{rate:.0f} images/s with {options.workers} workers")


@torch.inference_mode()
def bank(options: argparse.Namespace, device: torch.device) -> None:
    """Print the rate of encoding and the time of 10,000 episodes."""
    model = STRM(options.backbone, pretrained=False, match_dim=options.match_dim).to(device).eval()
    size = options.image_size
    videos = options.way * (options.shot + 1)
    clips = torch.rand(8, FRAMES, 3, size, size, device=device)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            encoded = model.head.encode(model.encode(clips))
            each = seconds(lambda: model.head.encode(model.encode(clips)), device, options.steps) / len(clips)
        store = FeatureBank(range(videos))
        store.put(
            torch.stack([torch.arange(videos), torch.zeros(videos, dtype=torch.long)], 1),
            {name: tensor[:1].expand(videos, *tensor.shape[1:]) for name, tensor in encoded.items()},
        )
        store.move(device)
        rows = torch.arange(videos).view(options.way, -1)
        batch = options.batch
        supports, queries = (part.expand(batch, *part.shape).contiguous() for part in (rows[:, :-1], rows[:, -1]))
        labels = torch.arange(options.way).expand(batch, -1)
        episode = Episode(
            support_ids=supports, query_ids=queries, query_labels=labels, class_ids=labels, index=torch.arange(batch),
            support_views=torch.zeros_like(supports), query_views=torch.zeros_like(queries),
        )  # fmt: skip
        match = seconds(partial(match_from_bank, model.head, store, episode, device), device, options.episodes // batch)
        row(
            f"bank, {str(dtype).removeprefix('torch.')}",
            f"{1 / each:.0f} videos/s encoded",
            f"10,000 episodes matched in {match * 10_000 / batch:.0f} s",
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backbone", default="resnet50", help="timm model, with random weights")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--match_dim", type=int, default=1152)
    parser.add_argument("--way", type=int, default=5)
    parser.add_argument("--shot", type=int, default=5)
    parser.add_argument("--queries", type=int, default=5, help="queries of a class in training")
    parser.add_argument("--steps", type=int, default=10, help="timed steps; their median is printed")
    parser.add_argument("--episodes", type=int, default=1000, help="timed episodes of the bank")
    parser.add_argument("--batch", type=int, default=16, help="episodes matched at once")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no_compile", dest="compile", action="store_false")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}; {options.backbone}, {options.image_size} px, {options.way}-way {options.shot}-shot\n")
    training(options, device)
    print()
    loader(options)
    bank(options, device)


if __name__ == "__main__":
    main()
