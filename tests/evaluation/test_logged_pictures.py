"""The plots of a test reach the loggers that take images."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image

from strm_lightning.evaluation import pictures
from tests.test_module import data, module, trainer
from tests.test_module import pytestmark as pytestmark

KEYS = ["test/confusion", "test/per-class"]


class Writer:
    """Keeps the images that it gets, as TensorBoard's SummaryWriter does."""

    def __init__(self) -> None:
        self.images: dict[str, np.ndarray] = {}
        self.steps: dict[str, int | None] = {}

    def add_image(self, tag: str, image: Any, global_step: int | None = None, *, dataformats: str = "CHW") -> None:
        self.steps[tag] = global_step
        self.images[tag] = image if dataformats == "HWC" else image.transpose(1, 2, 0)


class Board(CSVLogger):
    """A logger with an experiment like TensorBoard's."""

    writer = Writer()

    @property
    def experiment(self) -> Any:
        return self.writer

    def save(self) -> None:
        """Not to CSV."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Not to CSV."""

    def log_hyperparams(self, params: Any = None) -> None:
        """Not to CSV."""


class Paths(CSVLogger):
    """A logger with ``log_image``, as W&B's."""

    def log_image(self, key: str, images: list[Any]) -> None:
        self.seen = {**getattr(self, "seen", {}), key: images}


def run(actions: Path, folder: Path, loggers: list[Any]) -> None:
    run = trainer(folder, logger=loggers)
    run.test(module(matching="patches"), datamodule=data(actions, test_episodes=4), verbose=False)


def test_loggers_get_the_plots_of_a_test(actions: Path, tmp_path: Path) -> None:
    csv, board, paths = CSVLogger(tmp_path, "csv"), Board(tmp_path, "board"), Paths(tmp_path, "paths")
    board.writer = Writer()
    run(actions, tmp_path, [csv, board, paths])
    assert list(board.writer.images) == list(paths.seen) == KEYS
    for key, (path,) in paths.seen.items():
        assert path == str(Path(csv.log_dir) / f"{key.removeprefix('test/')}.png")
        with Image.open(path) as image:
            np.testing.assert_array_equal(board.writer.images[key], np.asarray(image.convert("RGB")))
        assert board.writer.images[key].std() > 5  # the plot, not a blank


def test_nothing_is_drawn_for_loggers_without_images(
    actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "draw", lambda *_: pytest.fail("drawn"))
    run(actions, tmp_path, [CSVLogger(tmp_path), DummyLogger()])
    L.Trainer(
        accelerator="cpu",
        fast_dev_run=True,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        logger=Paths(tmp_path),
    ).test(module(matching="patches"), datamodule=data(actions), verbose=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_tensorboard_gets_them(actions: Path, tmp_path: Path) -> None:
    try:
        logger = TensorBoardLogger(tmp_path)
    except ModuleNotFoundError:
        pytest.skip("neither tensorboard nor tensorboardX is installed")
    run(actions, tmp_path, [logger])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged = EventAccumulator(logger.log_dir).Reload()
    assert set(logged.Tags()["images"]) == set(KEYS)
    for key in KEYS:
        (image,) = logged.Images(key)
        assert image.step == 0
        assert image.encoded_image_string.startswith(b"\x89PNG")
