"""Callback that logs example episodes as pictures at the start of training and the end of a test."""

from importlib.util import find_spec

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from strm_lightning.data.datamodule import EpisodeDataModule
from strm_lightning.data.loaders import EpisodeDataset
from strm_lightning.data.splits.stages import Stage
from strm_lightning.episode import Episode
from strm_lightning.evaluation.episode_picture import episode_figure
from strm_lightning.evaluation.pictures import image_functions, save_figures
from strm_lightning.evaluation.report import run_folder
from strm_lightning.messages import check_not_negative
from strm_lightning.training.module import STRMModule


class ExampleEpisodes(L.Callback):
    """Log the first episodes, at the start of training and the end of a test: support, query, label and prediction.

    In training they are validation episodes (training episodes without validation classes), with the predictions of
    the initial weights. Only loggers that take images, such as ``WandbLogger`` and ``TensorBoardLogger``, get them;
    nothing is computed for other loggers, without matplotlib, or with strategies that shard the model. The pictures are
    also in the folder of the run.

    Args:
        episodes: number of episodes; 0 for none.

    Raises:
        InputError: the number is negative.
    """

    def __init__(self, episodes: int = 2) -> None:
        check_not_negative(episodes=episodes)
        self.episodes = episodes

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        videos = getattr(getattr(trainer, "datamodule", None), "videos", {})
        self._log(trainer, pl_module, "val" if "val" in videos else "train", trainer.global_step)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = pl_module.tested_step if isinstance(pl_module, STRMModule) else 0
        self._log(trainer, pl_module, "test", step)

    def _log(self, trainer: L.Trainer, module: L.LightningModule, stage: Stage, step: int) -> None:
        data = getattr(trainer, "datamodule", None)
        whole = isinstance(trainer.strategy, (DDPStrategy, SingleDeviceStrategy))
        if not (trainer.is_global_zero and whole and isinstance(data, EpisodeDataModule)):
            return
        if not isinstance(module, STRMModule) or stage not in data.videos or not find_spec("matplotlib"):
            return
        functions = image_functions(trainer.loggers)
        if not functions:
            return
        dataset = EpisodeDataset(data.generator(stage), data.reader(stage))
        names = data.videos[stage].class_names
        for index in range(self.episodes):
            episode = dataset[index]
            title = f"{stage} episode {index}, step {step}"
            figure = episode_figure(episode, names, _predict(module, episode), title)
            (path,) = save_figures({f"{stage}-episode-{index}": figure}, run_folder(trainer))
            for log in functions:
                log(f"examples/{path.stem}", path, step)


def _predict(module: STRMModule, episode: Episode) -> list[int]:
    """Predict the queries of an episode in evaluation mode, without gradients; the mode is restored."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            on_device = episode.batched().to(module.device)
            assert on_device.support is not None
            assert on_device.query is not None
            logits = module.model(on_device.support, on_device.query).combined(module.qc_weight)
    finally:
        for part in training:
            part.training = True
    return [int(label) for label in logits[0].argmax(-1)]
