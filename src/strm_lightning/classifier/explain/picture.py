"""Figure of an explanation: evidence for the answer, the query and best example, matching frames, probabilities."""

from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten, wrap
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

_HEAT = LinearSegmentedColormap.from_list(
    "heat", [(0.98, 0.45, 0.1, 0.0), (0.98, 0.45, 0.1, 0.55), (1, 0.85, 0.2, 0.9)]
)
_FORMATS = (".png", ".pdf", ".svg")
_CLASSES = 6  # largest number of bars
# Sizes in inches.
_WIDTH = 9.0
_NARROW = 6.5  # below this width, the bars are under the frames instead of beside them
_BARS = 2.9
_MARGIN, _LINE, _GAP, _ROW = 0.1, 0.17, 0.55, 0.22
_CHARACTER = 0.075  # mean width of a character


@dataclass(frozen=True)
class _Colours:
    ink: str
    quiet: str
    paper: str
    link: str
    first: str
    second: str
    other: str


_LIGHT = _Colours("#1f2933", "#5f6c7a", "#ffffff", "#c2410c", "#2563a8", "#8fb8de", "#b8c4ce")
_DARK = _Colours("#eef2f6", "#a3b0bd", "#18181b", "#ff8a4c", "#5b9bd5", "#335a80", "#56616c")


def draw(
    explanation: Explanation,
    path: str | Path | None = None,
    *,
    width: float = _WIDTH,
    dark: bool = False,
    sentences: bool = True,
) -> Figure:
    """Draw an explanation.

    Rows from top to bottom: the query in grey, with heat on the patches that support the best class (see
    `Explanation.patch_importance`); the query; the best example of the best class. The width and opacity of a line grow
    with the weight of a pair of frames in the evidence of the matching method. The strongest match is framed. On the
    right, or in a narrow figure below: the probability of each class, and with QC the differences of the logits of the
    matching method and of QC from the best class.

    Args:
        explanation: the explanation.
        path: save the figure to this file (.png, .pdf or .svg).
        width: width of the figure in inches.
        dark: light text on a dark background.
        sentences: put the sentences of `Explanation.sentences` above the pictures.

    Raises:
        InputError: the path has another suffix.
        WriteError: the file cannot be written.
    """
    path = None if path is None else check_name(path)
    colours = _DARK if dark else _LIGHT
    style: dict[str, Any] = {
        "font.size": 9,
        "font.family": "DejaVu Sans",
        "text.color": colours.ink,
        "axes.edgecolor": colours.quiet,
        "axes.facecolor": colours.paper,
        "axes.labelcolor": colours.ink,
        "axes.titlecolor": colours.ink,
        "xtick.color": colours.quiet,
        "ytick.color": colours.ink,
        "figure.facecolor": colours.paper,
        "savefig.facecolor": colours.paper,
    }
    with mpl.rc_context(style):
        figure = _Drawing(explanation, colours, width, sentences=sentences).figure
        if path is not None:
            _save(figure, path)
    return figure


