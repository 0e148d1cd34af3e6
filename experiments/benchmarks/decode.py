"""CPU time to read a clip from a video file: one decoding pass against counting all frames first.

    python experiments/benchmarks/decode.py [FILE ...] [--rounds 5] [--seconds 3] [--frames 8]

Both ways read the same L frames of each file (``segments``, the centre of L equal segments) and must return the same
pixels. ``two passes`` decodes the video to count its frames, and then up to the last frame of the clip. Without files,
videos of several formats are generated. Both run alternately; the ratio is the median over the rounds.

The second line of a file compares ways to count its frames: decoding with all filters, decoding without the deblocking
filter (`count_frames`, which the index of a data set uses), and packets, which do not show damage.
"""

import argparse
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
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from strm_lightning.data.decode.video import count_frames, estimate_num_frames, read_chosen, read_frames, visit_frames
from strm_lightning.data.sampling import select_frames

FORMATS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx", "avi": "mpeg4"}


def two_passes(path: Path, frames: int) -> Tensor:
    return read_frames(path, select_frames("segments", count_frames(path), frames, None))


def one_pass(path: Path, frames: int) -> Tensor:
    return read_chosen(path, lambda available: select_frames("segments", available, frames, None))


def count_with_filters(path: Path) -> int:
    return visit_frames(path, (), lambda *_: None)


def write_videos(folder: Path, seconds: float) -> list[Path]:
    """Write a video of 320 x 240 pixels and 25 frames a second in each format."""
    rng = np.random.default_rng(0)
    still = rng.integers(0, 255, (15, 20, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    paths = [folder / f"generated.{suffix}" for suffix in FORMATS]
    for path, codec in zip(paths, FORMATS.values(), strict=True):
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for number in range(round(25 * seconds)):
                image = np.ascontiguousarray(np.roll(still, 3 * number, 1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    return paths


def seconds_of(read: Callable[[], object]) -> float:
    start = time.process_time()
    read()
    return time.process_time() - start


def compare(path: Path, frames: int, rounds: int) -> float:
    """Print the median times of both ways for one file; return their median ratio."""
    assert torch.equal(one_pass(path, frames), two_passes(path, frames))
    ways = [partial(way, path, frames) for way in (two_passes, one_pass)]
    times = np.array([[seconds_of(way) for way in ways] for _ in range(rounds)])
    ratio = median(times[:, 0] / times[:, 1])
    two, one = 1e3 * np.median(times, 0)
    counts = [partial(way, path) for way in (count_with_filters, count_frames, estimate_num_frames)]
    assert len({count() for count in counts[:2]}) == 1
    filtered, plain, packets = 1e3 * np.median([[seconds_of(way) for way in counts] for _ in range(rounds)], 0)
    print(f"{path.name:<40} two passes {two:7.1f} ms   one pass {one:7.1f} ms   {ratio:5.2f} x faster")
    print(
        f"{'':<40} count {filtered:7.1f} ms   without filter {plain:7.1f} ms   {filtered / plain:5.2f} x faster   "
        f"packets {packets:.1f} ms",
        flush=True,
    )
    return ratio


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="video files; generated ones by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="length of the generated videos")
    parser.add_argument("--frames", type=int, default=8, help="frames L of a clip")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        paths = options.files or write_videos(Path(folder), options.seconds)
        ratios = [compare(path, options.frames, options.rounds) for path in paths]
    print(f"median over {len(paths)} files: {median(ratios):.2f} x faster")


if __name__ == "__main__":
    main()
