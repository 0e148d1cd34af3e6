"""Matplotlib figures of test results and learning curves. Matplotlib is imported on first use."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#2a6f97", "#e07a5f", "#6a994e", "#8d6a9f", "#b08968", "#3d405b")
_SMALL, _LONG = 9, 16  # font size of labels; letters of a long class name


def confusion_figure(document: Mapping[str, Any]) -> "Figure":
    """Draw the confusion matrix: percentage of each true class's queries (row) by predicted class (column).

    Long class names are replaced by numbers at the columns.
    """
    names, counts = document["confusion"]["classes"], np.array(document["confusion"]["counts"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    long = max(map(len, names)) > _LONG
    cells = max(2.6, 0.3 * len(names))
    figure, axes = _figure(cells + 1.6 + _text_width(names), cells + (0.9 if long else 0.7 + 0.7 * _text_width(names)))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if long:
        axes.set_xticks(range(len(names)), [str(number) for number in range(1, len(names) + 1)])
        axes.set_yticks(range(len(names)), [f"{name}  {number}" for number, name in enumerate(names, 1)])
    else:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=_SMALL)
    axes.set(xlabel="predicted class", ylabel="true class")
    for row, column in np.ndindex(shares.shape):
        if shares[row, column] >= 0.005:
            colour = "white" if shares[row, column] > 0.55 else "black"
            text = f"{100 * shares[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    bar = figure.colorbar(image, fraction=0.046, pad=0.03, format=lambda share, _: f"{100 * share:.0f} %")
    bar.set_label("share of the queries of a class", fontsize=_SMALL)
    bar.ax.tick_params(labelsize=_SMALL)
    figure.suptitle(_title(document), fontsize=10)
    return _enlarge(figure)


def class_figure(documents: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Draw the accuracy of each class with its 95 % interval, best first."""
    first = next(iter(documents.values()))
    rest = {name for document in documents.values() for name in document["per_class"]}
    names = sorted(rest, key=lambda name: first["per_class"].get(name, {"accuracy": 0.0})["accuracy"])
    height = 1.3 + 0.24 * len(names) * max(1.0, 0.6 * len(documents)) + _legend_height(documents)
    figure, axes = _figure(4.6 + _text_width(names), height)
    height = 0.8 / len(documents)
    for number, (run, document) in enumerate(documents.items()):
        rows = [(place, document["per_class"][n]) for place, n in enumerate(names) if n in document["per_class"]]
        places = [place + 0.4 - height * (number + 0.5) for place, _ in rows]
        rates, errors = ([100 * row[key] for _, row in rows] for key in ("accuracy", "ci95"))
        axes.barh(places, rates, height, xerr=errors, color=_colour(number), label=run, error_kw={"lw": 1})
    axes.axvline(100 / first["way"], color="0.5", ls=":", lw=1)
    axes.text(100 / first["way"], len(names) - 0.45, " chance", color="0.4", fontsize=8, va="bottom")
    axes.set_yticks(range(len(names)), names, fontsize=_SMALL)
    axes.set(xlim=(0, 100), ylim=(-0.6, len(names) - 0.4), xlabel="accuracy, %, with 95 % interval")
    if len(documents) == 1:
        figure.suptitle(_title(first), fontsize=10)
    _legend(figure, axes, documents)
    return _enlarge(figure)


