"""FewShotClassifier: clips in, labels out, each clip encoded once."""

import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from strm_lightning import FewShotClassifier
from strm_lightning.classifier import UNKNOWN, WindowPrediction
from strm_lightning.classifier import support as support_module
from strm_lightning.classifier.clips import read_clip
from strm_lightning.classifier.predictions import merge_windows
from strm_lightning.classifier.storage import fingerprint
from strm_lightning.data.decode.video import VideoError, read_frames
from strm_lightning.data.video_sets import DataWarning
from tests.classifier.conftest import HOW, bare_model, make_model, moving, write_video


def test_recognises_motion_from_arrays(bare, examples) -> None:
    classifier = FewShotClassifier(bare, HOW).fit(examples)
    assert classifier.classes_.tolist() == ["left", "right", "up"]
    for motion in examples:
        prediction = classifier.predict(moving(motion, seed=9))
        assert prediction.label == motion
        assert prediction.probability == max(prediction.probabilities.values())
        assert math.isclose(sum(prediction.probabilities.values()), 1)


def test_files_arrays_and_tensors_are_the_same_video(classifier, examples, tmp_path: Path) -> None:
    classifier.fit(examples)
    path = write_video(tmp_path / "query.mp4", moving("up", 5))

    decoded = read_frames(path, range(12))
    proba = classifier.predict_proba([path, str(path), decoded, decoded.numpy()])
    np.testing.assert_array_equal(proba, np.repeat(proba[:1], 4, 0))
    assert classifier.predict_encoded(classifier.encode_one(path)[0]) == classifier.predict(path)


