"""``fit``, ``validate`` and ``test``: Lightning's own command line over our module and data module."""

import warnings
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger

from strm_lightning.data.datamodule import EpisodeDataModule
from strm_lightning.module import STRMModule

_CSV = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs", "name": ""}}


class SaveConfig(SaveConfigCallback):
    """Save the configuration of each subcommand beside its logs, under its own name: none overwrites another."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.config_filename, self.overwrite = f"{trainer.state.fn.value if trainer.state.fn else stage}.yaml", True
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Log the trainer's options too; Lightning logs the module's and the data module's by itself."""
        for logger in trainer.loggers:
            logger.log_hyperparams({"trainer": self.config.as_dict()["trainer"]})


class STRMCLI(LightningCLI):
    """LightningCLI with our links, our checkpoints and a test behind a fit."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--test_after_fit", type=bool, default=True, help="test the best checkpoint after a fit")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LearningRateMonitor, "lr_monitor")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/accuracy",
                "checkpoint.mode": "max",
                "checkpoint.save_last": True,
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.link_arguments("data.num_frames", "model.num_frames")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's own but ``predict``, which `strm classify` does for videos."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name != "predict"}

    def before_fit(self) -> None:
        """Without validation classes there is no best checkpoint, only the last."""
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        if "val" not in self.datamodule.videos:
            for callback in self.trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint) and callback.monitor == "val/accuracy":
                    callback.monitor = None

    def after_fit(self) -> None:
        if self._get(self.config, "test_after_fit") and "test" in self.datamodule.videos:
            best = _best(self.trainer)
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False)
            self.after_test()

    def after_test(self) -> None:
        """Say in words what was found, where everything is, and what to do next."""
        if self.trainer.is_global_zero and self.model.results is not None:
            print(_summary(self.trainer, self.model, self.datamodule))


def run(arguments: list[str] | None = None) -> STRMCLI:
    """Parse and run one of Lightning's subcommands; the process's own arguments where none are given."""
    warnings.filterwarnings("ignore", module="lightning.pytorch.utilities._pytree")  # about a name in torch, not ours
    return STRMCLI(
        STRMModule,
        EpisodeDataModule,
        save_config_callback=SaveConfig,
        seed_everything_default=0,
        trainer_defaults={"logger": _CSV},
        parser_kwargs={"prog": "strm"},
        args=arguments,
    )


def _summary(trainer: L.Trainer, module: STRMModule, data: EpisodeDataModule) -> str:
    results = module.results
    assert results is not None
    best = trainer.ckpt_path or _best(trainer)
    rows = {
        "accuracy": f"{results.accuracy:.1%} ± {results.ci95:.1%}  (95 % interval; chance is {1 / data.way:.0%})",
        "episodes": f"{len(results.index)}, {data.way}-way {data.shot}-shot, on {len(data.videos['test'].class_names)} "
        "actions never seen in training",
        "checkpoint": _relative(best) if best else "none",
    }
    if trainer.log_dir:
        folder = Path(trainer.log_dir)
        rows["results"] = _relative(folder / "results.json")
        if any(isinstance(logger, CSVLogger) for logger in trainer.loggers):
            rows["metrics"] = _relative(folder / "metrics.csv")
    return "\n" + "\n".join(f"  {name:<12}{text}" for name, text in rows.items())


def _best(trainer: L.Trainer) -> str | None:
    """The best checkpoint of a fit, or the last where nothing was monitored."""
    callback = trainer.checkpoint_callback
    return (
        (callback.best_model_path or callback.last_model_path or None)
        if isinstance(callback, ModelCheckpoint)
        else None
    )


def _relative(path: str | Path) -> str:
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
