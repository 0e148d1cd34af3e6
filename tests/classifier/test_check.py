"""The check of the examples, and the description of the matching."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from strm_lightning import FewShotClassifier
from strm_lightning.classifier.check import mislabelled
from strm_lightning.classifier.selection import LeftOut, wilson
from strm_lightning.errors import InputError
from tests.classifier.conftest import HOW, bare_model, moving

MOTIONS = ("left", "right", "up", "down")


def of(videos: dict, matching: str = "auto", **options: object) -> FewShotClassifier:
    return FewShotClassifier(bare_model(matching, **options), HOW).fit(videos)


@pytest.fixture(scope="module")
def clean() -> FewShotClassifier:
    return of({motion: [moving(motion, 10 * i + seed) for seed in range(4)] for i, motion in enumerate(MOTIONS)})


def test_good_examples_pass(clean) -> None:
    found = clean.check()
    assert found.left_out == LeftOut(16, 16)
    assert found.by_class == {motion: LeftOut(4, 4) for motion in sorted(MOTIONS)}
    assert (found.confusions, found.suspects, found.duplicates, found.needs_clips) == ([], [], [], [])
    assert "Expected accuracy: 100% of 16 clips (95 % interval 81% to 100%)" in str(found)


def test_swapped_labels_and_duplicates_are_found(clean) -> None:
    videos = {motion: [moving(motion, 10 * i + seed) for seed in range(4)] for i, motion in enumerate(MOTIONS)}
    videos["left"][1], videos["up"][2] = videos["up"][2], videos["left"][1]
    noise = np.random.default_rng(0).integers(0, 3, videos["down"][0].shape, dtype=np.uint8)
    videos["down"].append(videos["down"][0] // 2 * 2 + noise)  # encoded again: other pixels
    found = of(videos).check()
    assert {(s.label, s.looks_like) for s in found.suspects} == {("left", "up"), ("up", "left")}
    assert {(c.actual, c.predicted) for c in found.confusions} >= {("left", "up"), ("up", "left")}
    assert [(d.first[0], d.second[0]) for d in found.duplicates] == [("down", "down")]
    text = str(found)
    assert "Clips that may have the wrong label:" in text
    assert "left is recognised as up: " in text


def test_nothing_can_be_said_with_one_clip_a_class() -> None:
    classifier = of({motion: [moving(motion)] for motion in MOTIONS})
    found = classifier.check()
    assert found.left_out is None
    assert found.needs_clips == sorted(MOTIONS)
    assert "the accuracy is not known" in str(found)
    assert classifier.selection_.matching == "lag_energy"
    assert "accuracy not known" in str(classifier.selection_)
    with pytest.raises(InputError, match="examples of 0 classes"):
        FewShotClassifier(bare_model("auto"), HOW).check()


def test_a_class_of_one_clip_and_a_class_that_is_not_recognised_need_more() -> None:
    videos = {motion: [moving(motion, seed) for seed in range(4)] for motion in ("left", "up")}
    videos["right"] = [moving("left", 50 + seed) for seed in range(4)]  # the same action twice
    videos["down"] = [moving("down")]
    found = of(videos).check()
    assert "down" in found.needs_clips
    assert "down" not in found.by_class
    assert found.left_out is not None
    assert found.left_out.right < 12
    assert {(c.actual, c.predicted) for c in found.confusions} <= {("left", "right"), ("right", "left")}


def test_confident_learning() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.7, 0.3], [0.95, 0.05]]).double()
    targets = torch.tensor([0, 0, 1, 1, 1])
    # 0.7 is below the mean 0.85 of class 0, 0.95 is above.
    assert mislabelled(probabilities, targets).tolist() == [False, False, False, False, True]


def test_wilson_interval() -> None:
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert wilson(0, 5)[0] == 0
    assert wilson(5, 5)[1] == 1


def test_the_selection_is_saved_with_the_examples(clean, tmp_path: Path) -> None:
    found = clean.selection_
    assert found.matching == "kernel_ridge"
    assert sum(found.weights.values()) == pytest.approx(1)
    assert found.weights.keys() == found.alone.keys() == {"lag", "energy", "motionmap", "meanpatch"}
    assert found.alone["lag"].right > found.alone["meanpatch"].right  # the background says nothing here
    assert found.weights["lag"] > found.weights["meanpatch"]
    clean.save(tmp_path / "actions.safetensors")
    with safe_open(tmp_path / "actions.safetensors", "pt") as file:
        assert json.loads(file.metadata()["selection"])["left_out"] == [16, 16]
    again = FewShotClassifier(clean.model, HOW).load(tmp_path / "actions.safetensors")
    assert again._selection == found
    assert again.add("left", moving("left", 77)).selection_.left_out == LeftOut(17, 17)
    trained = of({motion: [moving(motion, seed) for seed in range(2)] for motion in MOTIONS}, "otam")
    assert trained.selection_ == replace(trained.selection_, matching="otam", weights={}, alone={})


def test_leaving_out_by_folds_agrees_with_one_by_one(clean, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one = clean.support.leave_one_out()[0]
    monkeypatch.setattr("strm_lightning.classifier.support._ONE_BY_ONE", 3)
    clean.support._left_out = None
    in_folds = clean.support.leave_one_out()[0]
    assert not torch.equal(one_by_one, in_folds)
    assert one_by_one.argmax(1).tolist() == in_folds.argmax(1).tolist()


@pytest.mark.parametrize("matching", ["auto", "kernel_ridge", "ridge", "lag_energy", "patches", "trm"])
def test_leaving_classes_out_is_matching_without_them(matching: str) -> None:
    videos = {motion: [moving(motion, seed) for seed in range(2)] for motion in MOTIONS}
    classifier = of(videos, matching)
    logits = classifier.support.leave_classes_out()
    columns = [c for c, label in enumerate(classifier.support.labels) if label != "left"]
    others = FewShotClassifier(classifier.model, HOW).fit({m: v for m, v in videos.items() if m != "left"})
    for row, (c, k) in enumerate(classifier.support.left_out_clips()):
        assert logits[row, c] == -torch.inf
        if classifier.support.labels[c] == "left":
            clip = {name: tensor[None] for name, tensor in classifier.support.clips["left"][k].features.items()}
            expected = others.support.match(clip).combined(0.1)[0]
            torch.testing.assert_close(logits[row, columns], expected, rtol=1e-3, atol=1e-4)


def test_a_mirrored_action_is_the_same_action() -> None:
    motions = {"left": [moving("left", s) for s in range(3)], "up": [moving("up", s) for s in range(3)]}
    rest = {"down": [moving("down", s) for s in range(3)]}
    query = moving("right", 40)
    mirrored = of(motions | rest, mirror=True).predict(query)
    assert mirrored.label == "left"
    assert mirrored.probability > of(motions | rest).predict(query).probabilities["left"]
