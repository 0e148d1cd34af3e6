"""The picture draws what the explanation says."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.text import Text

from strm_lightning import FewShotClassifier
from strm_lightning.classifier.explain.picture import draw
from tests.classifier.conftest import HOW, make_model, moving


@pytest.fixture
def explanation(trained, examples):
    return FewShotClassifier(trained, HOW).fit(examples).explain(moving("left", 9))


def test_every_frame_and_class_is_there(explanation) -> None:
    figure = draw(explanation)
    images = [axes for axes in figure.axes if axes.images]
    assert len(images) == 3 * 4  # patch maps, query and best example, four frames each
    query, example = images[4:8], images[8:]  # below the heat
    np.testing.assert_array_equal(query[2].images[0].get_array(), explanation.frames[2].transpose(1, 2, 0))
    best = explanation.thumbnails[explanation.best_class][explanation.evidence[explanation.best_class].best_clip]
    np.testing.assert_array_equal(example[1].images[0].get_array(), best[1].transpose(1, 2, 0))
    labels = {text.get_text() for axes in figure.axes for text in axes.get_yticklabels()}
    assert set(explanation.prediction.probabilities) <= labels


def test_bars_are_the_decision_s(explanation) -> None:
    probability, logit = [axes for axes in draw(explanation).axes if not axes.images]
    widths = [bar.get_width() for bar in probability.patches]
    np.testing.assert_allclose(widths, list(explanation.prediction.probabilities.values()))
    names = list(explanation.prediction.probabilities)
    trm, qc = np.split(np.array([bar.get_width() for bar in logit.patches]), 2)
    differences = [explanation.logits[names[0]] - explanation.logits[name] for name in names]
    np.testing.assert_allclose(trm + qc, differences, rtol=1e-3, atol=1e-4)


def test_lines_are_as_strong_as_the_attention(explanation) -> None:
    figure = draw(explanation)
    evidence = explanation.evidence[explanation.best_class]
    weights = evidence.frame_weights(evidence.best_clip)
    lines = [artist for artist in figure.artists if isinstance(artist, ConnectionPatch)]
    tops = [axes for axes in figure.axes if axes.images][4:]  # without the heat
    drawn = np.zeros_like(weights)
    for line in lines:
        drawn[tops.index(line.axesA), tops.index(line.axesB) - 4] = line.get_linewidth()
    assert weights[drawn > 0].sum() >= 0.74 * weights.sum()
    order = np.argsort(weights[drawn > 0])
    assert (np.diff(drawn[drawn > 0][order]) >= 0).all()
    query, clip, frames, _ = evidence.main.strongest
    framed = [i for i, axes in enumerate(tops) if any(isinstance(p, Rectangle) for p in axes.patches)]
    expected = [*query, *(4 + j for j in frames)] if clip == evidence.best_clip else []
    assert framed == expected


@pytest.mark.parametrize("options", [{"patch_enrichment": False}, {"query_class": False}, {"num_frames": 3}])
def test_models_that_lack_a_part(options: dict, examples, tmp_path: Path) -> None:
    from strm_lightning.classifier.clips import ClipConfig

    how = ClipConfig(options.get("num_frames", 4), 64, 64)
    classifier = FewShotClassifier(make_model(**options), how).fit(examples)
    for suffix in (".png", ".pdf", ".svg"):
        draw(classifier.explain(moving("up", 9)), tmp_path / f"why{suffix}")
        assert (tmp_path / f"why{suffix}").stat().st_size > 1000
    explanation = classifier.explain(moving("up", 9))
    rows = math.ceil(len([a for a in draw(explanation).axes if a.images]) / how.num_frames)
    assert rows == (3 if explanation.patch_importance.max() > 0 else 2)


@pytest.mark.parametrize("kind", ["trained", "bare"])
def test_the_legend_names_what_the_model_does(kind: str, examples, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    explanation = FewShotClassifier(model, HOW).fit(examples).explain(moving("left", 9))
    shown = " ".join(text.get_text() for text in draw(explanation).texts)
    assert ("lines: attention of frames" in shown) == (kind == "trained")
    assert ("lines: similarity of frames" in shown) == (kind == "bare")
    assert "evidence for" in shown
    for line in explanation.sentences()[1:]:
        assert line in shown
    plain = " ".join(text.get_text() for text in draw(explanation, sentences=False).texts)
    assert explanation.sentences()[1] not in plain


@pytest.mark.parametrize("width", [3.2, 5.0, 9.0, 14.0])
def test_text_is_inside_the_figure_and_readable_at_any_width(explanation, width: float) -> None:
    figure = draw(explanation, width=width, dark=width == 5)
    assert figure.get_figwidth() == width
    figure.canvas.draw()
    drawn = figure.get_tightbbox()  # in inches
    assert drawn.x0 >= -0.01
    assert drawn.y0 >= -0.01
    assert drawn.x1 <= width + 0.01
    assert drawn.y1 <= figure.get_figheight() + 0.01
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 7.5


def test_other_formats_are_refused(explanation, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.png, \.pdf or \.svg"):
        draw(explanation, tmp_path / "why.gif")
