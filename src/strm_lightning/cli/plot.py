"""``strm plot``: pictures of runs."""

from strm_lightning.errors import InputError
from strm_lightning.evaluation.pictures import METRICS, draw
from strm_lightning.evaluation.report import RESULTS


def plot(*runs: str, out: str | None = None) -> None:
    """Draw pictures of runs: confusion.png, per-class.png, shots.png and learning-curve.png.

    Several runs share the pictures of classes, shots and learning.

    Args:
        runs: folders of runs, or results.json and metrics.csv files.
        out: folder of the pictures; the first run's where not given.
    """
    if not runs:
        raise InputError("give a run's folder, or its results.json or metrics.csv")
    drawn = draw(runs, out)
    if not drawn:
        raise InputError(f"nothing to draw in {' '.join(runs)}: no {RESULTS}, and no loss or accuracy in {METRICS}")
    print(*drawn, sep="\n")
