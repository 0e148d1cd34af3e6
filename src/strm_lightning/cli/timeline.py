"""Picture of the events of a video on its time line."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from strm_lightning.classifier.predictions import WindowPrediction
from strm_lightning.errors import InputError, MissingPackageError
from strm_lightning.fileio import atomic_path, sweep_parts, write_errors

_FORMATS = (".png", ".pdf", ".svg")
_STYLE: dict[str, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def check_timeline(path: str | Path) -> None:
    """Check the name of a picture before anything is computed.

    Raises:
        InputError: the suffix is unknown, or the path is a folder.
        MissingPackageError: matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in _FORMATS or Path(path).is_dir():
        raise InputError(f"--timeline {path}: give a file that ends in {', '.join(_FORMATS)}")
    if find_spec("matplotlib") is None:
        raise MissingPackageError('--timeline needs matplotlib: in a checkout, pip install ".[plots]"')


def draw_timeline(path: str | Path, events: Sequence[WindowPrediction], labels: Sequence[str], duration: float) -> None:
    """Draw a bar for each event, in a row for each class; a darker bar is more probable. It has no pixels of the video.

    Args:
        path: file (.png, .pdf or .svg).
        events: the events.
        labels: the classes, from top to bottom.
        duration: length of the time line in seconds.

    Raises:
        WriteError: the file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 1.1 + 0.28 * len(labels)), dpi=140, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for event in events:
            label, probability = event.prediction.label, event.prediction.probability
            row = labels.index(label)
            axes.barh(
                row, event.end - event.start, 0.7, event.start, color=f"C{row % 10}", alpha=0.3 + 0.7 * probability
            )
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlim(0, duration)
        axes.set_xlabel("seconds")
        axes.grid(axis="x", alpha=0.3)
        with write_errors(path), atomic_path(path) as part:
            figure.savefig(part, format=Path(path).suffix[1:].lower())
    sweep_parts(Path(path).parent)
