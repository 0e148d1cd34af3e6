"""Example episodes and the plots of a test reach the loggers, with the step of the weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from strm_lightning.data.loaders import EpisodeDataset
from strm_lightning.errors import InputError
from strm_lightning.evaluation import episode_picture
from strm_lightning.training import example_episodes
from strm_lightning.training.example_episodes import ExampleEpisodes
from tests.evaluation.test_logged_pictures import Board, Writer
from tests.test_module import data, module, trainer, weights
from tests.test_module import pytestmark as pytestmark

pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")


class Steps(CSVLogger):
    """A logger with W&B's ``log_image``."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[tuple[str, str, int | None]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None, **options: Any) -> None:
        self.seen.append((key, images[0], step))


def test_episodes_are_logged_at_the_start_of_training_and_of_a_test(actions: Path, tmp_path: Path) -> None:
    steps, board = Steps(tmp_path, "steps"), Board(tmp_path, "board")
    board.writer = Writer()
    run = trainer(tmp_path, logger=[steps, board], callbacks=[ExampleEpisodes(2)], max_epochs=1, log_every_n_steps=1)
    model, episodes = module(), data(actions)
    run.fit(model, datamodule=episodes)
    assert [(key, step) for key, _, step in steps.seen] == [(f"examples/val-episode-{i}", 0) for i in range(2)]
    run.save_checkpoint(tmp_path / "a.ckpt")

    fresh = trainer(tmp_path, logger=[steps, board], callbacks=[ExampleEpisodes(1)])
    steps.seen.clear()
    fresh.test(module(), datamodule=data(actions), ckpt_path=str(tmp_path / "a.ckpt"), verbose=False, weights_only=True)
    assert [(key, step) for key, _, step in steps.seen] == [
        ("examples/test-episode-0", 4), ("test/confusion", 4), ("test/per-class", 4), ("test/learning-curve", 4),
    ]  # fmt: skip
    assert {board.writer.steps[key] for key, _, _ in steps.seen} == {4}
    for key, path, _ in steps.seen:
        with Image.open(path) as image:
            np.testing.assert_array_equal(board.writer.images[key], np.asarray(image.convert("RGB")))


def test_training_is_the_same_with_pictures(actions: Path, tmp_path: Path) -> None:
    trained = []
    for count in (0, 1):
        model = module()
        logger = Steps(tmp_path, str(count))
        run = trainer(tmp_path, logger=logger, callbacks=[ExampleEpisodes(count)], max_epochs=1, log_every_n_steps=1)
        run.fit(model, datamodule=data(actions))
        assert len(logger.seen) == count
        trained.append(weights(model))
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_the_picture_shows_labels_and_predictions(actions: Path) -> None:
    episodes = data(actions, way=3)
    episodes.prepare_data()
    episodes.setup("test")
    episode = EpisodeDataset(episodes.generator("test"), episodes.reader("test"))[0]
    names = episodes.videos["test"].class_names
    labels = [names[i] for i in episode.class_ids.tolist()]
    figure = episode_picture.episode_figure(episode, names, [1] * len(episode.query_labels), "title")
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == labels
    titles = [title for axes in figure.axes if (title := axes.get_title(loc="left"))]
    assert titles == [f"predicted: {labels[1]}"] * 3
    clip = episode.support[0, 0]
    first, *_, last = episode_picture.frames(clip, 4)
    np.testing.assert_array_equal(first, clip[0].permute(1, 2, 0))
    np.testing.assert_array_equal(last, clip[-1].permute(1, 2, 0))


def test_predictions_are_those_of_the_model(actions: Path) -> None:
    episodes, model = data(actions), module()
    episodes.prepare_data()
    episodes.setup("test")
    episode = EpisodeDataset(episodes.generator("test"), episodes.reader("test"))[0]
    model.train()
    found = example_episodes._predict(model, episode)
    assert model.training
    assert model.model.backbone.training
    model.eval()
    with torch.no_grad():
        expected = model(episode.support, episode.query).combined(model.qc_weight).argmax(-1)
    assert found == expected.tolist()


def test_nothing_is_computed_for_loggers_without_images(
    actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example_episodes, "_predict", lambda *_: pytest.fail("predicted"))
    run = trainer(tmp_path, logger=CSVLogger(tmp_path), callbacks=[ExampleEpisodes()], max_steps=1, log_every_n_steps=1)
    run.fit(module(), datamodule=data(actions))
    with pytest.raises(InputError, match="episodes is -1"):
        ExampleEpisodes(-1)
