"""Time to import the package and to print the help of commands, against another checkout of the project.

    git worktree add --detach ../before COMMIT
    python experiments/benchmarks/start.py ../before [--rounds 5] [--match fit]

Each command runs in a new process, alternately with the two checkouts. The first round fills the file cache and is not
counted. The ratio is the median over the rounds of the ratios of CPU times (user and system), which depend less on what
else the machine does than the times on the clock, printed beside them.
"""

import argparse
import os
import resource
import subprocess
import sys
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


def run(checkout: Path, arguments: list[str]) -> tuple[float, float]:
    """Run Python on a checkout; return the CPU time and the time on the clock, in seconds."""
    before, start = _cpu(), time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    subprocess.run([sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, check=True)
    return _cpu() - before, time.perf_counter() - start


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--match", default="", help="only commands that contain this text")
    options = parser.parse_args(arguments)
    print("| command | CPU s before | CPU s now | clock s before | clock s now | ratio of CPU times |")
    print("|---|---|---|---|---|---|")
    for name, command in COMMANDS.items():
        if options.match in name:
            rounds = [[run(path, command) for path in (options.before, HERE)] for _ in range(options.rounds + 1)]
            times = np.array(rounds[1:])  # round, checkout, kind of time
            ratio = np.median(times[:, 0, 0] / times[:, 1, 0])
            shown = " | ".join(f"{seconds:.2f}" for seconds in np.median(times, 0).T.ravel())
            print(f"| `{name}` | {shown} | {ratio:.2f} x |", flush=True)


if __name__ == "__main__":
    main()
