"""The classifier with every matching method that needs no training, and with trained ones beside TRM."""

from pathlib import Path

import numpy as np
import pytest
import torch

from strm_lightning import FewShotClassifier
from strm_lightning.classifier.calibration import Calibration, fit_temperature
from strm_lightning.classifier.clips import read_clip
from strm_lightning.classifier.explain.picture import draw
from strm_lightning.errors import InputError
from strm_lightning.models import Backbone
from strm_lightning.models.matching.base import matching_class, matching_names, source_hash
from tests.classifier.conftest import HOW, make_model, moving, save_weights

UNTRAINED = {
    "patches": ("patches", {}),
    "otam on patches": ("otam", {"features": "patches"}),
    "ridge": ("ridge", {}),
    "ridge on patches": ("ridge", {"features": "patches", "rho": 0.5}),
    "auto": ("auto", {}),
    "auto, mirrored": ("auto", {"mirror": True}),
    "kernel_ridge": ("kernel_ridge", {}),
    "kernel_ridge of two": ("kernel_ridge", {"kernels": ("lag", "energy")}),
    "lag": ("lag", {"max_lag": 2}),
    "lag_energy": ("lag_energy", {}),
    "mean": ("mean", {}),
    "chamfer over shots": ("chamfer", {"shots": "joint", "tuple_size": 2}),
}
TRAINED = {
    "linear": ("linear", {}),
    "lag with a projection": ("lag", {"proj_dim": 8}),
    "otam with a scale": ("otam", {"tuple_size": 2, "tuple_dim": 12, "learn_scale": True}),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_weights(Backbone("test_resnet", pretrained=False).net, path)
    return path


@pytest.fixture(params=UNTRAINED)
def classifier(request: pytest.FixtureRequest, weights: Path) -> FewShotClassifier:
    return of(request.param, weights)


def of(name: str, weights: Path) -> FewShotClassifier:
    matching, options = UNTRAINED[name]
    sizes = {"num_frames": 4, "image_size": 64}
    return FewShotClassifier.from_backbone(
        "test_resnet", weights=weights, matching=matching, matching_options=options, **sizes
    )


def own_logits(classifier: FewShotClassifier, examples: dict, query: np.ndarray) -> torch.Tensor:
    """Logits of the model itself, by one call with a mask; absent clips are NaN."""
    labels, model, how = sorted(examples), classifier.model, classifier.preprocessing
    most = max(map(len, examples.values()))
    with torch.no_grad():
        features = model.encode(torch.stack([read_clip(v, how) for label in labels for v in examples[label]]))
        mask = torch.arange(most) < torch.tensor([[len(examples[label])] for label in labels])

        def padded(tensor: torch.Tensor) -> torch.Tensor:
            blank = torch.full((*mask.shape, *tensor.shape[1:]), torch.nan)
            blank[mask] = tensor
            return blank

        return model.match(features.map(padded), model.encode(read_clip(query, how)[None]), mask).combined(0.1)[0]


@pytest.mark.parametrize("name", [*UNTRAINED, *TRAINED])
def test_logits_are_the_model_s_own(name: str, weights: Path, examples) -> None:
    if name in UNTRAINED:
        classifier = of(name, weights)
    else:
        matching, options = TRAINED[name]
        classifier = FewShotClassifier(make_model(matching=matching, matching_options=options), HOW)
    classifier.set_params(temperature=0.5).fit(examples)
    query = moving("left", 7)
    expected = torch.softmax(own_logits(classifier, examples, query).double() / 0.5, 0)
    np.testing.assert_allclose(classifier.predict_proba([query])[0], expected.numpy(), rtol=1e-3, atol=1e-5)
    clip = {name: tensor[None] for name, tensor in classifier.encode_one(query)[0].features.items()}
    assert not classifier.support.match(clip).trm.requires_grad
    assert not classifier.support.leave_one_out()[0].requires_grad


def test_leaving_out_is_matching_without_the_clip(classifier) -> None:
    videos = {motion: [moving(motion, seed) for seed in range(3)] for motion in ("left", "right", "up")}
    videos["up"] = videos["up"][:1]
    logits, targets = classifier.fit(videos).support.leave_one_out()
    assert targets.tolist() == [0, 1, 0, 1, 0, 1]  # "up" cannot be left out
    for row, (label, k) in enumerate([("left", 0), ("right", 0), ("left", 1), ("right", 1)]):
        others = {name: [v for i, v in enumerate(m) if (name, i) != (label, k)] for name, m in videos.items()}
        expected = own_logits(classifier, others, videos[label][k])
        torch.testing.assert_close(logits[row], expected, rtol=1e-3, atol=1e-4)
    assert classifier.calibration_ == Calibration(fit_temperature(logits, targets))
    one = {motion: clips[:1] for motion, clips in videos.items()}
    assert classifier.fit(one).calibration_ == Calibration(
        classifier.model.head.matching.default_temperature([1, 1, 1])
    )


def test_a_saved_classifier_predicts_the_same(classifier, examples, tmp_path: Path, count_encoded) -> None:
    path = tmp_path / "actions.safetensors"
    classifier.fit(examples).save(path)
    expected = classifier.predict(moving("up", 30))
    before = count_encoded()
    again = FewShotClassifier.load(path)  # the file names backbone, matching and options
    assert count_encoded() == before
    assert again.model.head.matching_name == classifier.model.head.matching_name
    assert again.predict(moving("up", 30)) == expected
    again.add("down", moving("down")).remove("right")
    assert again.predict(moving("down", 30)).probabilities.keys() == {"left", "up", "down"}


def test_it_explains_and_draws(classifier, examples, tmp_path: Path) -> None:
    explanation = classifier.fit(examples).explain(moving("left", 9))
    assert explanation.prediction == classifier.predict(moving("left", 9))
    assert explanation.matching == classifier.model.head.matching_name
    assert "most like" in str(explanation)
    figure = draw(explanation, tmp_path / "why.png")
    assert (tmp_path / "why.png").stat().st_size > 1000
    shown = " ".join(text.get_text() for text in figure.texts)
    evidence = explanation.evidence[explanation.best_class].main
    assert ("lines:" in shown) == (evidence is not None)
    rows = len([axes for axes in figure.axes if axes.images]) / 4
    assert rows == (3 if explanation.patch_importance.max() > 0 else 2)


def test_motion_is_recognised_with_patches_under_shifts(weights: Path) -> None:
    """All motion methods on patches distinguish four directions, with random convolutions."""
    videos = {motion: [moving(motion, seed) for seed in range(2)] for motion in ("left", "right", "up", "down")}
    for name in ("patches", "otam on patches", "ridge on patches", "kernel_ridge", "lag", "lag_energy"):
        classifier = of(name, weights).fit(videos)
        assert classifier.score([moving(motion, 9) for motion in videos], [*videos]) == 1, name


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", [*UNTRAINED, *TRAINED, "trm"])
def test_values_of_absent_clips_do_not_count(name: str, grad: bool) -> None:
    """Of encoded clips, with and without gradients: without, nothing sets them to zero first."""
    matching, options = (UNTRAINED | TRAINED | {"trm": ("trm", {})})[name]
    head = make_model(matching=matching, matching_options=options).head
    mask = torch.tensor([[True, True], [True, False]])
    with torch.no_grad():
        maps = torch.randn(5, 4, head.in_dim, 4, 4, generator=torch.Generator().manual_seed(0))
        encoded = head.encode(head.enrich(maps))
    support = {key: tensor[:4].unflatten(0, (2, 2)) for key, tensor in encoded.items()}
    query = {key: tensor[4:] for key, tensor in encoded.items()}
    results = []
    for value in (0.0, torch.nan, torch.inf):
        for tensor in support.values():
            tensor[1, 1] = value
        with torch.set_grad_enabled(grad):
            results.append(head.match_encoded(support, query, mask).combined(0.1).detach())
    assert torch.isfinite(results[0]).all()
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_methods_that_must_be_trained_are_refused_in_one_line(weights: Path) -> None:
    cases = [
        ("trm", {}, r"matching 'trm' has weights that must be trained: train it \(strm fit\)"),
        ("linear", {}, "matching 'linear' has weights that must be trained"),
        ("lag", {"proj_dim": 8}, "matching 'lag' has weights that must be trained"),
        ("otam", {"learn_scale": True}, "matching 'otam' has weights that must be trained"),
        ("otamm", {}, "matching 'otamm' is not registered: did you mean 'otam'"),
        ("lag", {"smoothing": 1}, "'lag' has no option 'smoothing'"),
    ]
    for matching, options, message in cases:
        with pytest.raises(InputError, match=message) as error:
            FewShotClassifier.from_backbone(
                "test_resnet", weights=weights, num_frames=4, matching=matching, matching_options=options
            )
        assert len(str(error.value).splitlines()) == 1


def test_the_methods_without_training_are_known(weights: Path) -> None:
    """All registered methods but these two build from a backbone alone."""
    names = [name for name in matching_names() if not source_hash(matching_class(name))]
    untrained = []
    for name in names:
        try:
            FewShotClassifier.from_backbone("test_resnet", weights=weights, num_frames=4, matching=name)
        except InputError:
            continue
        untrained.append(name)
    assert set(names) - set(untrained) == {"trm", "linear"}


def test_examples_of_one_matching_are_refused_by_another_in_one_line(weights: Path, examples, tmp_path: Path) -> None:
    classifiers = {name: of(name, weights) for name in UNTRAINED}
    few = {label: videos[:1] for label, videos in examples.items()}
    for name, classifier in classifiers.items():
        path = tmp_path / "actions.safetensors"
        classifier.fit(few).save(path)
        for other, reader in classifiers.items():
            if other == name:
                continue
            with pytest.raises(InputError, match="encoded with other weights or another matching") as error:
                reader.load(path)
            assert str(path) in str(error.value)
            assert f"'matching': '{UNTRAINED[name][0]}'" in str(error.value)  # what would read it
            assert len(str(error.value).splitlines()) == 1


def test_options_that_are_given_as_they_are_by_default_make_no_other_model(weights: Path, examples, tmp_path) -> None:
    path = tmp_path / "actions.safetensors"
    of("ridge", weights).fit(examples).save(path)
    sizes = {"weights": weights, "num_frames": 4, "image_size": 64}
    options = {"features": "frames", "rho": 1.0}
    same = FewShotClassifier.from_backbone("test_resnet", matching="ridge", matching_options=options, **sizes)
    assert same.load(path).predict(moving("up", 3)).label in examples


def test_a_checkpoint_of_another_matching_is_read(examples, tmp_path: Path) -> None:
    for matching, options in TRAINED.values():
        model = make_model(matching=matching, matching_options=options)
        state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        chosen = {"backbone": "test_resnet", "num_frames": 4, "matching": matching, "matching_options": options}
        path = tmp_path / f"{matching}.ckpt"
        data = {"image_size": 64, "short_side": 64}
        torch.save({"state_dict": state, "hyper_parameters": chosen, "datamodule_hyper_parameters": data}, path)
        expected = FewShotClassifier(model, HOW).fit(examples).predict(moving("up", 3))
        classifier = FewShotClassifier.from_checkpoint(path).fit(examples)
        assert classifier.predict(moving("up", 3)) == expected
        classifier.save(tmp_path / "actions.safetensors")
        assert FewShotClassifier.load(tmp_path / "actions.safetensors").predict(moving("up", 3)) == expected
        draw(classifier.explain(moving("up", 3)), tmp_path / "why.png")
