"""Pictures: written where asked, showing what the results say."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from strm_lightning.cli.main import main
from strm_lightning.evaluation import pictures as plots
from strm_lightning.evaluation.figures import class_figure, confusion_figure, learning_figure, shots_figure
from tests.evaluation.documents import CLASSES, document, random_results, write

SWEEP = [{"way": 3, "shot": shot, "accuracy": 0.3 + 0.1 * shot, "ci95": 0.02, "episodes": 400} for shot in (1, 2, 5)]
METRICS = """epoch,lr-SGD,step,train/loss,train/accuracy,val/loss,val/accuracy,val/ci95
0,,9,1.5,0.25,,,
0,0.1,9,,,,,
0,,19,1.0,0.5,,,
0,,19,,,1.2,0.4,0.05
"""


def test_one_command_draws_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 0.5, sweep=SWEEP)
    (tmp_path / "metrics.csv").write_text(METRICS)
    main(["plot", str(tmp_path)])
    names = {"confusion.png", "per-class.png", "shots.png", "learning-curve.png"}
    assert {Path(line).name for line in capsys.readouterr().out.splitlines()} == names
    for name in names:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_several_runs_share_pictures(tmp_path: Path) -> None:
    runs = [write(tmp_path / "runs" / name / "v0", skill) for name, skill in (("trx", 0.4), ("strm", 0.6))]
    found = {path.name for path in plots.draw(runs, tmp_path / "out")}
    assert found == {"confusion-trx-v0.png", "confusion-strm-v0.png", "per-class.png"}


def test_confusion_shows_shares_of_each_row() -> None:
    results = random_results(0.5)
    axes = confusion_figure(document(results)).axes[0]
    counts = results.confusion(len(CLASSES))
    np.testing.assert_allclose(axes.images[0].get_array(), counts / counts.sum(1, keepdims=True))
    assert [text.get_text() for text in axes.get_yticklabels()] == list(CLASSES)


def test_classes_come_best_first_with_their_intervals() -> None:
    results = random_results(0.5)
    rows = results.by_class(CLASSES)
    axes = class_figure({"one": document(results)}).axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == sorted(CLASSES, key=lambda name: rows[name]["accuracy"])
    widths = [bar.get_width() for bar in axes.containers[1]]
    assert widths == pytest.approx([100 * rows[name]["accuracy"] for name in names])


def test_shots_and_learning_curves_show_their_points(tmp_path: Path) -> None:
    axes = shots_figure({"one": document(random_results(0.5), sweep=SWEEP)}).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[1, 40], [2, 50], [5, 80]])
    (tmp_path / "metrics.csv").write_text(METRICS)
    loss, accuracy = learning_figure({"one": plots._read_metrics(tmp_path / "metrics.csv")}).axes
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [[9, 1.5], [19, 1.0]])
    assert [19.0, 40.0] in accuracy.lines[2].get_xydata().tolist()


LONG = ("pretending to put something onto something else without letting go of it", *CLASSES[1:])


def overhang(figure: Figure) -> float:
    """Inches by which text is outside the page."""
    figure.draw_without_rendering()
    drawn, page = figure.get_tightbbox(), figure.bbox_inches
    return max(-drawn.x0, -drawn.y0, drawn.x1 - page.x1, drawn.y1 - page.y1)


@pytest.mark.parametrize(("classes", "length"), [(2, 60), (5, 16), (18, 25)])  # columns have numbers beyond 16 letters
def test_no_label_of_a_confusion_is_cut_off(classes: int, length: int) -> None:
    results = document(random_results(0.5))
    names = ["m" * length] * classes
    counts = np.eye(classes, dtype=int).tolist()
    figure = confusion_figure(results | {"confusion": {"classes": names, "counts": counts}})
    assert overhang(figure) <= 0
    axes = figure.axes[0]
    label, ticks = axes.yaxis.label.get_window_extent(), axes.get_yticklabels()
    assert not any(label.overlaps(tick.get_window_extent()) for tick in ticks)


@pytest.mark.parametrize("name", ["confusion", "per-class", "shots", "learning-curve"])
def test_long_names_stay_within_the_picture_and_leave_room_for_it(tmp_path: Path, name: str) -> None:
    runs = {f"a run of a model with many options, number {n}": random_results(0.1 * n) for n in range(3)}
    documents = {run: document(results, sweep=SWEEP) for run, results in runs.items()}
    for found in documents.values():
        found["confusion"]["classes"] = list(LONG)
        found["per_class"] = dict(zip(LONG, found["per_class"].values(), strict=True))
    (tmp_path / "metrics.csv").write_text(METRICS)
    curves = plots._read_metrics(tmp_path / "metrics.csv")
    figure = {
        "confusion": lambda: confusion_figure(next(iter(documents.values()))),
        "per-class": lambda: class_figure(documents),
        "shots": lambda: shots_figure(documents),
        "learning-curve": lambda: learning_figure(dict.fromkeys(runs, curves)),
    }[name]()
    assert overhang(figure) <= 0
    for axes in figure.axes[:2]:
        width, height = axes.get_window_extent().size / figure.dpi
        assert width > 2.2 or name == "confusion"  # whose second axes are the bar of colours
        assert height > 1.2
    for legend in figure.legends:
        assert not any(legend.get_window_extent().overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_nothing_to_draw_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], [str(tmp_path)], [str(tmp_path / "results.json")]):
        with pytest.raises(SystemExit):
            main(["plot", *arguments])
    assert "no results.json of a test, no metrics.csv of a fit" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\x00\xff\x81", b"train/loss\n1\n", b"step,val/loss\n1,high\n"])
def test_metrics_of_something_else_are_refused(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(SystemExit):
        main(["plot", str(tmp_path)])
    message = capsys.readouterr().err
    assert "metrics.csv" in message
    assert message.count("\n") == 1


def test_pictures_that_cannot_be_written_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 0.5)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        main(["plot", str(tmp_path), "--out", str(tmp_path / "file" / "pictures")])
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path}")
    assert "cannot be written" in message


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"\.\[plots\]"):
        plots.draw([write(tmp_path, 0.5)])
