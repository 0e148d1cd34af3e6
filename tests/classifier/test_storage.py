"""Examples in one file, refused with other weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from strm_lightning import FewShotClassifier
from strm_lightning.classifier.clips import Preprocessing
from tests.classifier.conftest import HOW, make_matcher, moving, save_weights


def test_a_saved_classifier_predicts_the_same(classifier, examples, tmp_path: Path, count_encoded) -> None:
    path = tmp_path / "actions.safetensors"
    classifier.set_params(threshold=0.4).fit(examples).save(path)
    queries = [moving(motion, 30) for motion in ("left", "up")]
    expected = classifier.predict_many(queries)
    encoded = count_encoded()
    other = FewShotClassifier(classifier.matcher, HOW).load(path)
    assert count_encoded() == encoded
    assert other.predict_many(queries) == expected
    assert other.calibration_.min_probability == 0.4
    assert other.calibration_.temperature == pytest.approx(classifier.calibration_.temperature)
    theirs, mine = (c.explain(queries[0]).thumbnails["left"] for c in (other, classifier))
    np.testing.assert_array_equal(theirs, mine)
    encoded = count_encoded()
    other.add("down", moving("down"))
    assert count_encoded() == encoded + 1


def test_without_thumbnails_no_pixel_is_in_the_file(classifier, examples, tmp_path: Path) -> None:
    path = tmp_path / "actions.safetensors"
    classifier.fit(examples).save(path, thumbnails=False)
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(classifier.support.clips["up"][0].features)
        assert {clip["label"] for clip in json.loads(file.metadata()["clips"])} == set(examples)
    other = FewShotClassifier(classifier.matcher, HOW).load(path)
    assert other.predict(moving("up", 3)) == classifier.predict(moving("up", 3))
    other.explain(moving("up", 3))


def test_other_weights_and_other_pixels_are_refused(examples, tmp_path: Path) -> None:
    path = tmp_path / "actions.safetensors"
    FewShotClassifier(make_matcher(0), HOW).fit(examples).save(path)
    with pytest.raises(ValueError, match=r"encoded with other weights \(fingerprint [0-9a-f]{8}"):
        FewShotClassifier(make_matcher(1), HOW).load(path)
    with pytest.raises(ValueError, match=r"its clips were made with .*'image_size': 64"):
        FewShotClassifier(make_matcher(0), Preprocessing(num_frames=4, image_size=96)).load(path)


def test_what_is_no_such_file_is_refused(trained, tmp_path: Path) -> None:
    classifier = FewShotClassifier(trained, HOW)
    with pytest.raises(FileNotFoundError, match="no such file"):
        classifier.load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        classifier.load(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="cannot be read"):
        classifier.load(tmp_path / "broken.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"not a file that FewShotClassifier\.save wrote"):
        classifier.load(tmp_path / "weights.safetensors")


def test_the_class_opens_the_backbone_that_the_file_names(examples, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    from strm_lightning.models import Backbone

    save_weights(Backbone("test_resnet", pretrained=False).net, weights)
    classifier = FewShotClassifier.from_backbone("test_resnet", weights=weights, num_frames=4, image_size=64)
    classifier.fit(examples).save(tmp_path / "actions.safetensors")
    other = FewShotClassifier.load(tmp_path / "actions.safetensors", jobs=2)
    assert other.jobs == 2
    named = FewShotClassifier.load(tmp_path / "actions.safetensors", threshold=0.99, temperature=3.0, device="cpu")
    assert (named.threshold, named.temperature) == (0.99, 3.0)
    assert other.predict(moving("up", 3)) == classifier.predict(moving("up", 3))
    FewShotClassifier(classifier.matcher, classifier.preprocessing).fit(examples).save(
        tmp_path / "nameless.safetensors"
    )
    with pytest.raises(ValueError, match="names no checkpoint"):
        FewShotClassifier.load(tmp_path / "nameless.safetensors")


def test_options_of_load_take_precedence_over_the_file(classifier, examples, tmp_path: Path) -> None:
    path = tmp_path / "actions.safetensors"
    classifier.set_params(threshold=0.4, temperature=2.0).fit(examples).save(path)
    other = FewShotClassifier(classifier.matcher, HOW).load(path, threshold=0.99, jobs=2)
    assert (other.threshold, other.temperature, other.jobs) == (0.99, 2.0, 2)
    assert other.calibration_.min_probability == 0.99
    assert other.load(path, threshold=None).threshold is None
    expected = other.classes_.tolist(), other.get_params()
    with pytest.raises(ValueError, match=r"threshold 2\.0: give a probability"):
        other.remove("up").load(path, threshold=2.0)
    with pytest.raises(ValueError, match="no parameter 'shots'"):
        other.load(path, shots=3)
    assert (other.classes_.tolist(), other.get_params()) == (["left", "right"], expected[1])  # as before the errors


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """As STRMModule and EpisodeDataModule leave it behind, with options that are none of the model's."""
    matcher = make_matcher(3, tuple_sizes=(2, 3))
    state = {f"model.{name}": tensor for name, tensor in matcher.model.state_dict().items()}
    options = {"backbone": "test_resnet", "num_frames": 4, "match_dim": 12, "proj_dim": 16, "tuple_sizes": [2, 3]}
    data = {"num_frames": 4, "image_size": 64, "short_side": 70, "frame_policy": "release", "way": 5, "flip": True}
    path = tmp_path / "best.ckpt"
    other = {"lr": 1e-3, "qc_weight": 0.3, "optimizer": "sgd", "pretrained": False, "weights": None}
    torch.save(
        {"state_dict": state, "hyper_parameters": {**options, **other}, "datamodule_hyper_parameters": data}, path
    )
    return path


def test_a_checkpoint_brings_its_model_and_its_preprocessing(checkpoint: Path, examples, tmp_path: Path) -> None:
    classifier = FewShotClassifier.from_checkpoint(checkpoint)
    assert classifier.preprocessing == Preprocessing(4, 64, 70, "release")
    assert classifier.matcher.qc_weight == 0.3
    twin = make_matcher(3, tuple_sizes=(2, 3))
    twin.qc_weight = 0.3
    expected = FewShotClassifier(twin, classifier.preprocessing).fit(examples).predict(moving("up", 3))
    assert classifier.fit(examples).predict(moving("up", 3)) == expected
    assert FewShotClassifier.from_checkpoint(checkpoint, image_size=32).preprocessing.image_size == 32
    classifier.save(tmp_path / "actions.safetensors")
    assert FewShotClassifier.load(tmp_path / "actions.safetensors").predict(moving("up", 3)) == expected


def test_bad_checkpoints_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        FewShotClassifier.from_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        FewShotClassifier.from_checkpoint(tmp_path)
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not one of STRMModule"):
        FewShotClassifier.from_checkpoint(broken)
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["match_dim"] = 13
    torch.save(content, broken)
    with pytest.raises(ValueError, match="not those of the model that it describes"):
        FewShotClassifier.from_checkpoint(broken)
