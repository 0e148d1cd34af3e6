"""Pictures: written where asked, showing what the results say."""

from pathlib import Path

import numpy as np
import pytest

from strm_lightning.cli import main
from strm_lightning.evaluation import plots
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


def test_nothing_to_draw_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], [str(tmp_path)], [str(tmp_path / "results.json")]):
        with pytest.raises(SystemExit):
            main(["plot", *arguments])
    assert "no results.json of a test, no metrics.csv of a fit" in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"strm-lightning\[plots\]"):
        plots.draw([write(tmp_path, 0.5)])
