"""Temperature and threshold, fitted by leaving clips out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from strm_lightning import FewShotClassifier
from strm_lightning.classifier import UNKNOWN
from strm_lightning.classifier.calibration import Calibration, fit_temperature, fit_threshold
from tests.classifier.conftest import HOW, moving


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_the_temperature_that_made_the_labels_is_found(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=generator)
    targets = torch.multinomial(torch.softmax(logits / 0.5, 1), 1, generator=generator)[:, 0]
    found = fit_temperature(logits * scale, targets)
    assert found == pytest.approx(0.5 * scale, rel=0.1)
    losses = [F.cross_entropy(logits * scale / (found * f), targets) for f in (0.8, 1, 1.25)]
    assert losses[1] < min(losses[0], losses[2])


def test_few_clips_all_right_are_no_certainty() -> None:
    logits, targets = torch.eye(3).repeat(2, 1), torch.arange(3).repeat(2)
    best = torch.softmax(logits / fit_temperature(logits, targets), 1).amax(1)
    # Each target gives 1 / (n + 2) of itself to all classes: 1 - 1/8 + 1/24.
    np.testing.assert_allclose(best, 11 / 12, rtol=1e-3)
    # Logits worse than chance still rank the classes.
    assert 0 < fit_temperature(logits, targets.roll(1)) < float("inf")


def test_the_threshold_parts_known_from_unknown() -> None:
    # The right class has 4 to 7, the best of the others 1; a single slip (the last row) does not move it.
    logits = torch.tensor([[4.0, 1, 0], [1, 5, 0], [1, 0, 7], [0.5, 0.2, 0.5]])

    def threshold(known: torch.Tensor, targets: list[int]) -> float:
        return fit_threshold(known, known.scatter(1, torch.tensor(targets)[:, None], -torch.inf))

    assert threshold(logits, [0, 1, 2, 0]) == pytest.approx(2.5)
    assert threshold(100 - logits.flip(0), [1, 1, 0, 1]) > 90


def test_leaving_out_is_matching_without_the_clip(classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = {motion: [moving(motion, seed) for seed in range(3)] for motion in ("left", "right", "up")}
    videos["up"] = videos["up"][:1]
    logits, targets = classifier.fit(videos).support.leave_one_out()
    assert targets.tolist() == [0, 1, 0, 1, 0, 1]  # "up" cannot be left out
    clone = FewShotClassifier(classifier.model, HOW)
    for row, (label, k) in enumerate([("left", 0), ("right", 0), ("left", 1), ("right", 1)]):
        others = {name: [v for i, v in enumerate(m) if (name, i) != (label, k)] for name, m in videos.items()}
        expected = clone.fit(others).explain(videos[label][k]).logits
        np.testing.assert_allclose(logits[row].numpy(), [expected[n] for n in sorted(expected)], rtol=1e-3, atol=1e-3)
    monkeypatch.setattr("strm_lightning.classifier.support._LEFT_OUT", 4)
    assert len(classifier.add("up", [moving("up", 9)]).support.leave_one_out()[1]) == 4


def test_fitted_where_there_are_clips_enough(classifier) -> None:
    one = {motion: [moving(motion)] for motion in ("left", "right", "up")}
    assert classifier.fit(one).calibration_ == Calibration(classifier.model.head.matching.temperature)
    classifier.set_params(threshold="fit")
    with pytest.raises(ValueError, match=r"2 classes or more that have 2 clips or more; of 3 classes 0 have"):
        classifier.predict(moving("up", 3))
    classifier.add("left", moving("left", 1))
    with pytest.raises(ValueError, match="of 3 classes 1 has"):
        classifier.predict(moving("up", 3))
    for motion in ("right", "left"):  # a class of one clip does not stand in the way
        classifier.add(motion, moving(motion, 2))
    left_out = classifier.support.leave_one_out()
    without = classifier.support.leave_classes_out()
    fitted = Calibration(fit_temperature(*left_out), min_logit=fit_threshold(left_out[0], without))
    assert classifier.calibration_ == fitted
    assert classifier.set_params(temperature=3.0).calibration_ == replace(fitted, temperature=3.0)
    assert classifier.set_params(threshold=0.7).calibration_ == Calibration(3.0, min_probability=0.7)


def test_a_fitted_threshold_knows_its_own_and_not_others(bare) -> None:
    videos = {motion: [moving(motion, seed) for seed in range(3)] for motion in ("left", "up")}
    classifier = FewShotClassifier(bare, HOW, threshold="fit").fit(videos)
    assert classifier.predict([moving(motion, 8) for motion in ("left", "up")]).tolist() == ["left", "up"]
    assert classifier.predict(moving("right", 8)).label == UNKNOWN
