"""Time of imports, of the help of commands and of a first test, against another checkout of the project.

    git worktree add --detach ../before COMMIT
    python experiments/benchmarks/start.py ../before [--rounds 5] [--match fit] [--videos FOLDER]

Each command runs in a new process, alternately with the two checkouts. The first round fills the file cache and is not
counted. The ratio is the median over the rounds of the ratios of CPU times (user and system), which depend less on what
else the machine does than the times on the clock, printed beside them.

With ``--videos``, a folder of videos in class folders, a first `strm test` on it is timed too, without an index of its
frames: with all classes and with a fifth of them in the test split. The backbone is tiny, so decoding dominates.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parents[2]
HELP = ("fit", "classify", "prepare", "doctor", "compare", "plot")
COMMANDS = {
    "import strm_lightning": ["-c", "import strm_lightning"],
    "from strm_lightning import STRM": ["-c", "from strm_lightning import STRM"],
    "from strm_lightning import FewShotClassifier": ["-c", "from strm_lightning import FewShotClassifier"],
    "from strm_lightning import STRMModule": ["-c", "from strm_lightning import STRMModule"],
    "strm --help": ["-m", "strm_lightning", "--help"],
    "strm recipes": ["-m", "strm_lightning", "recipes"],
    **{f"strm {name} --help": ["-m", "strm_lightning", name, "--help"] for name in HELP},
}


def first_tests(videos: Path) -> dict[str, list[str]]:
    """Return the commands of a test on all classes, and on a fifth of them."""
    options = [
        f"--data.root={videos.absolute()}", "--data.way=2", "--data.shot=1", "--data.query_per_class=1",
        "--data.image_size=112", "--data.test_episodes=100", "--data.num_workers=0",
        "--model.backbone=test_resnet", "--model.pretrained=false",
        "--model.match_dim=8", "--trainer.logger=false", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    splits = {"all classes": "{test: 1.0}", "a fifth of the classes": "{train: 0.6, val: 0.2, test: 0.2}"}
    return {
        f"strm test, {name}": ["-m", "strm_lightning", "test", f"--data.split={split}", *options]
        for name, split in splits.items()
    }


def run(checkout: Path, arguments: list[str]) -> tuple[float, float]:
    """Run Python on a checkout; return the CPU time and the time on the clock, in seconds."""
    before, start = _cpu(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:  # without an index of frames, and for the files of a test
        environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "STRM_CACHE": folder}
        subprocess.run([sys.executable, *arguments], env=environment, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return _cpu() - before, time.perf_counter() - start


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--match", default="", help="only commands that contain this text")
    parser.add_argument("--videos", type=Path, help="folder of videos in class folders, for a first `strm test`")
    options = parser.parse_args(arguments)
    commands = COMMANDS | (first_tests(options.videos) if options.videos else {})
    print("| command | CPU s before | CPU s now | clock s before | clock s now | ratio of CPU times |")
    print("|---|---|---|---|---|---|")
    for name, command in commands.items():
        if options.match in name:
            rounds = [
                [run(path.absolute(), command) for path in (options.before, HERE)] for _ in range(options.rounds + 1)
            ]
            times = np.array(rounds[1:])  # round, checkout, kind of time
            ratio = np.median(times[:, 0, 0] / times[:, 1, 0])
            shown = " | ".join(f"{seconds:.2f}" for seconds in np.median(times, 0).T.ravel())
            print(f"| `{name}` | {shown} | {ratio:.2f} x |", flush=True)


if __name__ == "__main__":
    main()
