"""``strm fit``, ``validate`` and ``test``: LightningCLI for `STRMModule` and `EpisodeDataModule`."""

import argparse
import logging
import sys
import warnings
from copy import copy
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace
from typing import Any

import lightning as L
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # as Lightning's own init_parser does
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn

from strm_lightning.cli.parsing import Parser, one_line
from strm_lightning.cli.recipes import find_recipes
from strm_lightning.data.datamodule import MOVING_SHAPES, EpisodeDataModule
from strm_lightning.errors import InputError, WriteError
from strm_lightning.evaluation.intervals import interval_rows
from strm_lightning.evaluation.pictures import METRICS, draw
from strm_lightning.evaluation.report import run_folder
from strm_lightning.evaluation.results_file import RESULTS
from strm_lightning.evaluation.tables import plain_table
from strm_lightning.models.matching.base import matching_names, matching_options
from strm_lightning.training.checkpoints import LastCheckpoint, check_checkpoint
from strm_lightning.training.example_episodes import ExampleEpisodes
from strm_lightning.training.module import STRMModule

_CSV = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs", "name": ""}}
_EVALUATION = {
    "data": ["root", "split", "lists", "way", "shot", "num_frames", "image_size", "num_workers"],
    "model": ["backbone", "weights", "matching"],
    "trainer": ["accelerator", "devices", "precision"],
}
# Options in `--help` of each subcommand; `--help-all` shows all.
_SHORT_HELP: dict[str, dict[str, list[str]]] = {
    "fit": {
        "": ["config", "ckpt_path", "seed_everything", "test_after_fit", "help-all"],
        "data": [*_EVALUATION["data"], "query_per_class", "train_episodes", "batch_size"],
        "model": [*_EVALUATION["model"], "freeze_backbone", "optimizer", "lr", "schedule"],
        "trainer": ["max_epochs", *_EVALUATION["trainer"]],
    },
    "validate": {"": ["config", "ckpt_path", "help-all"], **_EVALUATION},
    "test": {
        "": ["config", "ckpt_path", "help-all"],
        **_EVALUATION,
        "data": [*_EVALUATION["data"], "test_episodes", "test_shots", "test_ways"],
    },
}
# Short help texts of Lightning's options.
_SHORT_TEXTS = {
    "ckpt_path": "checkpoint of `strm fit` to resume, validate or test",
    "seed_everything": "seed of initial weights and training, at least 0",
    "trainer.max_epochs": "number of training epochs",
    "trainer.accelerator": "``cpu``, ``gpu`` or ``auto``",
    "trainer.devices": "number of devices, or list of their indices",
    "trainer.precision": "``32-true``, ``bf16-mixed`` or ``16-mixed``; all: --help-all",
}
# First words of Lightning's ValueError and RuntimeError messages that are about a wrong option.
_LIGHTNINGS_ERRORS = (
    "Early stopping conditioned on metric",
    "`val_check_interval` (",
    '`.test(ckpt_path="best")`',
    '`.validate(ckpt_path="best")`',
)
# Lowest values of options that PyTorch and Lightning check late, without the option's name, or not at all.
_LOWEST = {
    "seed_everything": 0,
    "data.num_workers": 0,
    "model.lr": 0,
    "model.momentum": 0,
    "model.weight_decay": 0,
    "trainer.accumulate_grad_batches": 1,
    "trainer.check_val_every_n_epoch": 1,
}


class _HelpAll(argparse._HelpAction):
    """Print all options of a subcommand."""

    def __call__(self, parser: Any, *_: Any, **__: Any) -> None:
        parser.short_help = {}
        parser.print_help()
        parser.exit()


