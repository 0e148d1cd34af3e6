"""Events of long videos: found at their times, with their labels, in files and in streams."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from strm_lightning.classifier import FewShotClassifier
from strm_lightning.classifier.clips import regular_frames
from strm_lightning.classifier.events import Background, EventStream, find_events, plan_windows
from strm_lightning.errors import InputError
from tests.classifier.conftest import FPS, HOW, bare_model, moving, write_video

ORDER = ("left", "up", "right", "left", "up")


def flicker(frames: int, seed: int) -> np.ndarray:
    """Noise in which nothing moves."""
    return np.random.default_rng(seed).integers(0, 60, (frames, 64, 64, 3), dtype=np.uint8)


def long_video() -> tuple[np.ndarray, list[tuple[float, float, str]]]:
    parts, truth, at = [flicker(20, 0)], [], 20
    for i, motion in enumerate(ORDER):
        parts += [moving(motion, 10 + i, frames=16), flicker(20, i + 1)]
        truth.append((at / FPS, (at + 16) / FPS, motion))
        at += 36
    return np.concatenate(parts), truth


def right(found, truth) -> int:
    def overlap(a, b) -> float:
        return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / (max(a[1], b[1]) - min(a[0], b[0]))

    return sum(any(t[2] == e.prediction.label and overlap((e.start, e.end), t) >= 0.5 for e in found) for t in truth)


def test_events_are_found_at_their_times(fitted: FewShotClassifier) -> None:
    video, truth = long_video()
    found = list(fitted.predict_events(video, fps=FPS))
    assert right(found, truth) == len(truth)
    assert len(found) == len(truth)
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert all(sum(e.prediction.probabilities.values()) == pytest.approx(1) for e in found)


def test_a_file_has_the_events_of_its_frames(fitted: FewShotClassifier, tmp_path: Path) -> None:
    video, truth = long_video()
    assert right(list(fitted.predict_events(write_video(tmp_path / "long.mp4", video, FPS))), truth) == len(truth)


def test_a_stream_has_bounded_memory(fitted: FewShotClassifier) -> None:
    video, truth = long_video()
    plan = plan_windows(fitted.support, FPS)
    stream, found, stored = EventStream(fitted.support, HOW, plan, delay=1.0), [], set()
    frames = [frame for frame, _ in regular_frames(np.concatenate([video, video]), HOW, rate=FPS, fps=FPS)]
    for step, frame in enumerate(frames):
        found += stream.push(frame[None], [step])
        stored.add(stream.stored)
    found += stream.finish()
    again = [(a + len(video) / FPS, b + len(video) / FPS, c) for a, b, c in truth]
    assert right(found, again) >= 4  # the background is known by then
    assert {maps for maps, _ in stored} == {max(plan.lengths) + 8}
    assert max(steps for _, steps in stored) <= 2 * max(plan.lengths) + FPS


def test_frames_are_encoded_once(fitted: FewShotClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    real = type(fitted.model.backbone).forward
    monkeypatch.setattr(type(fitted.model.backbone), "forward", lambda self, x: encoded.append(len(x)) or real(self, x))
    video, _ = long_video()
    list(fitted.predict_events(video, fps=FPS))
    assert sum(encoded) == len(video)


def test_lengths_follow_the_examples(fitted: FewShotClassifier) -> None:
    plan = plan_windows(fitted.support, FPS)
    assert plan.lengths[0] <= 14
    assert plan.lengths[-1] >= 19
    assert plan.lengths[-1] < 30
    middle = plan.prior[:, 0].argmax()
    assert abs(plan.lengths[middle] - 16) <= 2
    assert plan_windows(fitted.support, FPS, length=4.0).lengths[-1] == round(1.25 * 4 * FPS)


def test_arrays_have_no_duration(examples) -> None:
    classifier = FewShotClassifier(bare_model(), HOW).fit(examples)
    video, _ = long_video()
    with pytest.raises(InputError, match="--length"):
        list(classifier.predict_events(video))
    assert isinstance(list(classifier.predict_events(video, length=2.0, fps=FPS)), list)
    with pytest.raises(InputError, match="length is -1"):
        list(classifier.predict_events(video, length=-1.0))


def test_the_score_is_the_log_likelihood_ratio_of_two_normal_distributions(fitted: FewShotClassifier) -> None:
    background = Background(fitted.support)
    rng = np.random.default_rng(0)
    logits = rng.normal(0, [0.1, 0.2, 0.3], (5000, 3))
    background.add(logits[:2000])
    background.add(logits[2000:])
    own, targets = (t.numpy() for t in fitted.support.leave_one_out())
    covariance = np.cov(logits.T, bias=True)
    covariance = 0.4 * covariance + 0.6 * np.diag(np.diag(covariance))
    null = torch.distributions.MultivariateNormal(torch.tensor(logits.mean(0)), torch.tensor(covariance))
    common = np.full((3, 3), np.mean([own[i, c] for i in range(len(own)) for c in range(3) if c != targets[i]]))
    np.fill_diagonal(common, own[range(len(own)), targets].mean())
    for c in range(3):
        of_class = 0.6 * own[targets == c].mean(0) + 0.4 * common[c]  # three clips, and two like the common mean
        event = torch.distributions.MultivariateNormal(torch.tensor(of_class), torch.tensor(covariance))
        points = torch.tensor(logits[:5])
        expected = event.log_prob(points) - null.log_prob(points)
        np.testing.assert_allclose(background.ratios(logits[:5])[:, c], expected, rtol=1e-6)


def test_a_class_with_one_clip_has_the_common_mean(examples) -> None:
    classifier = FewShotClassifier(bare_model(), HOW).fit(examples)  # 3, 2 and 1 clips
    background = Background(classifier.support)
    logits, targets = (t.numpy() for t in classifier.support.leave_one_out())
    own = logits[range(len(logits)), targets].mean()
    other = (logits.sum() - logits[range(len(logits)), targets].sum()) / (2 * len(logits))
    windows = np.random.default_rng(0).normal(0, 0.1, (500, 3))
    background.add(windows)
    covariance = np.cov(windows.T, bias=True)
    covariance = 0.4 * covariance + 0.6 * np.diag(np.diag(covariance))
    direction = np.linalg.solve(covariance, np.array([other, other, own]) - windows.mean(0))
    ratios = background.ratios(np.array([[0, 0, 0], [0, 0, 1.0]]))[:, 2]
    assert ratios[1] - ratios[0] == pytest.approx(direction[2])


def test_with_one_clip_a_class_a_class_is_four_standard_deviations_away(examples) -> None:
    one = {label: clips[:1] for label, clips in examples.items()}
    background = Background(FewShotClassifier(bare_model(), HOW).fit(one).support)
    assert not background.is_known
    logits = np.random.default_rng(0).normal(0, 0.1, (300, 3))
    background.add(logits)
    assert background.is_known
    z = (logits - logits.mean(0)) / logits.std(0)
    np.testing.assert_allclose(background.ratios(logits), 4 * z - 8 + 1)


def test_the_gain_is_the_log_odds_against_background_and_other_classes(fitted: FewShotClassifier) -> None:
    plan = plan_windows(fitted.support, FPS)
    ratios = np.random.default_rng(0).normal(3, 4, plan.prior.shape)
    ratios[-1] = -np.inf  # a window before the start of the video
    ratios[0, 0] = 2000.0
    gains = plan.gains(ratios)
    weights = np.exp(ratios[1:-1] + 0.5 * plan.prior[1:-1])
    rest = np.exp(4.0) + weights.sum(1, keepdims=True) - weights
    relative = np.array(plan.lengths) / FPS / np.exp(np.mean(np.log([14 / 8, 16 / 8, 19 / 8])))
    np.testing.assert_allclose(gains[1:-1], np.log(weights / rest) * relative[1:-1, None] ** 0.5)
    assert (gains[-1] == -np.inf).all()
    assert np.isfinite(gains[0]).all()
    probabilities = plan.probabilities(gains, plan.lengths[1])
    np.testing.assert_allclose(probabilities, weights[0] / weights[0].sum())


def test_a_gap_in_time_repeats_the_last_frame(fitted: FewShotClassifier) -> None:
    video, truth = long_video()
    frames = list(regular_frames(video, HOW, rate=FPS, fps=FPS))
    kept = [(frame, step) for frame, step in frames if step % 5 != 3]  # dropped frames
    found = find_events(kept, fitted.support, HOW, plan_windows(fitted.support, FPS))
    assert right(found, truth) >= 4
