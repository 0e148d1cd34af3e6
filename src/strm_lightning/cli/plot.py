"""``strm plot``: plots of runs."""

from strm_lightning.errors import InputError
from strm_lightning.evaluation.pictures import METRICS, draw
from strm_lightning.evaluation.results_file import RESULTS


def plot(*runs: str, out: str | None = None) -> None:
    """Plot runs: confusion.png, per-class.png, shots.png and learning-curve.png.

    Several runs share the plots of classes, shots and learning curves.

    Args:
        runs: folders of runs, or results.json and metrics.csv files.
        out: folder to write to; null for the folder of the first run.
    """
    if not runs:
        raise InputError("give the folder of a run, or its results.json or metrics.csv")
    drawn = draw(runs, out)
    if not drawn:
        raise InputError(f"nothing to plot in {' '.join(runs)}: no {RESULTS}, and no loss or accuracy in {METRICS}")
    print(*drawn, sep="\n")