class _Parser(Parser, LightningArgumentParser):
    """Lightning's parser, with one-line errors and a short ``--help``.

    Args:
        short_help: options in ``--help`` by group; empty for all options.
    """

    def __init__(self, *args: Any, short_help: dict[str, list[str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.short_help = short_help or {}
        if self.short_help:
            self.help_option = "--help-all"
            self.add_argument("--help-all", action=_HelpAll, help="show all options")

    def format_help(self, *args: Any) -> str:
        if not self.short_help:
            return str(super().format_help(*args))
        groups = self._action_groups
        self._action_groups = [self._short_group(*item) for item in self.short_help.items()]
        try:
            return str(super().format_help(*args))
        finally:
            self._action_groups = groups

    def _short_group(self, group: str, names: list[str]) -> Any:
        options = [f"--{group}.{name}" if group else f"--{name}" for name in names]
        actions = [copy(self._option_string_actions[option]) for option in options]
        for action in actions:
            action.help = _SHORT_TEXTS.get(action.dest, action.help)
        return SimpleNamespace(title=group or "options", description=None, _group_actions=actions)


def _describe_matching(parser: LightningArgumentParser) -> None:
    """List the registered matching methods and their options in the help."""
    texts = {
        "model.matching": f"matching method: {', '.join(matching_names())}",
        "model.matching_options": "options of the matching method. "
        + "; ".join(
            f"{name}: {', '.join(f'{option}={default}' for option, default in options.items())}"
            for name in matching_names()
            if name != "trm" and (options := matching_options(name))
        ),
    }
    for action in parser._actions:
        action.help = texts.get(action.dest, action.help)


class SaveConfig(SaveConfigCallback):
    """Save the configuration of each subcommand as ``fit.yaml``, ``validate.yaml`` or ``test.yaml`` beside its logs."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.config_filename, self.overwrite = f"{trainer.state.fn.value if trainer.state.fn else stage}.yaml", True
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Log the options of the trainer; Lightning logs those of the module and the data module only."""
        for logger in trainer.loggers:
            logger.log_hyperparams({"trainer": self.config.as_dict()["trainer"]})


class STRMCLI(LightningCLI):
    """LightningCLI that checks options and data first and runs a test after a fit."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = _Parser(**kwargs)
        parser.add_argument(
            "-c", "--config", action=ActionConfigFile, help="YAML file of options; later values override earlier ones"
        )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self._arguments = [str(argument) for argument in (sys.argv[1:] if args is None else args)]
        super().parse_arguments(parser, args)
        options = self.config[self.config["subcommand"]]
        _check_lowest(options)
        if options["ckpt_path"]:
            check_checkpoint(options["ckpt_path"])
        if options.get("weights_only") is False:
            raise InputError("--weights_only=false is not allowed: checkpoints contain tensors and plain values only")
        options["weights_only"] = True

    def _parse_ckpt_path(self) -> None:
        """Read the model's options from the checkpoint; warn which command line options they override."""
        options = self.config[self.config["subcommand"]]
        given = dict(vars(options["model"]))
        super()._parse_ckpt_path()
        model = vars(self.config[self.config["subcommand"]]["model"])
        flags = {a.partition("=")[0].removeprefix("--model.") for a in self._arguments if a.startswith("--model.")}
        replaced = [
            f"--model.{name}={given[name]}" for name in sorted(flags & given.keys()) if model[name] != given[name]
        ]
        if replaced:
            rank_zero_warn(f"the checkpoint's options are used in place of {', '.join(replaced)}")

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of data and model before those of the trainer."""
        parser.add_lightning_class_args(EpisodeDataModule, "data")
        parser.add_lightning_class_args(STRMModule, "model")
        _describe_matching(parser)
        parser.add_lightning_class_args(L.Trainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--test_after_fit", type=bool, default=True, help="test the best checkpoint after training")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LearningRateMonitor, "lr_monitor")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(ExampleEpisodes, "example_episodes")
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
        parser.link_arguments("data.num_segments", "model.num_segments")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's subcommands without ``predict``; `strm classify` replaces it."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name != "predict"}

    def instantiate_classes(self) -> None:
        """Find and check the videos before building the model, which may download weights."""
        data = EpisodeDataModule(**self._get(self.config, "data"))
        data.call = self.subcommand
        data.prepare_data()
        data.setup(self.subcommand)
        if self.subcommand == "fit" and self._get(self.config, "test_after_fit") and "test" in data.videos:
            data.setup("test")
        try:
            super().instantiate_classes()
        except ValueError as error:
            if isinstance(error, InputError) or "given class_path" not in str(error):
                raise
            raise InputError(one_line(str(error))) from error
        self.datamodule.videos = data.videos

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer. Its constructor gets the user's options only, so its errors are about these."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, ModuleNotFoundError) as error:
            raise InputError(f"trainer: {one_line(str(error))}") from error

    def after_instantiate_classes(self) -> None:
        """Check that the folders of the run are writable before anything is computed."""
        folders = [("trainer.logger", logger.save_dir) for logger in self.trainer.loggers]
        if self.subcommand == "fit" and self.trainer.loggers:
            folders.append(("checkpoint.dirpath", self._get(self.config_init, "checkpoint").dirpath))
        for option, folder in folders:
            if folder and "://" not in str(folder):
                _check_writable(Path(folder), option)

    def before_fit(self) -> None:
        """Monitor nothing without validation classes; the last checkpoint is then the best."""
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
        """Draw the plots and print a summary of the results."""
        if self.trainer.is_global_zero and self.model.report is not None:
            for logger in self.trainer.loggers:
                logger.log_hyperparams({"card": self.model.report["card"]})
            folder = run_folder(self.trainer)
            pictures = draw([folder]) if find_spec("matplotlib") else []
            print(_summary(self.model.report, folder, pictures))


def run(arguments: list[str], commands: dict[str, str]) -> STRMCLI:
    """Parse and run one of Lightning's subcommands.

    Args:
        arguments: the command line, without the program.
        commands: description of each subcommand, for its help.

    Raises:
        InputError: an option is wrong. Lightning's errors about options are converted to it.
    """
    warnings.filterwarnings("ignore", module="lightning.pytorch.utilities._pytree")  # about a name in torch
    # `--import` is not an option of LightningCLI. It stays in sys.argv, from which Lightning starts other processes.
    warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended to run from within Python")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(_is_relevant)
    usage = "strm {} [--config FILE ...] [--OPTION=VALUE ...]"
    parsers = {
        name: {"description": text, "usage": usage.format(name), "epilog": _EPILOG.format(name)}
        | {"short_help": _SHORT_HELP[name]}
        for name, text in commands.items()
    }
    try:
        return STRMCLI(
            STRMModule,
            EpisodeDataModule,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            trainer_defaults={"logger": _CSV},
            parser_kwargs={"prog": "strm", **parsers},
            auto_configure_optimizers=False,  # optimiser and schedule are options of the module
            args=find_recipes(arguments),
        )
    except MisconfigurationException as error:
        raise InputError(one_line(str(error))) from error
    except (ValueError, RuntimeError) as error:
        if not str(error).strip().startswith(_LIGHTNINGS_ERRORS):
            raise
        raise InputError(one_line(str(error))) from error


_EPILOG = "Options can also be set in YAML files; `strm {} --print_config` prints one with all options."


def _check_lowest(options: Any) -> None:
    for name, lowest in _LOWEST.items():
        value = options.get(name)
        if value is not None and value < lowest:
            raise InputError(f"--{name} is {value}: the lowest value is {lowest}")


def _check_writable(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise WriteError(f"--{option}: the folder {folder} cannot be written to: {error.strerror}") from error


def _is_relevant(record: logging.LogRecord) -> bool:
    """Filter out Lightning's tips, lines about absent devices, and the seed, which ``fit.yaml`` contains."""
    message = str(record.msg)
    left_out = ("💡", "TPU available: False", "GPU available: False")
    return not message.startswith(left_out) and "Seed set to" not in message


def _summary(report: dict[str, Any], folder: Path, pictures: list[Path]) -> str:
    card, way = report["card"], report["way"]
    checkpoint = card["checkpoint"]
    warning = "" if checkpoint["chosen_on"] != "test" else ", SELECTED ON THE TEST SPLIT: the accuracy is optimistic"
    training = checkpoint["training"] or {}
    same_split = all(training.get(name) == card["data"][name] for name in ("root", "split", "split_seed"))
    unseen = " never seen in training" if same_split else ""
    source = _relative(checkpoint["path"]) if checkpoint["path"] else "none (initial weights)"
    rows = {
        "accuracy": f"{report['accuracy']:.1%} ± {report['ci95']:.1%}  (95 % interval; chance is {1 / way:.0%})",
        **interval_rows(report["intervals"]),
        "episodes": f"{report['episodes']}, {way}-way {report['shot']}-shot, {card['data']['classes']} actions{unseen}",
        **{f"  {name}": _control(name, of_control) for name, of_control in report["controls"].items()},
        "checkpoint": source + warning,
    }
    if not same_split and checkpoint["trained_on"]:
        rows["trained on"] = f"{checkpoint['trained_on']}; tested on {card['data']['root']}"
    if card["model"]["transductive"]:
        rows["protocol"] = "transductive: the queries of an episode are used together"
    rows["results"] = _relative(folder / RESULTS)
    if (folder / METRICS).is_file():
        rows["metrics"] = _relative(folder / METRICS)
    if pictures:
        rows["pictures"] = ", ".join(map(_relative, pictures))
    if checkpoint["path"]:
        # On real videos a model trained on moving shapes is worse than its backbone alone (docs/own-videos.md).
        drawn = str(card["data"]["root"]) in MOVING_SHAPES
        model = "" if drawn else f"--ckpt {_relative(checkpoint['path'])} "
        rows["try next"] = f"strm classify {model}--support FOLDER VIDEO"
    width = max(map(len, rows)) + 2
    lines = [f"  {name:<{width}}{text}" for name, text in rows.items()]
    if report["sweep"]:
        lines += ["", _sweep_table(report["sweep"], [*report["controls"]])]
    return "\n" + "\n".join(lines)


def _control(name: str, found: dict[str, Any]) -> str:
    kind = {"reversed": "queries reversed", "static": "the mean frame of each clip"}[name]
    width = found["difference_intervals"]["clips"]["ci95"]
    over = f" ± {100 * width:.1f} over clips" if width is not None else ""
    return f"{found['accuracy']:.1%} ± {found['ci95']:.1%}  ({kind}; difference {100 * found['difference']:+.1f}{over})"


def _sweep_table(sweep: list[dict[str, Any]], controls: list[str]) -> str:
    rows = []
    for row in sweep:
        cells = [f"{row['way']}-way {row['shot']}-shot", f"{row['accuracy']:.1%} ± {row['ci95']:.1%}"]
        for name in ("clips", "classes"):
            width = row["intervals"][name]["ci95"]
            cells.append("not known" if width is None else f"± {width:.1%}")
        rows.append(cells + [f"{row['controls'][name]['accuracy']:.1%}" for name in controls])
    return plain_table(["episodes", "accuracy", "over clips", "over classes", *controls], rows)


def _best(trainer: L.Trainer) -> str | None:
    """Return the best checkpoint of a fit, or the last one if nothing was monitored."""
    callback = trainer.checkpoint_callback
    return (
        (callback.best_model_path or callback.last_model_path or None)
        if isinstance(callback, ModelCheckpoint)
        else None
    )


def _relative(path: str | Path) -> str:
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
