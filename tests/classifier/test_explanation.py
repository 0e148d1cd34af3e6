"""An explanation's numbers are those that made the decision."""

import numpy as np
import pytest
import torch

from strm_lightning import FewShotClassifier
from strm_lightning.classifier.clips import Preprocessing, read_clip
from tests.classifier.conftest import HOW, make_matcher, moving

MODELS = {
    "paper": {},
    "beyond the paper": {"center_clip": True, "patch_pooling": "layout", "tuple_sizes": (1, 2)},
    "released": {"variant": "official", "qc_dim": 6, "tuple_sizes": (2, 3)},
    "TRX": {"patch_enrichment": False, "frame_enrichment": False, "query_class": False, "tuple_sizes": (2, 3)},
}


@pytest.fixture(params=MODELS)
def classifier(request: pytest.FixtureRequest, examples) -> FewShotClassifier:
    return FewShotClassifier(make_matcher(**MODELS[request.param]), HOW).fit(examples)


def test_evidence_recombines_to_the_logits(classifier) -> None:
    explanation = classifier.explain(moving("left", 9))
    for label, evidence in explanation.evidence.items():
        assert evidence.trm == pytest.approx(explanation.trm[label], rel=1e-4)
        combined = evidence.trm
        if explanation.qc is not None:
            assert evidence.qc == pytest.approx(explanation.qc[label], rel=1e-4)
            combined += explanation.qc_weight * evidence.qc
        assert combined == pytest.approx(explanation.logits[label], rel=1e-4)
    logits = torch.tensor([explanation.logits[label] for label in classifier.classes_]).double()
    shares = torch.softmax(logits / classifier.calibration_.temperature, 0)
    proba = [explanation.prediction.probabilities[label] for label in classifier.classes_]
    np.testing.assert_allclose(shares.numpy(), proba, rtol=1e-3, atol=1e-6)
    assert explanation.prediction == classifier.predict(moving("left", 9))


def test_attention_makes_the_prototypes(classifier) -> None:
    """From the attention and the kept features alone, by the equations of TRX: the same distances."""
    query = moving("up", 9)
    explanation = classifier.explain(query)
    head = classifier.matcher.model.head
    with torch.no_grad():
        mine = head.tuples(classifier.matcher.model.encode(read_clip(query, HOW)))
    for label, evidence in explanation.evidence.items():
        values = classifier.support.features(label)["values"].split(head.tuple_counts, -2)
        for size, v, q in zip(evidence.sizes, values, mine.values.split(head.tuple_counts, -2), strict=True):
            assert size.attention.shape == (len(size.tuples), len(v), len(size.tuples))
            np.testing.assert_allclose(size.attention.sum((1, 2)), 1, rtol=1e-5)
            prototypes = np.einsum("tkj,kjd->td", size.attention, v.numpy())
            distances = ((q.numpy() - prototypes) ** 2).sum(-1)
            np.testing.assert_allclose(size.distances, distances, rtol=1e-3, atol=1e-5)


def test_nearest_tuples_are_qc_s(examples) -> None:
    classifier = FewShotClassifier(make_matcher(), HOW).fit(examples)
    query = examples["left"][1]
    size = classifier.explain(query).evidence["left"].sizes[0]
    # The query is one of the examples, so that is where its nearest tuples are.
    np.testing.assert_allclose(size.nearest_distances, 0, atol=1e-2)
    assert (size.nearest[:, 0] == 1).all()
    assert (size.nearest[:, 1] == np.arange(6)).all()


def test_frames_share_the_attention_of_their_tuples(classifier) -> None:
    evidence = classifier.explain(moving("left", 9)).evidence["left"]
    weights = sum(evidence.frame_weights(clip) for clip in range(3))
    assert weights.sum() == pytest.approx(1, rel=1e-4)
    assert evidence.clip_scores.sum() == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose([evidence.frame_weights(c).sum() for c in range(3)], evidence.clip_scores, rtol=1e-4)
    query, clip, frames, weight = evidence.best_match()
    size = next(s for s in evidence.sizes if s.tuples.shape[1] == len(query))
    row, column = ([tuple(t) for t in size.tuples.tolist()].index(f) for f in (query, frames))
    assert size.attention[row, clip, column] == pytest.approx(weight)
    assert weight == max(s.attention.max() for s in evidence.sizes)


def test_patch_attention_is_ple_s_own(classifier) -> None:
    explanation = classifier.explain(moving("left", 9))
    ple = classifier.matcher.model.head.ple
    if ple is None:
        assert explanation.patch_attention is None
        return
    seen = []
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        real = ple._attend
        patch.setattr(ple, "_attend", lambda x: seen.append(real(x)) or seen[-1])
        classifier.predict(moving("left", 9))
    received = seen[0][0].mean(-2).numpy().reshape(4, 4, 4)
    np.testing.assert_allclose(explanation.patch_attention, received, rtol=1e-4)
    np.testing.assert_allclose(explanation.patch_attention.sum((1, 2)), 1, rtol=1e-4)


def test_a_bare_backbone_explains_itself(bare, examples) -> None:
    classifier = FewShotClassifier(bare, Preprocessing(4, 128, 128)).fit(examples)  # a map of 4 x 4
    explanation = classifier.explain(examples["left"][2])
    for label, evidence in explanation.evidence.items():
        assert evidence.trm == pytest.approx(explanation.logits[label], rel=1e-4)
    assert explanation.qc is None
    assert explanation.best_class == "left"
    assert explanation.evidence["left"].best_clip == 2
    assert explanation.evidence["left"].best_match() is None  # all frames alike
    assert "strongest match" not in str(explanation)
    assert explanation.evidence["left"].clip_scores[2] == pytest.approx(1, rel=1e-4)
    # The square is as high as a patch row and never leaves the middle rows.
    energy = explanation.patch_attention.sum((0, 2))
    assert energy[1:3].sum() > energy[[0, 3]].sum()


def test_in_words(classifier) -> None:
    text = str(classifier.explain(moving("left", 9)))
    assert "most like" in text
    assert "strongest match: frame" in text
