"""Intervals over episodes, clips and classes: a literal jackknife, their limits, and how often they hold."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strm_lightning.evaluation.intervals import (
    all_intervals,
    clip_design,
    difference_intervals,
    over_classes,
    over_clips,
    over_episodes,
)
from strm_lightning.evaluation.jackknife import ClipDesign
from strm_lightning.evaluation.results import EpisodeResults

SCRIPT = Path(__file__).parents[2] / "experiments/benchmarks/coverage.py"


def episodes(
    *,
    classes: int = 4,
    clips: int = 7,
    way: int = 3,
    shot: int = 2,
    queries: int = 2,
    number: int = 3000,
    seed: int = 0,
) -> dict[str, Any]:
    """Draw the classes and clips of episodes."""
    rng = np.random.default_rng(0)
    labels = np.argsort(rng.random((number, classes)), 1)[:, :way]
    order = np.argsort(rng.random((number, way, clips)), 2)[:, :, : shot + queries] + clips * labels[..., None]
    return {
        "index": np.arange(number),
        "actual": labels.repeat(queries, 1),
        "classes": labels,
        "support": order[:, :, :shot],
        "query": order[:, :, shot:].reshape(number, -1),
    }


def results(right: np.ndarray, drawn: dict[str, Any]) -> EpisodeResults:
    """Results with these right predictions."""
    return EpisodeResults(predicted=np.where(right > 0, drawn["actual"], -1), **drawn)


def answers(drawn: dict[str, Any], seed: int = 1) -> np.ndarray:
    """Right or wrong answers that depend on the query, on the support clips of its class, and on luck."""
    rng = np.random.default_rng(seed)
    ease, use = rng.normal(size=(2, 1000))
    own = np.take_along_axis(use[drawn["support"]].mean(2), np.argmax(
        drawn["classes"][:, None] == drawn["actual"][..., None], -1), 1)  # fmt: skip
    score = 1 + ease[drawn["query"]] + own + rng.normal(size=drawn["query"].shape)
    return (score > 0).astype(float)


@pytest.mark.parametrize("shape", [{}, {"classes": 3}, {"classes": 2, "way": 2, "shot": 1}, {"queries": 1}])
def test_the_variance_over_clips_is_that_of_a_literal_jackknife(shape: dict[str, Any]) -> None:
    drawn = episodes(**shape)
    right = answers(drawn)
    way = drawn["classes"].shape[1]
    groups = drawn["index"] % 8
    total = 0.0
    for label in np.unique(drawn["classes"]):
        members = np.unique(drawn["query"][drawn["actual"] == label])
        share = (drawn["classes"] == label).any(1).mean()
        for clip in members:
            changes = []
            for group in range(8):
                mine = (groups == group) & (drawn["classes"] == label).any(1)
                kept = ~(drawn["support"] == clip).any((1, 2))[:, None] & (drawn["query"] != clip)
                own = drawn["actual"] == label
                parts = [
                    right[mine[:, None] & kept & which].mean() - right[mine[:, None] & which].mean()
                    for which in (own, ~own)
                ]
                changes.append(share * (parts[0] + (way - 1) * parts[1]) / way)
            products = np.outer(changes, changes)
            n = len(members)
            total += (n - 1) / n * (products.sum() - np.trace(products)) / 56
    found = ClipDesign(drawn["classes"], drawn["support"], drawn["query"], drawn["actual"]).variance(right)
    assert found.value == pytest.approx(total, rel=1e-9)
    assert 0 < found.error < found.value


def test_without_an_effect_of_clips_the_variance_is_zero_within_its_error() -> None:
    drawn = episodes()
    design = ClipDesign(drawn["classes"], drawn["support"], drawn["query"], drawn["actual"])
    rng = np.random.default_rng(0)
    found = [design.variance((rng.random(drawn["actual"].shape) < 0.7).astype(float)) for _ in range(40)]
    mean = np.mean([variance.value for variance in found])
    # A jackknife with squares instead of products would have the mean of the noise, far above this.
    assert abs(mean) < 3 * np.std([variance.value for variance in found]) / 40**0.5
    # The jackknife over groups is conservative where there is nothing but noise.
    assert 0.8 < np.mean([v.error for v in found]) / np.std([v.value for v in found]) < 2


def test_the_interval_over_clips_is_wider_and_that_over_classes_wider_still() -> None:
    drawn = episodes(classes=8, way=3)
    right = answers(drawn)
    right = np.where((drawn["actual"] % 4 == 0) & (np.random.default_rng(0).random(right.shape) < 0.7), 0.0, right)
    found = all_intervals(results(right, drawn))
    widths = [found[name]["ci95"] for name in ("episodes", "clips", "classes")]
    assert 3 * widths[0] < widths[1] < widths[2]
    assert [found[name]["number"] for name in found] == [3000, 56, 8]


def test_what_cannot_be_known_is_said() -> None:
    drawn = episodes(classes=3)
    right = answers(drawn)
    assert over_classes(right, results(right, drawn)).unknown == "all episodes have the same 3 classes"
    bare = EpisodeResults(drawn["index"], drawn["actual"], drawn["actual"])
    assert over_clips(bare.right, clip_design(bare)).unknown == "the results do not contain the clips of the episodes"
    few = episodes(clips=3, shot=2, queries=1, classes=3)
    assert (
        "a class has 3 clips; 2-shot needs 4"
        in over_clips(answers(few), clip_design(results(answers(few), few))).unknown
    )
    short = episodes(number=40, clips=20)
    unknown = over_clips(answers(short), clip_design(results(answers(short), short)))
    assert unknown.ci95 is None
    assert unknown.unknown == "40 episodes are too few; raise data.test_episodes"
    single = episodes(number=3)  # fewer than groups
    found = all_intervals(results(answers(single), single))
    assert [found[name]["ci95"] for name in ("clips", "classes")] == [None, None]


def test_a_perfect_accuracy_has_an_interval_over_clips() -> None:
    drawn = episodes(classes=3)
    right = np.ones(drawn["actual"].shape)
    assert over_episodes(right).ci95 == 0
    width = over_clips(right, clip_design(results(right, drawn))).ci95
    assert width is not None
    assert 0.05 < width < 0.15  # 21 clips: one that fails more or less is possible


def test_a_difference_of_equal_predictions_is_zero_and_of_others_narrower_than_the_accuracies() -> None:
    drawn = episodes(classes=8)
    first = results(answers(drawn), drawn)
    better = np.maximum(first.right, np.random.default_rng(3).random(first.right.shape) < 0.2)
    second = results(better, drawn)
    paired, own = difference_intervals(first, second), all_intervals(first)
    assert paired["clips"]["ci95"] < 0.7 * own["clips"]["ci95"]
    assert difference_intervals(first, first)["episodes"]["ci95"] == 0


def _coverage() -> Any:
    spec = importlib.util.spec_from_file_location("coverage_of_intervals", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_simulation_measures_all_intervals() -> None:
    coverage = _coverage()
    case = coverage.Case(6, 6, 1, 1.0, way=3, queries=2, episodes=400)
    found = coverage.measure(case, 20, populations=2)
    assert found["clips known"] > 0.8
    assert found["clips coverage"] > 0.7
    assert found["clips width"] > 2 * found["episodes for clips width"]
    assert found["classes width"] > found["clips width"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_the_interval_over_clips_covers_as_it_says(number: int) -> None:
    coverage = _coverage()
    found = coverage.measure(coverage.CASES[number], 400, seed=50 + number)
    assert 0.92 <= found["clips coverage"] <= 0.99
    assert found["episodes coverage"] > 0.9
    assert found["episodes for clips coverage"] < 0.5
