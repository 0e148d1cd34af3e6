"""An explanation's numbers are those that made the decision."""

from itertools import combinations

import numpy as np
import pytest
import torch

from strm_lightning import FewShotClassifier
from strm_lightning.classifier.clips import ClipConfig, read_clip
from strm_lightning.classifier.explain.method_sentences import describe_method
from strm_lightning.episode import PooledMaps
from strm_lightning.models import STRM
from strm_lightning.models.matching.base import matching_class, matching_names, source_hash
from tests.classifier.conftest import HOW, bare_model, make_model, moving

MODELS = {
    "paper": {},
    "beyond the paper": {"center_clip": True, "patch_pooling": "layout", "tuple_sizes": (1, 2)},
    "released": {"variant": "official", "qc_dim": 6, "tuple_sizes": (2, 3)},
    "TRX": {"patch_enrichment": False, "frame_enrichment": False, "query_class": False, "tuple_sizes": (2, 3)},
}
LINEAR = {"pairs", "max", "diagonal", "linear", "chamfer", "patches"}  # in the similarities: no offset
KERNELS = {"lag_energy", "kernel_ridge", "auto"}  # sums of several parts
EXPLAINED = {*LINEAR, *KERNELS, "lag", "trm", "bi_mhm", "otam"}
METHODS = {name: (name, {}) for name in matching_names() if not source_hash(matching_class(name))}
METHODS |= {
    "otam on patches": ("otam", {"features": "patches", "debias": True, "scale": 2.0}),
    "otam on tuples": ("otam", {"tuple_size": 2, "direction": "query"}),
    "chamfer++": ("chamfer", {"shots": "joint", "tuple_size": 3, "tuple_dim": 12, "scale": 10.0, "learn_scale": True}),
    "max over shots": ("max", {"shots": "joint"}),
    "bi_mhm with positions": ("bi_mhm", {"positions": True, "eps": 0.0}),
}
BY_WEIGHT = ("trm", "chamfer++", "max over shots")  # a logit is no mean over clips
OF_ALL_CLASSES = ("ridge", *KERNELS)


@pytest.fixture(params=MODELS)
def classifier(request: pytest.FixtureRequest, examples) -> FewShotClassifier:
    return FewShotClassifier(make_model(**MODELS[request.param]), HOW).fit(examples)


def of_method(method: str, examples: dict) -> FewShotClassifier:
    name, options = METHODS[method]
    head = {} if name == "trm" else {"matching_options": options}
    return FewShotClassifier(make_model(matching=name, **head), HOW).fit(examples)


def check_sums(explanation) -> None:
    for label, evidence in explanation.evidence.items():
        named = dict(evidence.by_logit)
        combined = sum(part.logit for name, part in named.items() if name != "qc")
        for name, parts in explanation.parts.items():
            assert named[name].logit == parts[label]
        assert combined == pytest.approx(explanation.trm[label], rel=1e-4, abs=1e-5)
        assert ("qc" in named) == (explanation.qc is not None)
        if explanation.qc is not None:
            assert named["qc"].logit == pytest.approx(explanation.qc[label], rel=1e-4)
            combined += explanation.qc_weight * named["qc"].logit
        assert combined == pytest.approx(explanation.logits[label], rel=1e-4, abs=1e-5)


def test_evidence_adds_up_to_the_logits(classifier) -> None:
    explanation = classifier.explain(moving("left", 9))
    check_sums(explanation)
    logits = torch.tensor([explanation.logits[label] for label in classifier.classes_]).double()
    shares = torch.softmax(logits / classifier.calibration_.temperature, 0)
    proba = [explanation.prediction.probabilities[label] for label in classifier.classes_]
    np.testing.assert_allclose(shares.numpy(), proba, rtol=1e-3, atol=1e-6)
    assert explanation.prediction == classifier.predict(moving("left", 9))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_explains_or_shows_each_clip(method: str, examples) -> None:
    classifier = of_method(method, examples)
    explanation = classifier.explain(moving("left", 9))
    assert explanation.matching == METHODS[method][0]
    explained = METHODS[method][0] in EXPLAINED
    assert all((evidence.main is not None) == explained for evidence in explanation.evidence.values())
    assert all(np.isfinite(evidence.clip_scores).all() for evidence in explanation.evidence.values())
    if not explained:
        assert all(evidence.frame_weights(0) is None for evidence in explanation.evidence.values())
        return
    check_sums(explanation)
    for label, evidence in explanation.evidence.items():
        shots = len(examples[label])
        assert evidence.main.contributions.shape == evidence.main.weights.shape == (shots, 4, 4)
        assert (evidence.main.weights >= 0).all()
        np.testing.assert_array_equal(evidence.frame_weights(shots - 1), evidence.main.weights[-1])
        if method in BY_WEIGHT:
            np.testing.assert_allclose(evidence.clip_scores, evidence.main.weights.sum((1, 2)), rtol=1e-4)