def test_logits_are_the_model_s_own(trained, examples) -> None:
    """Uneven shots, chunks and kept features give what STRM gives for each class by itself."""
    classifier = FewShotClassifier(trained, HOW, temperature=2.0).fit(examples)
    query = moving("left", 7)

    clip = read_clip(query, HOW)[None]
    logits = []
    with torch.no_grad():
        for label in classifier.classes_:
            shots = torch.stack([read_clip(video, HOW) for video in examples[label]])
            logits.append(trained(shots[None], clip).combined(0.1)[0, 0])
    expected = torch.softmax(torch.stack(logits).double() / 2.0, 0)
    torch.testing.assert_close(torch.from_numpy(classifier.predict_proba([query])[0]), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_matching_in_pieces_changes_nothing(classifier, examples, limit: int, monkeypatch) -> None:
    queries = [moving(motion, 20 + i) for i, motion in enumerate(("left", "up", "down"))]
    expected = classifier.fit(examples).predict_proba(queries)
    monkeypatch.setattr(support_module, "_CLIPS_AT_ONCE", limit)
    monkeypatch.setattr(support_module, "_FLOATS_AT_ONCE", limit)
    np.testing.assert_allclose(classifier.fit(examples).predict_proba(queries), expected, rtol=1e-3)


def test_each_clip_is_encoded_once(classifier, examples, count_encoded) -> None:
    classifier.fit(examples)
    assert count_encoded() == 6
    classifier.predict_many([moving("up", 5), moving("left", 5)])
    assert count_encoded() == 8
    classifier.add("down", moving("down")).add("up", [moving("up", 3)])
    assert count_encoded() == 10
    classifier.remove("right")
    classifier.predict(moving("up", 6))
    assert count_encoded() == 11


def test_adding_and_removing_equals_fitting_anew(classifier, examples, tmp_path: Path) -> None:
    query = [moving("down", 4)]
    path = write_video(tmp_path / "down.mp4", moving("down", 2))
    expected = classifier.fit({**examples, "down": [moving("down")]}).predict_proba(query)
    classifier.fit({**examples, "left": examples["left"][:1]}).add("left", examples["left"][1:])
    classifier.add("down", [moving("down"), path]).remove("down", path)
    np.testing.assert_allclose(classifier.predict_proba(query), expected, rtol=1e-3, atol=1e-9)
    with pytest.raises(KeyError, match=r"no class 'wave'; there are down, left"):
        classifier.remove("wave")
    with pytest.raises(KeyError, match=r"no clip 'a\.mp4' in class 'up'"):
        classifier.remove("up", "a.mp4")


def test_scikit_learn_s_habits(classifier, examples) -> None:
    from sklearn.base import clone
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    videos = [moving(motion, seed) for seed in range(3) for motion in ("left", "right", "up")]
    labels = ["left", "right", "up"] * 3
    classifier.set_params(temperature=0.5)
    assert classifier.fit(videos, labels) is classifier
    predicted = classifier.predict(videos)
    proba = classifier.predict_proba(videos)
    assert proba.shape == (9, 3)
    assert (classifier.classes_[proba.argmax(1)] == predicted).all()
    assert classifier.score(videos, labels) == (predicted == labels).mean()
    copy = clone(classifier)
    assert copy.get_params() == classifier.get_params()
    assert len(copy.classes_) == 0
    scores = cross_val_score(classifier, np.stack(videos), labels, cv=StratifiedKFold(3))
    assert len(scores) == 3
    assert not np.isnan(scores).any()
    with pytest.raises(ValueError, match="no parameter 'shots'"):
        classifier.set_params(shots=3)


def test_grid_search_over_the_temperature(bare, tmp_path: Path) -> None:
    """On paths and by log loss, since accuracy does not depend on a temperature."""
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    labels = [motion for motion in ("left", "right", "up") for _ in range(3)]
    paths = [str(write_video(tmp_path / f"{i}.mp4", moving(motion, i))) for i, motion in enumerate(labels)]
    search = GridSearchCV(
        FewShotClassifier(bare, HOW), {"temperature": [0.1, 1.0, 100.0]}, scoring="neg_log_loss", cv=StratifiedKFold(3)
    )
    search.fit(paths, labels)
    losses = -search.cv_results_["mean_test_score"]
    assert losses[2] == pytest.approx(math.log(3), rel=0.01)  # all classes alike
    assert search.best_params_ == {"temperature": 0.1}
    assert search.predict(paths[:1]).tolist() == ["left"]


def test_many_classes_and_many_shots(bare) -> None:
    classifier = FewShotClassifier(bare, HOW)
    videos = {f"class {i:03}": [moving("up", i)] * (1 + 20 * (i == 7)) for i in range(130)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        classifier.fit(videos)
    prediction = classifier.predict(moving("up", 42))
    assert len(prediction.probabilities) == 130
    assert prediction.label == "class 042"


def test_unknown_below_the_threshold(bare, examples) -> None:
    classifier = FewShotClassifier(bare, HOW, threshold=0.999999, temperature=1.0).fit(examples)
    prediction = classifier.predict(moving("left", 9))
    assert prediction.label == UNKNOWN
    assert prediction.probability == prediction.probabilities["left"]
    assert classifier.set_params(threshold=0.1).predict(moving("left", 9)).label == "left"


def test_a_class_named_unknown_is_refused_before_anything_is_encoded(classifier, examples, count_encoded) -> None:
    for call in (
        lambda: classifier.fit({**examples, UNKNOWN: [moving("down")]}),
        lambda: classifier.fit([moving("up"), moving("down")], ["up", UNKNOWN]),
        lambda: classifier.add(UNKNOWN, moving("down")),
    ):
        with pytest.raises(ValueError, match="class 'unknown': this is the label of rejected videos; rename"):
            call()
    assert count_encoded() == 0


def test_a_rejection_is_an_attribute(bare, examples) -> None:
    """An old file of examples may have a class of the name that rejected videos get."""
    classifier = FewShotClassifier(bare, HOW, temperature=1.0).fit(examples)
    classifier.support.add(UNKNOWN, classifier.support.clips["left"])
    classifier.support.remove("left")
    query = moving("left", 9)
    windows = [classifier.predict(query), classifier.set_params(threshold=0.999).predict(query)]
    assert [(p.label, p.rejected) for p in windows] == [(UNKNOWN, False), (UNKNOWN, True)]
    merged = list(merge_windows(WindowPrediction(float(i), i + 1.0, p) for i, p in enumerate(windows)))
    assert [w.prediction.rejected for w in merged] == [False, True]


def test_parameters_that_are_refused_are_not_set(classifier) -> None:
    before = classifier.get_params()
    for wrong in ({"threshold": 2.0}, {"batch_size": 3, "temperature": -1.0}, {"jobs": 2, "shots": 1}):
        with pytest.raises(ValueError, match=r"threshold|temperature|shots"):
            classifier.set_params(**wrong)
        assert classifier.get_params() == before


def test_reading_with_several_jobs_keeps_the_order(classifier, examples, tmp_path: Path) -> None:
    motions = ["left", "up", "down", "right"] * 3
    paths = [write_video(tmp_path / f"{i}.mp4", moving(m, i)) for i, m in enumerate(motions)]
    alone = classifier.fit(examples).predict_proba(paths)
    np.testing.assert_allclose(classifier.set_params(jobs=3, batch_size=5).predict_proba(paths), alone, rtol=1e-3)


class TestBadInput:
    def test_unreadable_examples_are_named_and_left_out(self, classifier, examples, tmp_path: Path) -> None:
        broken = tmp_path / "broken.mp4"
        broken.write_bytes(b"no video")
        with pytest.warns(DataWarning, match=r"left out of class 'up': .*broken\.mp4"):
            classifier.fit({**examples, "up": [broken, *examples["up"]]})
        assert len(classifier.support.clips["up"]) == 1

    def test_a_class_without_readable_clips_is_refused_and_nothing_changes(
        self, classifier, examples, tmp_path
    ) -> None:
        classifier.fit(examples)
        for videos in ([], [tmp_path / "none.mp4"], [tmp_path]):
            with pytest.raises(ValueError, match="class 'wave' has no readable clip"):
                classifier.fit({"wave": videos, "up": examples["up"]})
            with pytest.raises(ValueError, match="class 'wave' has no readable clip"):
                classifier.add("wave", videos)
        assert classifier.classes_.tolist() == ["left", "right", "up"]

    def test_one_class_is_refused(self, classifier, examples) -> None:
        with pytest.raises(ValueError, match="examples of 1 class: give clips of 2 or more"):
            classifier.fit({"up": examples["up"]})
        with pytest.raises(ValueError, match="call fit or add"):
            classifier.predict(examples["up"][0])

    def test_the_same_clip_in_two_classes_is_warned_of(self, classifier, examples) -> None:
        with pytest.warns(DataWarning, match=r"\(class 'right'\) shows the same as .*\(class 'left'\)"):
            classifier.fit({"left": examples["left"], "right": examples["left"][:1]})
        with pytest.warns(DataWarning, match=r"\(class 'up'\) shows the same as .*\(class 'up'\)"):
            classifier.fit({"left": examples["left"], "up": examples["up"] * 2})

    def test_a_bad_query_is_named(self, classifier, examples, tmp_path: Path) -> None:
        classifier.fit(examples)
        for video, message in ((tmp_path, "is a folder"), (tmp_path / "no.mp4", "does not exist")):
            with pytest.raises(VideoError, match=f"{video}.*{message}"):
                classifier.predict(video)
        good = moving("up", 3)
        found = list(classifier.predict_each([good, tmp_path, good]))
        assert isinstance(found[1], VideoError)
        assert found[0] == found[2]

    @pytest.mark.parametrize(
        ("video", "error", "message"),
        [
            (np.zeros((4, 8, 8), np.uint8), TypeError, r"\[frames, height, width, 3\].*not \[4, 8, 8\] of uint8"),
            (np.zeros((4, 8, 8, 3), np.float32), TypeError, "not .* of float32"),
            (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), TypeError, r"not \[4, 3, 8, 8\]"),
            (np.zeros((0, 8, 8, 3), np.uint8), VideoError, "has no pixels"),
        ],
    )
    def test_wrong_arrays_are_refused(self, classifier, examples, video, error, message) -> None:
        with pytest.raises(error, match=message):
            classifier.fit(examples).predict(video)

    def test_labels_must_match(self, classifier, examples) -> None:
        with pytest.raises(ValueError, match="1 videos and 0 labels"):
            classifier.fit(examples["up"])
        with pytest.raises(TypeError, match="class 'up': give a list of videos, not str"):
            classifier.fit({"up": "a.mp4", "left": ["b.mp4"]})

    def test_one_frame_is_a_clip(self, classifier, examples) -> None:
        still = moving("up")[:1]
        prediction = classifier.fit(examples).predict(still)
        assert not any(math.isnan(p) for p in prediction.probabilities.values())


def test_a_model_in_training_mode_is_used_in_evaluation_mode(examples) -> None:
    """Dropout and the statistics of a batch would make predictions depend on chance and on the other clips."""
    model = make_model(variant="official", qc_dim=6)
    expected = FewShotClassifier(model, HOW).fit(examples).predict(moving("up", 3))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert FewShotClassifier(model.train(), HOW).fit(examples).predict(moving("up", 3)) == expected
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_other_weights_have_another_fingerprint() -> None:
    prints = {fingerprint(make_model(seed)) for seed in (0, 0, 1)}
    assert len(prints) == 2
    for options in ({"center_clip": True}, {"variant": "official"}, {"tuple_sizes": (1,)}):
        prints.add(fingerprint(make_model(0, **options)))
    prints |= {fingerprint(bare_model(name)) for name in ("lag", "ridge", "otam", "mean")}
    prints |= {fingerprint(bare_model("otam", features=features)) for features in ("frames", "patches")}
    assert len(prints) == 10


def test_uneven_shots_cost_what_their_clips_cost(bare) -> None:
    """Classes with few clips are not padded to the size of the largest: work grows with the clips, not N x max K."""
    support = FewShotClassifier(bare, HOW).fit({"a": [moving("up")], "b": [moving("left")]}).support
    one = support.clips["a"][0]
    for c in range(300):
        support.add(f"class {c}", [replace(one) for _ in range(1 + c % 3 + 200 * (c == 7))])
    present, places = [], []
    real = bare.head.match_prepared

    def match(s, q, mask):
        way, shot = s["patches"].shape[:2]
        places.append(way * shot)
        present.append(way * shot if mask is None else int(mask.sum()))
        return real(s, q, mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bare.head, "match_prepared", match)
        support.match({name: tensor[None] for name, tensor in one.features.items()})
    clips = sum(map(len, support.clips.values()))
    assert sum(present) == clips
    assert sum(places) <= 1.5 * clips + support_module._CLIPS_AT_ONCE
