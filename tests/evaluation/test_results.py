"""Numbers derived from predictions, held against torchmetrics, scikit-learn and arithmetic by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from strm_lightning.episode import Episode
from strm_lightning.evaluation.accuracy import EpisodeAccuracy
from strm_lightning.evaluation.results import EpisodeResults
from strm_lightning.evaluation.results_file import load_results, results_of, save_results
from tests.evaluation.documents import CLASSES, document, random_results


def test_accuracy_and_interval_are_the_fields() -> None:
    results = EpisodeResults(np.arange(4), np.array([[0, 1], [0, 0], [2, 1], [1, 1]]), np.array([[0, 1]] * 4))
    assert results.per_episode.tolist() == [1.0, 0.5, 0.5, 0.5]
    assert results.accuracy == pytest.approx(0.625)
    sigma = (np.array([0.375, 0.125, 0.125, 0.125]) ** 2).mean() ** 0.5
    assert results.ci95 == pytest.approx(1.96 * sigma / 2)


def test_confusion_is_scikit_learns() -> None:
    results = random_results(0.4)
    expected = confusion_matrix(results.actual.ravel(), results.predicted.ravel(), labels=range(5))
    np.testing.assert_array_equal(results.confusion(5), expected)


def test_accuracy_of_a_class_is_over_the_episodes_that_have_it() -> None:
    results, rows = random_results(0.6), random_results(0.6).by_class(CLASSES)
    counts = results.confusion(5)
    for label, name in enumerate(CLASSES):
        # All episodes have as many queries of each class, so the mean over episodes is that over queries.
        assert rows[name]["accuracy"] == pytest.approx(counts[label, label] / counts[label].sum())
        assert rows[name]["queries"] == counts[label].sum()
        episodes = (results.actual == label).any(1)
        assert rows[name]["ci95"] == pytest.approx(
            1.96 * results.of_class(label).std() / np.sqrt(episodes.sum()), rel=1e-6
        )
    assert "never drawn" not in random_results(0.6).by_class([*CLASSES, "never drawn"])


def test_a_record_puts_episodes_in_order_and_leaves_out_padding() -> None:
    record = EpisodeAccuracy(num_episodes=3)
    for index in ([2, 3], [1, 0]):
        zeros = torch.zeros(2, 2, dtype=torch.long)
        episode = Episode(
            support_ids=zeros[..., None], query_ids=zeros, query_labels=torch.tensor([[0, 1], [1, 0]]),
            class_ids=torch.tensor([[7, 5], [4, 6]]), index=torch.tensor(index), support_views=zeros[..., None],
            query_views=zeros,
        )  # fmt: skip
        record.update(torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]]), episode)
    results = record.results()
    assert results.index.tolist() == [0, 1, 2]
    assert results.actual.tolist() == [[6, 4], [7, 5], [7, 5]]
    assert results.predicted.tolist() == [[6, 6], [7, 7], [7, 7]]


def test_results_survive_their_file(tmp_path: Path) -> None:
    results = random_results(0.5)
    path = save_results(tmp_path, document(results))
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]  # nothing half written is left
    loaded = results_of(load_results(tmp_path))
    np.testing.assert_array_equal(loaded.predicted, results.predicted)
    np.testing.assert_array_equal(loaded.index, results.index)
    assert json.loads(path.read_text())["accuracy"] == results.accuracy


def test_files_that_are_none_of_ours_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "other.json").write_text('{"accuracy": 1}')
    with pytest.raises(FileNotFoundError, match="strm test"):
        load_results(tmp_path)
    with pytest.raises(ValueError, match=r"list\.json is not a results"):
        load_results(tmp_path / "list.json")
    with pytest.raises(ValueError, match="it has no card, checkpoint, ci95"):
        load_results(tmp_path / "other.json")