class _Drawing:
    """Draws a figure from top to bottom; positions are in inches from the top left corner."""

    def __init__(self, explanation: Explanation, colours: _Colours, width: float, *, sentences: bool) -> None:
        self.explanation, self.colours, self.width = explanation, colours, width
        self.evidence = explanation.evidence[explanation.best_class]
        self.clip = self.evidence.best_clip
        beside = width >= _NARROW
        self.columns = width - 2 * _MARGIN - (_BARS + 0.3 if beside else 0)
        self.side = self.columns / len(explanation.frames)  # of a frame
        head = self._wrapped(explanation.sentences(), width) if sentences else []
        rows, linked = self._rows(), self.evidence.main is not None
        start = len(head) * _LINE + (0.3 if sentences else 0.12)
        tall = start - 0.05 + len(rows) * (self.side + _LINE + 0.06) + (_GAP if linked else 0.05) + _ROW
        bars = self._bars_height()
        self.height = tall + 0.1 + (0 if beside else bars + 0.15)
        if beside:
            self.height = max(self.height, start + 0.05 + bars)
        self.figure = Figure(figsize=(width, self.height), dpi=160)
        FigureCanvasAgg(self.figure)
        for number, line in enumerate(head):
            self._text(_MARGIN, 0.14 + number * _LINE, line, weight="bold" if number == 0 else "normal")
        below = self._frames(start, rows, linked)
        left = width - _MARGIN - _BARS if beside else _MARGIN
        self._bars(left, start if beside else below + 0.1, _BARS if beside else width - 2 * _MARGIN)

    def _wrapped(self, lines: list[str], width: float) -> list[str]:
        most = int((width - 2 * _MARGIN) / _CHARACTER)
        title = shorten(f"{Path(self.explanation.prediction.video).name}: {lines[0]}", most - 4, placeholder=" …")
        return [title, *(part for line in lines[1:] for part in wrap(line, most))]

    def _rows(self) -> list[tuple[str, Any]]:
        explanation = self.explanation
        example = f"best example: {Path(self.evidence.clips[self.clip]).name}"
        found = [("video", explanation.frames), (example, explanation.thumbnails[explanation.best_class][self.clip])]
        if explanation.patch_importance.max() > 0:
            found.insert(0, (f"evidence for {explanation.best_class!r}", explanation.frames))
        return found

    def _frames(self, y: float, rows: list[tuple[str, Any]], linked: bool) -> float:
        axes: list[list[Axes]] = []
        most = int(self.columns / _CHARACTER)
        for number, (name, frames) in enumerate(rows):
            last = number == len(rows) - 1
            if last:
                y += _GAP - _LINE if linked else 0.05
            if not last or not linked:
                self._text(_MARGIN, y, shorten(name, most, placeholder=" …"), color=self.colours.quiet)
                y += _LINE - 0.06
            axes.append([self._image(_MARGIN + i * self.side, y, frame) for i, frame in enumerate(frames)])
            y += self.side + (0.06 if last else _LINE)
            if last and linked:  # lines come from above, so the name is below
                self._text(_MARGIN, y + 0.06, shorten(name, most, placeholder=" …"), color=self.colours.quiet)
                y += _LINE
        tops, lows = axes[-2], axes[-1]
        if len(axes) == 3:
            self._heat(axes[0])
        weights = self.evidence.frame_weights(self.clip)
        if weights is not None:
            self._links(tops, lows, weights)
        framed = self._frame_strongest(tops, lows)
        if self.evidence.main is not None:
            how = f"lines: {self.evidence.main.kind} of frames" + "; framed: the strongest match" * framed
            self._text(_MARGIN, y + 0.06, how, color=self.colours.quiet)
            y += _LINE
        return y

    def _axes(self, x: float, y: float, width: float, height: float) -> Axes:
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def _text(self, x: float, y: float, text: str, **options: Any) -> None:
        self.figure.text(x / self.width, 1 - y / self.height, text, va="center", **options)

    def _image(self, x: float, y: float, frame: UInt8[np.ndarray, "3 h w"]) -> Axes:
        axes = self._axes(x, y, self.side * 0.96, self.side * 0.96)
        axes.imshow(np.ascontiguousarray(frame.transpose(1, 2, 0)), interpolation="lanczos")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes

    def _heat(self, row: list[Axes]) -> None:
        importance = self.explanation.patch_importance.clip(0)
        for number, (axes, image) in enumerate(zip(row, self.explanation.frames, strict=True)):
            patches = importance[number * len(importance) // len(row)]
            height, width = image.shape[1:]
            grey = image.mean(0).astype(np.uint8)
            axes.images[0].set_data(np.repeat(grey[..., None], 3, -1))
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            high = float(importance.max())
            axes.imshow(patches, cmap=_HEAT, vmin=0, vmax=high, extent=extent, interpolation="bicubic")

    def _links(self, tops: list[Axes], lows: list[Axes], weights: Float[np.ndarray, "L L"]) -> None:
        """Draw lines between frames, strongest first, until they have three quarters of the total weight."""
        ranked = np.sort(weights.ravel())[::-1]
        enough = int(np.searchsorted(np.cumsum(ranked), 0.75 * ranked.sum()))
        floor = ranked[min(enough, len(ranked) - 1)]
        for i, j in np.argwhere(weights >= max(floor, 1e-9)).tolist():
            share = float(weights[i, j] / weights.max())
            line = ConnectionPatch(
                (0.5, 0.0),
                (0.5, 1.0),
                "axes fraction",
                "axes fraction",
                axesA=tops[_frame_of(i, len(weights), len(tops))],
                axesB=lows[_frame_of(j, len(weights), len(lows))],
                color=self.colours.link,
                linewidth=0.3 + 2.0 * share,
                alpha=0.12 + 0.78 * share**2,
                capstyle="round",
            )
            self.figure.add_artist(line)

    def _frame_strongest(self, tops: list[Axes], lows: list[Axes]) -> bool:
        """Frame the strongest match if it is with the shown example; return whether it is."""
        main = self.evidence.main
        if main is None or main.strongest is None or main.strongest[1] != self.clip:
            return False
        query, _, frames, _ = main.strongest
        steps = main.weights.shape[-1]
        for axes in (
            *(tops[_frame_of(i, steps, len(tops))] for i in query),
            *(lows[_frame_of(j, steps, len(lows))] for j in frames),
        ):
            box = Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, clip_on=False)
            box.set(edgecolor=self.colours.link, linewidth=2)
            axes.add_patch(box)
        return True

    def _labels(self) -> list[str]:
        return list(self.explanation.prediction.probabilities)[:_CLASSES]

    def _bars_height(self) -> float:
        one = 0.3 + _ROW * len(self._labels())
        return one if self.explanation.qc is None else 2 * one + 0.45

    def _bars(self, x: float, y: float, width: float) -> None:
        explanation, labels = self.explanation, self._labels()
        names = [label if len(label) < 19 else f"{label[:17]}…" for label in labels]
        name_width = min(0.42 * width, 0.1 + _CHARACTER * max(map(len, names)))
        box = (x + name_width, y + 0.2, width - name_width, _ROW * len(labels))
        upper, places = self._axes(*box), np.arange(len(labels), dtype=float)
        values = [explanation.prediction.probabilities[label] for label in labels]
        colours = [self.colours.first, *[self.colours.other] * (len(labels) - 1)]
        upper.barh(places, values, color=colours, height=0.7)
        for place, value in zip(places.tolist(), values, strict=True):
            upper.text(value + 0.02, place, f"{value:.2f}", va="center", fontsize=8)
        upper.set(xlim=(0, 1.2), xticks=[])
        upper.set_title("probability", fontsize=9, loc="left", pad=3)
        _label_bars(upper, names)
        if explanation.qc is None:
            return
        lower = self._axes(box[0], box[1] + box[3] + 0.35, box[2], box[3])
        best = labels[0]
        trm = np.array([explanation.trm[best] - explanation.trm[label] for label in labels])
        qc = explanation.qc_weight * np.array([explanation.qc[best] - explanation.qc[label] for label in labels])
        method = "TRM" if explanation.matching == "trm" else explanation.matching
        lower.barh(places - 0.18, trm, color=self.colours.first, height=0.34, label=method)
        name = f"QC (x {explanation.qc_weight:g})"
        lower.barh(places + 0.18, qc, color=self.colours.second, height=0.34, label=name)
        lower.axvline(0, color=self.colours.quiet, linewidth=0.6)
        lower.tick_params(axis="x", labelsize=8, length=2)
        lower.locator_params(axis="x", nbins=4)
        lower.set_title("logits below the best", fontsize=9, loc="left", pad=3)
        # In the row of the best class, where the bars have length 0.
        lower.legend(fontsize=7.5, frameon=False, handlelength=1, borderaxespad=0, loc="upper right", ncols=2)
        _label_bars(lower, names)


def _frame_of(step: int, steps: int, frames: int) -> int:
    """The middle frame of a time step; with a video backbone there are fewer steps than frames."""
    return (2 * step + 1) * frames // (2 * steps)


def _label_bars(axes: Axes, labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)


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
