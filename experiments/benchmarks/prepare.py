"""Cost of a frame cache: CPU time and bytes per video for two formats and two policies.

    python experiments/benchmarks/prepare.py [--seconds 10] [--videos 6] [--rounds 3] [--total 240000] [--classes 400]

Generated videos (moving shapes with noise, 340 x 256 pixels, 25 frames a second, H.264) are prepared with one job; the
formats alternate. CPU time depends less on what else the machine does than the time on the clock; its median over the
rounds and its range are printed. Real videos differ in size, detail and codec; give some of them with ``--root``.
"""

import argparse
import shutil
import sys
import tempfile
import time
from itertools import cycle, product
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from strm_lightning.data.prepare import prepare
from strm_lightning.messages import format_bytes
from strm_lightning.moving_shapes.motions import ACTIONS
from strm_lightning.moving_shapes.scene import render_clip

NOISE = 8  # standard deviation, of 256 levels


def write_videos(root: Path, videos: int, seconds: float) -> None:
    """Write moving shapes of 340 x 256 pixels, with noise: drawn pictures alone compress too well."""
    for number, action in zip(range(videos), cycle(ACTIONS), strict=False):
        path = root / action / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        clip = render_clip(action, rng, size=340, num_frames=round(25 * seconds))[:, 42:298]
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
            for image in clip:
                noisy = (image + rng.normal(0, NOISE, image.shape)).clip(0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="rgb24")))
            container.mux(stream.encode(None))


def measure(root: str, out: str, kind: Any, policy: Any) -> tuple[float, float]:
    """Return the CPU time and the bytes of a video."""
    start = time.process_time()
    report = prepare(root, out, format=kind, policies=policy, jobs=1)
    return (time.process_time() - start) / report.written, report.size / report.written


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of videos; generated ones by default")
    parser.add_argument("--seconds", type=float, default=10, help="length of the generated videos")
    parser.add_argument("--videos", type=int, default=6, help="number of generated videos")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--total", type=int, default=240_000, help="videos of the large data set")
    parser.add_argument("--classes", type=int, default=400, help="classes of the large data set")
    options = parser.parse_args(arguments)
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = options.root or f"{folder}/videos"
        if options.root is None:
            write_videos(Path(root), options.videos, options.seconds)
        sizes = [path.stat().st_size for path in Path(root).rglob("*") if path.is_file()]
        for number in range(options.rounds):
            for kind, policy in product(("raw", "jpeg"), ("release", "segments")):
                out = f"{folder}/{kind}-{policy}-{number}"
                found.setdefault((kind, policy), []).append(measure(root, out, kind, policy))
                shutil.rmtree(out)
    print(f"a source video has {sum(sizes) / len(sizes) / 1e3:.0f} kB on average\n")
    print(
        f"| format, policy | CPU s a video (range) | videos/s, core | {options.total} videos | bytes a video | in all |"
    )
    print("|---|---|---|---|---|---|")
    for (kind, policy), rounds in found.items():
        times, size = sorted(seconds for seconds, _ in rounds), rounds[0][1]
        each = median(times)
        print(
            f"| `{kind}`, `{policy}` | {each:.2f} ({times[0]:.2f} to {times[-1]:.2f}) | {1 / each:.1f} "
            f"| {each * options.total / 3600:.0f} h on a core | {format_bytes(size)} "
            f"| {format_bytes(size * options.total)} |"
        )
    print(f"\n{options.total // options.classes} files in each of {options.classes} folders, and one manifest")


if __name__ == "__main__":
    main()
