"""Figures of what a test found and of how training went; matplotlib is imported where one is drawn."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#2a6f97", "#e07a5f", "#6a994e", "#8d6a9f", "#b08968", "#3d405b")


def confusion_figure(document: Mapping[str, Any]) -> "Figure":
    """Shares of each class's queries (row) that were taken for each class (column)."""
    names, counts = document["confusion"]["classes"], np.array(document["confusion"]["counts"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4.0, 2.2 + 0.36 * len(names))
    figure, axes = _figure(side + 0.8, side)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set(xlabel="taken for", ylabel="is", title=_title(document))
    for row, column in np.ndindex(shares.shape):
        if shares[row, column] >= 0.005:
            colour = "white" if shares[row, column] > 0.55 else "black"
            text = f"{100 * shares[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, fraction=0.046, pad=0.03, label="share of the class's queries")
    return figure


def class_figure(documents: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Accuracy of each class with its 95 % interval, best first."""
    first = next(iter(documents.values()))
    rest = {name for document in documents.values() for name in document["per_class"]}
    names = sorted(rest, key=lambda name: first["per_class"].get(name, {"accuracy": 0.0})["accuracy"])
    figure, axes = _figure(7.0, 1.4 + 0.26 * len(names) * max(1.0, 0.7 * len(documents)))
    height = 0.8 / len(documents)
    for number, (run, document) in enumerate(documents.items()):
        rows = [(place, document["per_class"][n]) for place, n in enumerate(names) if n in document["per_class"]]
        places = [place + 0.4 - height * (number + 0.5) for place, _ in rows]
        rates, errors = ([100 * row[key] for _, row in rows] for key in ("accuracy", "ci95"))
        axes.barh(places, rates, height, xerr=errors, color=_COLOURS[number % 6], label=run, error_kw={"lw": 1})
    axes.axvline(100 / first["way"], color="0.5", ls=":", lw=1)
    axes.text(100 / first["way"], len(names) - 0.45, " chance", color="0.4", fontsize=8, va="bottom")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=(0, 100), ylim=(-0.6, len(names) - 0.4), xlabel="accuracy, %, with 95 % interval")
    axes.set_title(_title(first) if len(documents) == 1 else "", pad=16)
    _legend(axes, len(documents))
    return figure


def shots_figure(documents: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Accuracy over shots, a line for each run and way."""
    figure, axes = _figure(6.0, 4.0)
    lines = 0
    for run, document in documents.items():
        ways = sorted({row["way"] for row in document["sweep"]})
        for way in ways:
            rows = [row for row in document["sweep"] if row["way"] == way]
            x, y, errors = ([scale * row[key] for row in rows] for key, scale in _SHOT_COLUMNS)
            label = " ".join(([run] if len(documents) > 1 else []) + [f"{way}-way"])
            axes.errorbar(x, y, errors, marker="o", ms=5, capsize=3, color=_COLOURS[lines % 6], label=label)
            lines += 1
    shots = sorted({row["shot"] for document in documents.values() for row in document["sweep"]})
    axes.set_xticks(shots)
    axes.set(xlabel="support clips of a class (shot)", ylabel="accuracy, %, with 95 % interval")
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False)
    return figure


_SHOT_COLUMNS = (("shot", 1), ("accuracy", 100), ("ci95", 100))


def learning_figure(runs: Mapping[str, Mapping[str, list[tuple[float, float]]]]) -> "Figure":
    """Loss and accuracy over optimiser steps: training faint and smoothed, validation with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (run, columns) in enumerate(runs.items()):
        colour = _COLOURS[number % 6]
        prefix = f"{run} " if len(runs) > 1 else ""
        for axes, metric, scale in ((left, "loss", 1), (right, "accuracy", 100)):
            if points := columns.get(f"train/{metric}"):
                steps, values = np.array(points).T
                axes.plot(steps, scale * values, color=colour, alpha=0.25, lw=0.8)
                axes.plot(steps, scale * _smooth(values), color=colour, lw=1.3, ls="--", label=f"{prefix}training")
            if points := columns.get(f"val/{metric}"):
                steps, values = np.array(points).T
                interval = dict(columns.get("val/ci95", [])) if metric == "accuracy" else {}
                errors = [scale * interval.get(step, 0.0) for step in steps]
                axes.errorbar(
                    steps,
                    scale * values,
                    errors,
                    color=colour,
                    marker="o",
                    ms=4,
                    capsize=2,
                    label=f"{prefix}validation",
                )
    left.set(xlabel="optimiser steps", ylabel="loss", ylim=(0, None))
    right.set(xlabel="optimiser steps", ylabel="accuracy of episodes, %", ylim=(0, 102))
    for axes in (left, right):
        _clean(axes)
        axes.grid(color="0.92")
        axes.legend(frameon=False, fontsize=8)
    return figure


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _clean(axes)
    return figure, axes


def _clean(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: "Axes", entries: int) -> None:
    if entries > 1:
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=min(entries, 3))


def _title(document: Mapping[str, Any]) -> str:
    rate = f"{document['accuracy']:.1%} ± {document['ci95']:.1%}"
    return f"{document['way']}-way {document['shot']}-shot: {rate} over {document['episodes']:,} episodes"


def _smooth(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """A mean over a window of the last few values, as short as what is there at the start."""
    width = max(1, round(share * len(values)))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
