"""Plots of runs as PNG files: confusion matrix, accuracy per class, accuracy over shots, learning curves."""

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from strm_lightning.errors import InputError, MissingFileError, MissingPackageError
from strm_lightning.evaluation.figures import class_figure, confusion_figure, learning_figure, shots_figure
from strm_lightning.evaluation.results_file import RESULTS, load_results
from strm_lightning.fileio import atomic_path, write_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = "metrics.csv"


def draw(runs: Sequence[str | Path], out: str | Path | None = None) -> list[Path]:
    """Draw confusion.png, per-class.png, shots.png and learning-curve.png from the files of runs.

    Several runs share the plots of classes, shots and learning curves.

    Args:
        runs: folders of runs, or results.json and metrics.csv files.
        out: folder to write to; None for the folder of the first run.

    Returns:
        The written files; empty if a fit has logged neither loss nor accuracy.

    Raises:
        MissingFileError: a run has neither file.
        InputError: a file is not a results.json or metrics.csv of this package.
        WriteError: a plot cannot be written.
        MissingPackageError: matplotlib is not installed.
    """
    if not find_spec("matplotlib"):
        raise MissingPackageError('plots need matplotlib: in a checkout, run pip install ".[plots]"')
    paths = [path for run in runs for path in _sources(Path(run))]
    results = {_name(p, paths): load_results(p) for p in paths if p.suffix == ".json"}
    metrics = {_name(p, paths): p for p in paths if p.suffix == ".csv"}
    figures: dict[str, Figure] = {}
    for name, document in results.items():
        figures["confusion" if len(results) == 1 else f"confusion-{_slug(name)}"] = confusion_figure(document)
    if results:
        figures["per-class"] = class_figure(results)
    if sweeps := {name: document for name, document in results.items() if len(document["sweep"]) > 1}:
        figures["shots"] = shots_figure(sweeps)
    if curves := {name: rows for name, path in metrics.items() if (rows := _read_metrics(path))}:
        figures["learning-curve"] = learning_figure(curves)
    return save_figures(figures, Path(out) if out else paths[0].parent)


def log_pictures(loggers: Iterable[Any], folder: Path, step: int) -> None:
    """Log the plots of a run to its loggers that take images (`image_functions`), if matplotlib is installed.

    Args:
        loggers: loggers of the trainer.
        folder: folder of the run.
        step: optimiser step of the tested weights.
    """
    functions = image_functions(loggers)
    if functions and find_spec("matplotlib"):
        for path in draw([folder]):
            for log in functions:
                log(f"test/{path.stem}", path, step)


def image_functions(loggers: Iterable[Any]) -> list[Callable[[str, Path, int], None]]:
    """Return a function of key, path and step for each logger that takes images.

    These are loggers with a method ``log_image(key, images)``, such as ``WandbLogger``, which gets the path of the
    picture in a list (and ``step`` if the method has it), and loggers whose experiment has ``add_image``, such as
    ``TensorBoardLogger``.
    """
    return [log for logger in loggers if (log := _log_function(logger)) is not None]


def _log_function(logger: Any) -> Callable[[str, Path, int], None] | None:
    # Ask the classes: Lightning's DummyLogger and DummyExperiment (fast_dev_run) answer to every attribute.
    if hasattr(type(logger), "log_image"):
        has_step = "step" in signature(logger.log_image).parameters
        return lambda key, path, step: logger.log_image(key, [str(path)], **({"step": step} if has_step else {}))
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(type(experiment), "add_image"):
        return lambda key, path, step: experiment.add_image(key, _pixels(path), step, dataformats="HWC")
    return None


def _pixels(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _read_metrics(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Read (step, value) pairs of the metrics that `learning_figure` draws, by name, from a file of CSVLogger."""
    columns: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name.startswith(("train/", "val/")) and not name.endswith("_epoch"):
                        columns.setdefault(name.removesuffix("_step"), []).append((float(row["step"]), float(value)))
    except (ValueError, KeyError, AttributeError, csv.Error):
        raise InputError(f"{path} is not a metrics.csv of `strm fit`") from None
    return columns


def save_figures(figures: "Mapping[str, Figure]", folder: Path) -> list[Path]:
    """Save figures as PNG files ``<name>.png`` and return their paths.

    Raises:
        WriteError: a file cannot be written.
    """
    paths = {folder / f"{name}.png": figure for name, figure in figures.items()}
    for path, figure in paths.items():
        with write_errors(path), atomic_path(path) as part:
            figure.savefig(part, dpi=150, format="png")
    return list(paths)


def _sources(run: Path) -> list[Path]:
    found = [run / name for name in (RESULTS, METRICS) if (run / name).is_file()] if run.is_dir() else [run]
    if not found or not found[0].is_file() or found[0].suffix not in (".json", ".csv"):
        raise MissingFileError(f"nothing to plot in {run}: no {RESULTS} of a test, no {METRICS} of a fit")
    return found


def _name(path: Path, paths: Sequence[Path]) -> str:
    """Return the name of a file, or of its run folder, with as many parent folders as make it unique."""
    same = [other for other in paths if other.suffix == path.suffix]
    parts = path.with_suffix("").parts if path.name not in (RESULTS, METRICS) else path.parent.resolve().parts
    others = [
        (o.with_suffix("").parts if o.name not in (RESULTS, METRICS) else o.parent.resolve().parts)
        for o in same
        if o != path
    ]
    depth = next((n for n in range(1, len(parts)) if all(parts[-n:] != o[-n:] for o in others)), len(parts))
    return "/".join(parts[-depth:])


def _slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name)
