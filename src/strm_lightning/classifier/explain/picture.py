"""Figure of an explanation: query and best example, matching frames, patch weights, probabilities and logits."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

from strm_lightning.classifier.explain.explanation import Explanation
from strm_lightning.errors import InputError
from strm_lightning.fileio import atomic_path, sweep_parts, write_errors

_INK, _QUIET, _LINK, _STRONG = "#1f2933", "#7b8794", "#c2410c", "#c2410c"
_TRM, _QC = "#2563a8", "#8fb8de"
_HEAT = LinearSegmentedColormap.from_list(
    "heat", [(0.76, 0.25, 0.05, 0.0), (0.98, 0.45, 0.1, 0.55), (1, 0.85, 0.2, 0.85)]
)
_FORMATS = (".png", ".pdf", ".svg")
_CLASSES = 6  # largest number of bars
_STYLE: dict[str, Any] = {"font.size": 8, "font.family": "DejaVu Sans", "text.color": _INK, "axes.edgecolor": _QUIET}


def draw(explanation: Explanation, path: str | Path | None = None) -> Figure:
    """Draw an explanation.

    Rows from top to bottom: the query overlaid with its patch weights, if there are any; the query; the best example of
    the best class. The width and opacity of a line grow with the weight of a pair of frames in the evidence of the
    matching method. The strongest match is framed. On the right: the probability of each class, and the differences of
    the logits of the matching method and of QC from the best class.

    Args:
        explanation: the explanation.
        path: save the figure to this file (.png, .pdf or .svg).

    Raises:
        InputError: the path has another suffix.
        WriteError: the file cannot be written.
    """
    path = None if path is None else check_name(path)
    evidence = explanation.evidence[explanation.best_class]
    clip = evidence.best_clip
    query = [_image(frame) for frame in explanation.frames]
    example = [_image(frame) for frame in explanation.thumbnails[explanation.best_class][clip]]
    heat = explanation.patch_weights
    rows = 3 if heat is not None else 2
    with mpl.rc_context(_STYLE):
        count = len(query)
        figure = Figure(figsize=(1.0 * count + 3.4, 1.0 * rows + 1.25), dpi=160)
        FigureCanvasAgg(figure)
        left, right, bottom, top = 0.075, 1 - 3.0 / (count + 3.4), 0.13, 0.86
        spec = figure.add_gridspec(
            rows,
            count,
            left=left,
            right=right,
            bottom=bottom,
            top=top,
            wspace=0.04,
            hspace=0.0,
            height_ratios=[1] * (rows - 2) + [1.25, 1.25],
        )
        tops = [figure.add_subplot(spec[rows - 2, i]) for i in range(count)]
        lows = [figure.add_subplot(spec[rows - 1, i]) for i in range(count)]
        for i in range(count):
            _show(tops[i], query[i], anchor="N")
            _show(lows[i], example[i], anchor="S")
            lows[i].set_xlabel(str(i + 1), fontsize=7, color=_QUIET, labelpad=2)
        if heat is not None:
            looks = [figure.add_subplot(spec[0, i]) for i in range(count)]
            for axes, image, weights in zip(looks, query, heat, strict=True):
                _show(axes, image, anchor="S")
                _overlay(axes, image, weights, float(heat.max()))
            _side(looks[0], "where it\nlooked" if explanation.attends else "what\nchanged")
        _side(tops[0], "query")
        _side(lows[0], "best\nexample")
        weights = evidence.frame_weights(clip)
        if weights is not None:
            _links(figure, tops, lows, weights)
        framed = _frame_strongest(explanation, clip, tops, lows)
        _bars(figure, explanation, right + 0.85 / (count + 3.4), bottom, top)
        _title(figure, explanation, left)
        if evidence.main is not None:
            how = f"lines: {evidence.main.kind} of frames" + "; framed: the strongest match" * framed
            figure.text(left, 0.03, how, fontsize=7, color=_QUIET)
        if path is not None:
            _save(figure, path)
    return figure


def _image(frame: UInt8[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.ascontiguousarray(frame.transpose(1, 2, 0))


def _show(axes: Axes, image: UInt8[np.ndarray, "h w 3"], anchor: str) -> None:
    axes.imshow(image, interpolation="lanczos")
    axes.set(xticks=[], yticks=[], anchor=anchor)
    axes.spines[:].set_visible(False)


def _overlay(axes: Axes, image: np.ndarray, weights: Float[np.ndarray, "P P"], high: float) -> None:
    height, width = image.shape[:2]
    axes.images[0].set_data(np.repeat(image.mean(-1, keepdims=True), 3, -1).astype(np.uint8))
    axes.imshow(
        weights,
        cmap=_HEAT,
        vmin=1 / weights.size,
        vmax=high,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="bicubic",
    )


def _side(axes: Axes, text: str) -> None:
    axes.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8, labelpad=5)


def _links(figure: Figure, tops: list[Axes], lows: list[Axes], weights: Float[np.ndarray, "L L"]) -> None:
    """Draw lines between frames, strongest first, until they have three quarters of the total weight."""
    ranked = np.sort(weights.ravel())[::-1]
    enough = int(np.searchsorted(np.cumsum(ranked), 0.75 * ranked.sum()))
    floor = ranked[min(enough, len(ranked) - 1)]
    for i, j in zip(*np.nonzero(weights >= max(floor, 1e-9)), strict=True):
        share = float(weights[i, j] / weights.max())
        line = ConnectionPatch(
            (0.5, 0.0),
            (0.5, 1.0),
            "axes fraction",
            "axes fraction",
            axesA=tops[i],
            axesB=lows[j],
            color=_LINK,
            linewidth=0.3 + 2.0 * share,
            alpha=0.12 + 0.78 * share**2,
            capstyle="round",
        )
        figure.add_artist(line)


def _frame_strongest(explanation: Explanation, clip: int, tops: list[Axes], lows: list[Axes]) -> bool:
    """Frame the strongest match if it is with this clip; return whether it is."""
    main = explanation.evidence[explanation.best_class].main
    if main is None or main.strongest is None or main.strongest[1] != clip:
        return False
    query, _, frames, _ = main.strongest
    for axes in (*(tops[i] for i in query), *(lows[j] for j in frames)):
        axes.add_patch(
            Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=_STRONG, linewidth=2, clip_on=False)
        )
    return True


def _bars(figure: Figure, explanation: Explanation, left: float, bottom: float, top: float) -> None:
    labels = list(explanation.prediction.probabilities)[:_CLASSES]
    middle = (bottom + top) / 2 if explanation.qc is not None else bottom
    upper = figure.add_axes((left, middle + 0.06, 0.985 - left, top - middle - 0.06))
    places = np.arange(len(labels), dtype=float)
    values = [explanation.prediction.probabilities[label] for label in labels]
    upper.barh(places, values, color=[_TRM if i == 0 else "#b8c4ce" for i in range(len(labels))], height=0.62)
    for place, value in zip(places.tolist(), values, strict=True):
        upper.text(value + 0.02, place, f"{value:.2f}", va="center", fontsize=7)
    upper.set(xlim=(0, 1.2), xticks=[])
    upper.set_title("probability", fontsize=8, loc="left", pad=3)
    _label_bars(upper, labels)
    if explanation.qc is None:
        return
    lower = figure.add_axes((left, bottom - 0.02, 0.985 - left, middle - bottom - 0.05))
    best = labels[0]
    trm = np.array([explanation.trm[best] - explanation.trm[label] for label in labels])
    qc = explanation.qc_weight * np.array([explanation.qc[best] - explanation.qc[label] for label in labels])
    lower.barh(
        places - 0.18,
        trm,
        color=_TRM,
        height=0.34,
        label="TRM" if explanation.matching == "trm" else explanation.matching,
    )
    lower.barh(places + 0.18, qc, color=_QC, height=0.34, label=f"QC (x {explanation.qc_weight:g})")
    lower.axvline(0, color=_QUIET, linewidth=0.6)
    lower.tick_params(axis="x", labelsize=6, length=2, color=_QUIET)
    lower.locator_params(axis="x", nbins=4)
    lower.set_title("logit behind the best", fontsize=8, loc="left", pad=3)
    # In the row of the best class, where the bars have length 0.
    lower.legend(fontsize=6, frameon=False, handlelength=1, borderaxespad=0, loc="upper right", ncols=2)
    _label_bars(lower, labels)


def _label_bars(axes: Axes, labels: list[str]) -> None:
    axes.set_yticks(
        range(len(labels)), [label if len(label) < 15 else label[:13] + "…" for label in labels], fontsize=7
    )
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _title(figure: Figure, explanation: Explanation, left: float) -> None:
    prediction = explanation.prediction
    evidence = explanation.evidence[explanation.best_class]
    clip = evidence.best_clip
    figure.text(
        left, 0.955, f"{prediction.label}  {prediction.probability:.2f}", fontsize=12, weight="bold", va="center"
    )
    names = f"{Path(prediction.video).name}, most like {Path(evidence.clips[clip]).name} of {explanation.best_class!r}"
    figure.text(left, 0.9, names, fontsize=8, color=_QUIET, va="center")


def check_name(path: str | Path) -> Path:
    """Return the path of a picture if its suffix is supported.

    Raises:
        InputError: the suffix is not .png, .pdf or .svg.
    """
    if Path(path).suffix.lower() not in _FORMATS:
        raise InputError(f"picture {path}: give a name that ends in .png, .pdf or .svg")
    return Path(path)


def _save(figure: Figure, path: Path) -> None:
    with write_errors(path), atomic_path(path) as part:
        figure.savefig(part, format=path.suffix.lower()[1:])
    sweep_parts(path.parent)
