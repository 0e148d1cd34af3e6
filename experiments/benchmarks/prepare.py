"""Cost of a frame cache: CPU time and bytes per video for two formats and two policies.

    python experiments/benchmarks/prepare.py [--seconds 10] [--videos 4] [--total 240000] [--classes 400]

Generated videos (320 x 240, 25 frames a second, H.264) are prepared with one job. The script also computes the hours on
one core and the disk space for ``--total`` such videos. CPU time depends less on other programs than elapsed time. Your
own videos differ in size and codec: give a folder with some of them as ``--root``.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from strm_lightning.data.prepare import prepare
from strm_lightning.messages import format_bytes


def write_videos(root: Path, videos: int, seconds: float) -> None:
    rng = np.random.default_rng(0)
    for number in range(videos):
        path = root / "a" / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        still = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for step in range(round(25 * seconds)):
                image = np.ascontiguousarray(np.roll(still, 3 * step, 1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of videos; generated ones by default")
    parser.add_argument("--seconds", type=float, default=10, help="length of the generated videos")
    parser.add_argument("--videos", type=int, default=4, help="number of generated videos")
    parser.add_argument("--total", type=int, default=240_000, help="videos of the large data set")
    parser.add_argument("--classes", type=int, default=400, help="classes of the large data set")
    options = parser.parse_args(arguments)
    print(f"| format, policy | CPU time a video | {options.total} videos on one core | bytes a video | in all |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        root = options.root or f"{folder}/videos"
        if options.root is None:
            write_videos(Path(root), options.videos, options.seconds)
        for kind in ("raw", "jpeg"):
            for policy in ("release", "segments"):
                start = time.process_time()
                report = prepare(root, f"{folder}/{kind}-{policy}", format=kind, policies=policy, jobs=1)
                each, size = (x / report.written for x in (time.process_time() - start, report.size))
                print(
                    f"| `{kind}`, `{policy}` | {each:.2f} s | {each * options.total / 3600:.0f} h "
                    f"| {format_bytes(size)} | {format_bytes(size * options.total)} |",
                    flush=True,
                )
    print(f"\n{options.total // options.classes} files in each of {options.classes} folders, and one manifest")


if __name__ == "__main__":
    main()