@pytest.mark.parametrize("method", [m for m, (name, _) in METHODS.items() if name in LINEAR and m != "chamfer++"])
def test_where_similarities_are_added_each_clip_has_its_own_score(method: str, examples) -> None:
    classifier = of_method(method, examples)
    explanation = classifier.explain(moving("left", 9))
    head, clip = classifier.model.head, classifier.encode_one(moving("left", 9))[0]
    for label, evidence in explanation.evidence.items():
        assert evidence.main.offset == pytest.approx(0, abs=1e-5)
        features = classifier.support.features(label)
        scores = head.clip_scores(features, {name: tensor[None] for name, tensor in clip.features.items()})
        if scores is not None:  # one score for all clips together with joint shots
            shares = evidence.main.contributions.sum((1, 2)) * len(features[next(iter(features))])
            torch.testing.assert_close(shares, scores[0], rtol=1e-4, atol=1e-5)


def test_the_path_of_otam_is_what_is_drawn(examples) -> None:
    """With the hard minimum, minus the logit is the number of cells on both paths minus their similarities."""
    classifier = FewShotClassifier(bare_model("otam", smoothing=0.0, features="patches"), HOW).fit(examples)
    explanation = classifier.explain(examples["left"][1])
    evidence = explanation.evidence["left"].main
    assert evidence.offset == pytest.approx(-float(evidence.weights.sum()), rel=1e-4)
    weights = evidence.weights[1] * len(examples["left"])  # the query itself: each frame is matched with itself
    torch.testing.assert_close(weights.diagonal(), torch.full((4,), 2.0))
    assert explanation.evidence["left"].main.kind == "alignment"


@pytest.mark.parametrize("method", [m for m in METHODS if m not in (*BY_WEIGHT, *OF_ALL_CLASSES)])
def test_clips_have_the_scores_that_they_have_alone(method: str, examples) -> None:
    classifier = of_method(method, examples)
    explanation = classifier.explain(moving("left", 9))
    for label, evidence in explanation.evidence.items():
        for k, video in enumerate(examples[label]):
            alone = FewShotClassifier(classifier.model, HOW).fit({**examples, label: [video]})
            logit = alone.explain(moving("left", 9)).logits[label]
            assert evidence.clip_scores[k] == pytest.approx(logit, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", sorted(KERNELS))
def test_sums_of_kernels_explain_each_part(method: str, examples) -> None:
    explanation = of_method(method, examples).explain(moving("left", 9))
    assert set(explanation.parts) >= {"lag", "energy"}
    assert "same motion at about the same time" in str(explanation)
    for evidence in explanation.evidence.values():
        of_clips = sum(part.contributions.sum((1, 2)).numpy() for part in evidence.by_logit.values())
        np.testing.assert_allclose(evidence.clip_scores, of_clips, rtol=1e-5)


def test_where_a_logit_depends_on_all_classes_each_clip_is_a_class_among_all_clips(examples) -> None:
    method = "ridge"
    classifier = of_method(method, examples)
    explanation = classifier.explain(moving("left", 9))
    apart = {f"{label} {k}": [video] for label, videos in examples.items() for k, video in enumerate(videos)}
    logits = FewShotClassifier(classifier.model, HOW).fit(apart).explain(moving("left", 9)).logits
    for label, evidence in explanation.evidence.items():
        expected = [logits[f"{label} {k}"] for k in range(len(examples[label]))]
        np.testing.assert_allclose(evidence.clip_scores, expected, rtol=1e-4, atol=1e-5)
        # linear in the labels, so the clips of a class add up to its logit
        assert evidence.clip_scores.sum() == pytest.approx(explanation.logits[label], rel=1e-4)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("trm", "linear", *OF_ALL_CLASSES)])
