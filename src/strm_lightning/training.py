"""``fit``, ``validate`` and ``test``: Lightning's own command line over our module and data module."""

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # as Lightning's own init_parser does
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from strm_lightning.checkpoints import LastCheckpoint, check_checkpoint
from strm_lightning.data.datamodule import EpisodeDataModule
from strm_lightning.errors import InputError
from strm_lightning.evaluation.plots import METRICS, draw
from strm_lightning.evaluation.report import RESULTS, run_folder
from strm_lightning.evaluation.tables import plain_table
from strm_lightning.module import STRMModule
from strm_lightning.parsing import Parser

_CSV = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs", "name": ""}}


class _Parser(Parser, LightningArgumentParser):
    """Lightning's parser, with errors of one line."""


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

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = _Parser(**kwargs)
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="a YAML file of options; later ones win")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        options = self.config[self.config["subcommand"]]
        if options["ckpt_path"]:
            check_checkpoint(options["ckpt_path"])
        if options.get("weights_only") is False:
            raise InputError("--weights_only=false: checkpoints are tensors and plain values; leave it out")
        options["weights_only"] = True

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--test_after_fit", type=bool, default=True, help="test the best checkpoint after a fit")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LearningRateMonitor, "lr_monitor")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
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
        elif self.trainer.is_global_zero and find_spec("matplotlib") and (run_folder(self.trainer) / METRICS).is_file():
            print("\n".join(f"  {'picture':<12}{_relative(path)}" for path in draw([run_folder(self.trainer)])))

    def after_test(self) -> None:
        """Draw what was found, and say in words what it is and where everything is."""
        if self.trainer.is_global_zero and self.model.report is not None:
            for logger in self.trainer.loggers:
                logger.log_hyperparams({"card": self.model.report["card"]})
            folder = run_folder(self.trainer)
            pictures = draw([folder]) if find_spec("matplotlib") else []
            print(_summary(self.model.report, folder, pictures))


def run(arguments: list[str] | None, commands: dict[str, str]) -> STRMCLI:
    """Parse and run one of Lightning's subcommands.

    Args:
        arguments: the command line; None for the process's own.
        commands: what each subcommand does, for its help.
    """
    warnings.filterwarnings("ignore", module="lightning.pytorch.utilities._pytree")  # about a name in torch, not ours
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)
    usage = "strm {} [--config FILE ...] [--OPTION=VALUE ...]"
    return STRMCLI(
        STRMModule,
        EpisodeDataModule,
        save_config_callback=SaveConfig,
        seed_everything_default=0,
        trainer_defaults={"logger": _CSV},
        parser_kwargs={"prog": "strm"}
        | {name: {"description": text, "usage": usage.format(name)} for name, text in commands.items()},
        auto_configure_optimizers=False,  # optimiser and schedule are options of the module, kept in its checkpoints
        args=arguments,
    )


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of Lightning's says something of this run; tips and devices that are not there do not."""
    return not str(record.msg).startswith(("💡", "TPU available: False", "GPU available: False"))


def _summary(report: dict[str, Any], folder: Path, pictures: list[Path]) -> str:
    card, way = report["card"], report["way"]
    checkpoint = card["checkpoint"]
    warning = "" if checkpoint["chosen_on"] != "test" else ", CHOSEN ON THE TEST SPLIT: not a fair number"
    training = checkpoint["training"] or {}
    same_split = all(training.get(name) == card["data"][name] for name in ("root", "split", "split_seed"))
    unseen = " never seen in training" if same_split else ""
    source = _relative(checkpoint["path"]) if checkpoint["path"] else "none: the weights that the model starts with"
    rows = {
        "accuracy": f"{report['accuracy']:.1%} ± {report['ci95']:.1%}  (95 % interval; chance is {1 / way:.0%})",
        "episodes": f"{report['episodes']}, {way}-way {report['shot']}-shot, {card['data']['classes']} actions{unseen}",
        "checkpoint": source + warning,
        "results": _relative(folder / RESULTS),
    }
    if (folder / METRICS).is_file():
        rows["metrics"] = _relative(folder / METRICS)
    if pictures:
        rows["pictures"] = ", ".join(map(_relative, pictures))
    if checkpoint["path"]:
        rows["try next"] = f"strm classify --ckpt {_relative(checkpoint['path'])} --support FOLDER VIDEO"
    lines = [f"  {name:<12}{text}" for name, text in rows.items()]
    if report["sweep"]:
        cells = [
            [f"{r['way']}-way {r['shot']}-shot", f"{r['accuracy']:.1%} ± {r['ci95']:.1%}"] for r in report["sweep"]
        ]
        lines += ["", plain_table(["episodes", "accuracy"], cells)]
    return "\n" + "\n".join(lines)


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
