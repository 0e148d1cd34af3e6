"""Draw the pictures of docs/method.md from a trained model and an episode of moving shapes.

    python docs/draw_method.py [--ckpt best.ckpt] [--episode 0] [--out docs/images/method]

Without ``--ckpt``, the quickstart is trained first (``strm fit --config quickstart``). Any checkpoint of matching
``trm`` with PLE, FLE and QC will do. The pictures show the first query that the model classifies correctly.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from torch import Tensor

from strm_lightning import Episode, EpisodeDataModule, STRMModule
from strm_lightning.data.loaders import EpisodeDataset
from strm_lightning.fileio import atomic_path

OUT = Path(__file__).parent / "images" / "method"
INK, QUIET, ACCENT, BLUE = "#1f2933", "#7b8794", "#c2410c", "#2563a8"
STYLE: dict[str, Any] = {"font.size": 8, "text.color": INK, "axes.edgecolor": QUIET, "axes.labelcolor": INK}


class Example:
    """An episode, a query that the model classifies correctly if there is one, and everything that is drawn of it."""

    def __init__(self, module: STRMModule, data: EpisodeDataModule, index: int) -> None:
        data.prepare_data()
        data.setup("test")
        self.episode: Episode = EpisodeDataset(data.generator("test"), data.reader("test"))[index]
        names = data.videos["test"].class_names
        self.labels = [names[i] for i in self.episode.class_ids.tolist()]
        self.model = module.eval().model
        head = self.model.head
        if head.ple is None or head.qc is None or head.matching_name != "trm":
            raise SystemExit("the model needs matching trm with PLE, FLE and QC")
        with torch.no_grad():
            support, query = (self.model.pool(clips) for clips in (self.episode.support, self.episode.query))
            features = [head.enrich_pooled(maps) for maps in (support, query)]
            self.logits = self.model.match(*features)
            predicted = self.logits.combined(module.qc_weight).argmax(-1)
            right = (predicted == self.episode.query_labels).nonzero().flatten().tolist()
            self.query = right[0] if right else 0
            self.label = int(self.episode.query_labels[self.query])
            encoded_support, encoded_query = (head.encode(part) for part in features)
            one = {name: tensor[self.query] for name, tensor in encoded_query.items()}
            self.evidence = head.explain(encoded_support, one, self.label)
            self.patches = head.project(query.grid[self.query])
            self.attention = head.ple.attention(self.patches)  # [L, PP, PP]
            self.patch_weights = head.patch_weights(query[self.query])  # [L, P, P]
        self.mixing = self._mixing(features[1].patch_level[self.query])

    def _mixing(self, frames: Tensor) -> Tensor:
        """Norm of the derivative of each frame of E (row) with respect to each frame of H (column), ``[L, L]``."""
        with torch.no_grad():
            derivative = torch.autograd.functional.jacobian(self.model.head.fle, frames)  # [L, D, L, D]
        return derivative.square().sum((1, 3)).sqrt()

    @property
    def frames(self) -> np.ndarray:
        """Frames of the query, ``[L, H, W, 3]``."""
        return images(self.episode.query[self.query])


def images(clip: Tensor) -> np.ndarray:
    """Convert ``[L, 3, H, W]`` to ``[L, H, W, 3]``."""
    return clip.permute(0, 2, 3, 1).numpy()


def figure(width: float, height: float) -> Figure:
    """Return an empty figure."""
    made = Figure(figsize=(width, height), dpi=120)
    FigureCanvasAgg(made)
    return made


def strip(made: Figure, spec: Any, row: int, frames: np.ndarray, name: str) -> list[Any]:
    """Draw the frames of a clip as a row of a grid."""
    row_axes = []
    for i, image in enumerate(frames):
        axes = made.add_subplot(spec[row, i])
        axes.imshow(image)
        axes.set_xticks([])
        axes.set_yticks([])
        row_axes.append(axes)
    row_axes[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6)
    return row_axes


def draw_episode(example: Example) -> Figure:
    """The support clips of each class and the query."""
    support, way, steps = example.episode.support, len(example.labels), len(example.frames)
    made = figure(0.75 * steps + 1.6, 0.75 * (way + 1) + 0.5)
    spec = made.add_gridspec(way + 1, steps, left=0.2, right=0.99, bottom=0.02, top=0.93, wspace=0.05, hspace=0.12)
    for row, label in enumerate(example.labels):
        strip(made, spec, row, images(support[row, 0]), label)
    query = strip(made, spec, way, example.frames, "query\n(which class?)")
    for axes in query:
        for spine in axes.spines.values():
            spine.set(color=ACCENT, linewidth=1.5)
    shot = support.shape[1]
    made.text(0.2, 0.955, f"support: {way} classes (way), {shot} clip{'s' * (shot > 1)} each (shot)", color=QUIET)
    return made


def draw_ple(example: Example) -> Figure:
    """Frames of the query, and how much attention each patch gets."""
    steps = len(example.frames)
    made = figure(0.9 * steps + 1.4, 2.8)
    spec = made.add_gridspec(2, steps, left=0.13, right=0.99, bottom=0.25, top=0.98, wspace=0.05, hspace=0.08)
    strip(made, spec, 0, example.frames, "query")
    weights = example.patch_weights.numpy()
    uniform = 1 / weights[0].size
    for i, grid in enumerate(weights):
        axes = made.add_subplot(spec[1, i])
        shown = axes.imshow(grid / uniform, cmap="Oranges", vmin=0, vmax=weights.max() / uniform)
        axes.set(xticks=[], yticks=[], xlabel=str(i + 1))
        if i == 0:
            axes.set_ylabel("attention\nto a patch", rotation=0, ha="right", va="center", labelpad=6)
    bar = made.colorbar(shown, cax=made.add_axes((0.42, 0.13, 0.3, 0.03)), orientation="horizontal")
    bar.set_label("times the attention to an average patch", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    return made


def draw_fle(example: Example) -> Figure:
    """Influence of each frame of H on each frame of E."""
    made = figure(3.6, 3.0)
    axes = made.add_axes((0.16, 0.16, 0.62, 0.74))
    mixing = example.mixing.numpy()
    mixing = mixing / mixing.sum(1, keepdims=True)
    shown = axes.imshow(mixing, cmap="Blues", vmin=0)
    ticks = range(len(mixing))
    axes.set(xlabel="frame of H (before)", ylabel="frame of E (after)")
    axes.set_xticks(ticks, [str(i + 1) for i in ticks])
    axes.set_yticks(ticks, [str(i + 1) for i in ticks])
    bar = made.colorbar(shown, cax=made.add_axes((0.82, 0.16, 0.04, 0.74)))
    bar.set_label("share of the influence", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    return made


def draw_matching(example: Example, name: str, logits: Tensor) -> Figure:
    """Query and best support clip of its class, joined by the strongest frame pairs; distance to each class."""
    evidence, steps = example.evidence[name], len(example.frames)
    clip = int(evidence.clip_scores.argmax())
    weights = evidence.weights[clip].numpy()
    made = figure(0.85 * steps + 3.4, 3.0)
    right = 1 - 2.6 / (0.85 * steps + 3.4)
    spec = made.add_gridspec(2, steps, left=0.09, right=right, bottom=0.06, top=0.94, wspace=0.06, hspace=0.55)
    tops = strip(made, spec, 0, example.frames, "query")
    lows = strip(made, spec, 1, images(example.episode.support[example.label, clip]), "support")
    for i, j in zip(*np.unravel_index(np.argsort(weights, axis=None)[-2 * steps :], weights.shape), strict=True):
        strength = float(weights[i, j] / weights.max())
        made.add_artist(
            ConnectionPatch(
                (0.5, 0.0), (0.5, 1.0), "axes fraction", "axes fraction", axesA=tops[i], axesB=lows[j], color=ACCENT,
                linewidth=0.4 + 2.2 * strength, alpha=0.15 + 0.8 * strength,
            )
        )  # fmt: skip
    axes = made.add_axes((right + 0.13, 0.16, 0.98 - right - 0.13, 0.78))
    values = -logits[example.query].numpy()
    colours = [BLUE if i == example.label else "#b8c4d0" for i in range(len(values))]
    axes.barh(range(len(values)), values, color=colours)
    axes.set_yticks(range(len(values)), example.labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("distance to the class", fontsize=7)
    axes.tick_params(axis="x", labelsize=6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return made


def draw(module: STRMModule, data: EpisodeDataModule, index: int, out: Path) -> list[Path]:
    """Draw all pictures of an episode to ``out`` and return their paths."""
    with mpl.rc_context(STYLE):
        example = Example(module, data, index)
        assert example.logits.qc is not None
        figures = {
            "episode": draw_episode(example),
            "ple": draw_ple(example),
            "fle": draw_fle(example),
            "trm": draw_matching(example, "trm", example.logits.trm),
            "qc": draw_matching(example, "qc", example.logits.qc),
        }
        for name, made in figures.items():
            with atomic_path(out / f"{name}.png") as part:
                made.savefig(part, format="png")
    return [out / f"{name}.png" for name in figures]


def main(arguments: list[str] | None = None) -> None:
    """Load or train a model and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, help="checkpoint of `strm fit`; default: train the quickstart")
    parser.add_argument("--episode", type=int, default=0, help="index of the test episode")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the pictures")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        checkpoint = options.ckpt
        if checkpoint is None:
            command = [
                sys.executable,
                "-m",
                "strm_lightning",
                "fit",
                "--config",
                "quickstart",
                "--test_after_fit=false",
            ]
            subprocess.run(command, cwd=folder, check=True)  # noqa: S603 - our own command
            checkpoint = Path(folder, "runs", "quickstart", "version_0", "checkpoints", "best.ckpt")
        module = STRMModule.load_from_checkpoint(checkpoint, map_location="cpu")
        data = EpisodeDataModule.load_from_checkpoint(checkpoint, map_location="cpu")
        print(*draw(module, data, options.episode, options.out), sep="\n")


if __name__ == "__main__":
    main()