def test_the_best_clip_is_the_query_itself(method: str, examples) -> None:
    name, options = METHODS[method]
    torch.manual_seed(0)
    model = STRM("test_resnet", pretrained=False, num_frames=4, matching=name, matching_options=options)
    explanation = FewShotClassifier(model, HOW).fit(examples).explain(examples["left"][1])
    assert explanation.evidence["left"].best_clip == 1


def test_another_method_with_qc_has_evidence_of_qc_only(examples) -> None:
    model = make_model(matching="mean", query_class=True)
    explanation = FewShotClassifier(model, HOW).fit(examples).explain(moving("left", 9))
    for label, evidence in explanation.evidence.items():
        assert set(evidence.by_logit) == {"qc"}
        assert evidence.by_logit["qc"].logit == pytest.approx(explanation.qc[label], rel=1e-4)
        assert evidence.main is None  # that of the mean; the lines of a picture would be those of QC
        assert evidence.frame_weights(0) is None


def test_attention_makes_the_prototypes(classifier) -> None:
    """From the encoded tensors alone, tuple by tuple, by the equations of TRX."""
    query = moving("up", 9)
    explanation = classifier.explain(query)
    head, sizes = classifier.model.head, classifier.model.head.tuple_sizes
    with torch.no_grad():
        mine = head.encode(classifier.model.encode(read_clip(query, HOW)))
    counts = head.matching.tuple_counts
    for label, evidence in explanation.evidence.items():
        clips = classifier.support.features(label)
        contributions, weights = np.zeros_like(evidence.main.contributions), np.zeros_like(evidence.main.weights)
        best = 0.0
        for i, size in enumerate(sizes):
            tuples = list(combinations(range(4), size))
            keys, values = (clips[name].split(counts, -2)[i] for name in ("keys", "values"))
            q_keys, q_values = (mine[name].split(counts, -2)[i] for name in ("keys", "values"))
            scores = torch.einsum("td,kjd->tkj", q_keys, keys) / keys.shape[-1] ** 0.5
            attention = scores.flatten(1).softmax(1).view_as(scores)
            best = max(best, float(attention.max()))
            for t, frames in enumerate(tuples):
                prototype = torch.einsum("kj,kjd->d", attention[t], values)
                distance = float((q_values[t] - prototype).square().sum())
                for k in range(len(values)):
                    for j, others in enumerate(tuples):
                        share = float(attention[t, k, j]) / len(tuples) / len(sizes) / size
                        for a, b in zip(frames, others, strict=True):
                            weights[k, a, b] += share
                            contributions[k, a, b] -= share * distance
        np.testing.assert_allclose(evidence.main.weights, weights, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(evidence.main.contributions, contributions, rtol=1e-3, atol=1e-4)
        assert evidence.main.weights.sum() == pytest.approx(1, rel=1e-4)
        assert evidence.clip_scores.sum() == pytest.approx(1, rel=1e-4)
        assert evidence.main.kind == "attention"
        steps, clip, others, weight = evidence.main.strongest
        assert weight == pytest.approx(best, rel=1e-4)
        i = sizes.index(len(steps))
        tuples = list(combinations(range(4), sizes[i]))
        q_key = mine["keys"].split(counts, -2)[i][tuples.index(steps)]
        keys = clips["keys"].split(counts, -2)[i]
        attention = (keys @ q_key / len(q_key) ** 0.5).flatten().softmax(0).view(keys.shape[:2])
        assert float(attention[clip, tuples.index(others)]) == pytest.approx(weight, rel=1e-4)


def test_nearest_tuples_are_qc_s(examples) -> None:
    classifier = FewShotClassifier(make_model(), HOW).fit(examples)
    qc = classifier.explain(examples["left"][1]).evidence["left"].by_logit["qc"]
    # The query is one of the examples, so that is where its nearest tuples are.
    assert qc.logit == pytest.approx(0, abs=1e-2)
    expected = np.zeros((3, 4, 4))
    for a, b in combinations(range(4), 2):
        for frame in (a, b):
            expected[1, frame, frame] += 1 / 6 / 2
    np.testing.assert_allclose(qc.weights, expected, atol=1e-6)


def test_patch_weights_are_the_attention_of_ple(classifier) -> None:
    head, (_, pixels) = classifier.model.head, classifier.encode_one(moving("left", 9))
    maps = classifier.model.pool(pixels)
    weights = head.patch_weights(maps)
    assert (weights is None) == (head.ple is None)
    if head.ple is not None:
        received = head.ple.attention(head.project(maps.grid)).mean(-2).view(4, 4, 4)
        torch.testing.assert_close(weights, received)
        torch.testing.assert_close(weights.sum((1, 2)), torch.ones(4))


@pytest.mark.parametrize("matching", ["patches", "lag", "lag_energy"])
def test_the_lead_depends_on_the_patches_of_the_mover(matching: str) -> None:
    """Twice the heat that the share of these patches would have by chance."""
    classifier = FewShotClassifier(bare_model(matching), ClipConfig(4, 128, 128))  # a map of 4 x 4
    classifier.fit({motion: [moving(motion, seed) for seed in range(2)] for motion in ("left", "right", "up")})
    for seed in (7, 8, 9):
        explanation = classifier.explain(moving("left", seed))
        pixels = torch.from_numpy(explanation.frames).float()
        moved = (pixels - pixels.median(0).values).abs().mean(1)
        grid = torch.nn.functional.adaptive_avg_pool2d(moved, 4).flatten(1)
        mover = grid >= 0.25 * grid.amax(1, keepdim=True)
        heat = torch.from_numpy(explanation.patch_importance).clamp_min(0).flatten(1)
        assert heat[mover].sum() / heat.sum() > 2 * mover.float().mean(), seed


def test_importance_is_the_change_of_the_lead(classifier, examples) -> None:
    """One patch occluded by hand, with the mean of the frame that follows from it."""
    explanation = classifier.fit(examples).explain(moving("left", 9))
    _, pixels = classifier.encode_one(moving("left", 9))
    maps, head, labels = classifier.model.pool(pixels), classifier.model.head, classifier.support.labels
    grid, mean = maps.grid.clone(), maps.mean.clone()
    new = maps.grid[:, 5].median(0).values
    mean[2] += (new - grid[2, 5]) / grid.shape[1]
    grid[2, 5] = new
    with torch.no_grad():
        encoded = head.encode(head.enrich_pooled(PooledMaps(grid=grid[None], mean=mean[None])))
        logits = dict(zip(labels, classifier.support.match(encoded).combined(0.1)[0].tolist(), strict=True))
    best, rival = explanation.best_class, explanation.rival
    lead = explanation.logits[best] - explanation.logits[rival]
    expected = lead - (logits[best] - logits[rival])
    assert explanation.patch_importance[2, 1, 1] == pytest.approx(expected, rel=1e-2, abs=2e-4)


def test_sentences_fit_the_method(classifier, examples) -> None:
    sentences = " ".join(classifier.fit(examples).explain(moving("left", 9)).sentences())
    trained = classifier.model.head.matching_name == "trm"
    assert ("by attention" in sentences) == trained
    assert ("The strongest match is frame" in sentences) == trained
    assert ("What changes at each place of the frame" in sentences) == (not trained)
    assert "evidence for" in sentences
    classifier.set_params(threshold=1.0)
    assert classifier.explain(moving("left", 9)).sentences()[0].startswith("unknown: ")


def test_every_method_has_its_sentence() -> None:
    for name in matching_names():
        if matching_class(name).__module__.startswith("strm_lightning."):
            assert describe_method(name) != describe_method("mine").replace("mine", name)
    assert "'mine'" in describe_method("mine")


def test_a_backbone_without_training_explains_itself(bare, examples) -> None:
    classifier = FewShotClassifier(bare, ClipConfig(4, 128, 128)).fit(examples)
    explanation = classifier.explain(examples["left"][2])
    check_sums(explanation)
    assert explanation.qc is None
    assert explanation.best_class == "left"
    evidence = explanation.evidence["left"]
    assert evidence.best_clip == 2
    assert evidence.clip_scores[2] == pytest.approx(1, rel=1e-4)
    assert evidence.main.contributions.sum((1, 2))[2] == pytest.approx(1 / 3, rel=1e-4)  # a cosine of 1, of 3 clips
    assert evidence.main.strongest is None
    assert "strongest match" not in str(explanation)
    off_diagonal = evidence.main.weights - torch.diag_embed(evidence.main.weights.diagonal(dim1=1, dim2=2))
    assert not off_diagonal.any()


def test_in_words(classifier) -> None:
    text = str(classifier.explain(moving("left", 9)))
    assert "most like" in text
    assert "strongest match: frame" in text
    assert "(attention 0." in text