def shots_figure(documents: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Draw accuracy over shots: a colour for each run, a line style for each way."""
    ways = sorted({row["way"] for document in documents.values() for row in document["sweep"]})
    lines = [(run, way) for run in documents for way in ways]
    labels = {(run, way): f"{run}, {way}-way" if len(documents) > 1 else f"{way}-way" for run, way in lines}
    figure, axes = _figure(6.0, 3.8 + _legend_height(lines))
    for run, way in lines:
        if rows := [row for row in documents[run]["sweep"] if row["way"] == way]:
            x, y, errors = ([scale * row[key] for row in rows] for key, scale in _SHOT_COLUMNS)
            number = [*documents].index(run) if len(documents) > 1 else ways.index(way)
            style: dict[str, Any] = {"ls": _DASHES[ways.index(way) % 4], "color": _colour(number)}
            axes.errorbar(x, y, errors, marker="o", ms=5, capsize=3, label=labels[run, way], **style)
    axes.set_xticks(sorted({row["shot"] for document in documents.values() for row in document["sweep"]}))
    axes.set(xlabel="support clips of a class (shot)", ylabel="accuracy, %, with 95 % interval")
    axes.grid(axis="y", color="0.9")
    _legend(figure, axes, list(labels.values()), always=True)
    return _enlarge(figure)


_SHOT_COLUMNS = (("shot", 1), ("accuracy", 100), ("ci95", 100))
_DASHES = ("-", "--", ":", "-.")


def learning_figure(runs: Mapping[str, Mapping[str, list[tuple[float, float]]]]) -> "Figure":
    """Draw loss and accuracy over optimiser steps: training raw and smoothed, validation with its 95 % interval."""
    from matplotlib.figure import Figure

    labels = [label for run in runs for label in _curve_labels(run, len(runs) > 1)]
    figure = Figure(figsize=(9, 3.4 + _legend_height(labels)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (run, columns) in enumerate(runs.items()):
        labelled = _curve_labels(run, len(runs) > 1)
        for axes, metric, scale in ((left, "loss", 1), (right, "accuracy", 100)):
            _draw_curve(axes, columns, metric, scale, _colour(number), labelled)
    left.set(xlabel="optimiser steps", ylabel="loss", ylim=(0, 1.05 * left.get_ylim()[1]))
    right.set(xlabel="optimiser steps", ylabel="accuracy of episodes, %", ylim=(0, 102))
    for axes in (left, right):
        _clean(axes)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="0.92")
    _legend(figure, right, labels, always=True)
    return _enlarge(figure)


def _curve_labels(run: str, several: bool) -> tuple[str, str]:
    return (f"{run}, training", f"{run}, validation") if several else ("training", "validation")


def _draw_curve(
    axes: "Axes",
    columns: Mapping[str, list[tuple[float, float]]],
    metric: str,
    scale: int,
    colour: str,
    labels: tuple[str, str],
) -> None:
    if points := columns.get(f"train/{metric}"):
        steps, values = np.array(points).T
        axes.plot(steps, scale * values, color=colour, alpha=0.25, lw=0.8)
        axes.plot(steps, scale * _smooth(values), color=colour, lw=1.3, ls="--", label=labels[0])
    if points := columns.get(f"val/{metric}"):
        steps, values = np.array(points).T
        interval = dict(columns.get("val/ci95", [])) if metric == "accuracy" else {}
        errors = [scale * interval.get(step, 0.0) for step in steps]
        axes.errorbar(steps, scale * values, errors, color=colour, marker="o", ms=4, capsize=2, label=labels[1])


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _clean(axes)
    return figure, axes


def _enlarge(figure: "Figure") -> "Figure":
    """Enlarge a figure until all text is inside the page; the initial size is an estimate."""
    for _ in range(4):  # the layout engine moves the axes after each change of size
        figure.draw_without_rendering()
        drawn, page = figure.get_tightbbox(), figure.bbox_inches
        wider = max(0.0, -drawn.x0) + max(0.0, drawn.x1 - page.x1)
        higher = max(0.0, -drawn.y0) + max(0.0, drawn.y1 - page.y1)
        if max(wider, higher) == 0.0:
            break
        figure.set_size_inches(page.width + 1.2 * wider, page.height + 1.2 * higher)
    return figure


def _clean(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _text_width(names: Sequence[str]) -> float:
    """Return the width of the longest name in inches."""
    from matplotlib.textpath import TextPath

    return max(0.1, *(TextPath((0, 0), name, size=_SMALL).get_extents().width / 72 for name in names))


def _columns(entries: Collection[str]) -> int:
    return max(1, min(len(entries), 90 // (8 + max(map(len, entries)))))


def _legend_height(entries: Collection[Any]) -> float:
    """Return the height of the legend below the axes in inches."""
    texts = [str(entry) for entry in entries]
    return 0.22 * -(-len(texts) // _columns(texts)) if len(texts) > 1 else 0.0


def _legend(figure: "Figure", axes: "Axes", entries: Collection[str], *, always: bool = False) -> None:
    """Add a legend below the axes."""
    if always or len(entries) > 1:
        handles, labels = axes.get_legend_handles_labels()
        where: dict[str, Any] = {"loc": "outside lower center", "ncols": _columns(entries)}
        figure.legend(handles, labels, frameon=False, fontsize=_SMALL, **where)


def _title(document: Mapping[str, Any]) -> str:
    rate = f"{document['accuracy']:.1%} ± {document['ci95']:.1%}"
    return f"{document['way']}-way {document['shot']}-shot: {rate} over {document['episodes']:,} episodes"


def _smooth(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Compute the mean over a window of the last values; the window is shorter at the start."""
    width = max(1, round(share * len(values)))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
