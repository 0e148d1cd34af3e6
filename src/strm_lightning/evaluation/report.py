"""``results.json``: the results of a test, read by `strm compare` and `strm plot`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn

from strm_lightning.data.datamodule import EpisodeDataModule
from strm_lightning.errors import InputError, MissingFileError
from strm_lightning.evaluation.card import protocol_card
from strm_lightning.evaluation.results import EpisodeResults
from strm_lightning.fileio import write_atomically

RESULTS = "results.json"


def report_test(
    trainer: L.Trainer,
    data: EpisodeDataModule | None,
    model: nn.Module,
    options: Mapping[str, Any],
    found: Sequence[tuple[tuple[int, int], EpisodeResults]],
    checkpoint: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Build the report of a test, and save it as ``results.json`` in the folder of the run.

    Args:
        trainer: the trainer of the test; its first process saves the file.
        data: data module of the test episodes; None for other loaders.
        model: the tested `STRM`.
        options: options of the model.
        found: (way, shot) and predictions of each setting, the main one first.
        checkpoint: source of the weights, see `describe_checkpoint`.
        seconds: duration of each part of the test.

    Returns:
        The content of ``results.json``, see `build_report`.
    """
    device = device_name(trainer.strategy.root_device)
    timing = {**seconds, "device": device, "processes": trainer.world_size}
    if data is None:
        report = report_of_episodes(found, checkpoint, timing)
    else:
        options = {**options, "precision": str(trainer.precision)}
        report = build_report(data, model, options, dict(found), checkpoint, timing)
    if trainer.is_global_zero:
        save_results(run_folder(trainer), report)
    return report


def build_report(
    data: EpisodeDataModule,
    model: nn.Module,
    options: Mapping[str, Any],
    found: Mapping[tuple[int, int], EpisodeResults],
    checkpoint: Mapping[str, Any],
    timing: Mapping[str, Any],
) -> dict[str, Any]:
    """Build the content of ``results.json``.

    Args:
        data: data module of the test episodes.
        model: the tested `STRM`.
        options: options of the model.
        found: predictions for each (way, shot), the main setting first.
        checkpoint: source of the weights, see `describe_checkpoint`.
        timing: seconds of each part, and the device.

    Returns:
        Accuracy and interval, ways and shots, accuracy per class, timing, protocol card, confusion and episodes.
    """
    main, class_names = next(iter(found.values())), data.videos["test"].class_names
    sweep = [
        {"way": way, "shot": shot, **results.summary(), "per_episode": results.per_episode.tolist()}
        for (way, shot), results in found.items()
    ]
    return {
        **main.summary(),
        "way": data.way,
        "shot": data.shot,
        "sweep": sorted(sweep, key=lambda row: (row["way"], row["shot"])) if len(sweep) > 1 else [],
        "per_class": main.by_class(class_names),
        "timing": dict(timing),
        "card": protocol_card(data, model, options, checkpoint, episodes=len(main.index)),
        "confusion": {"classes": list(class_names), "counts": main.confusion(len(class_names)).tolist()},
        "per_episode": {
            "seed": [f"{data.seed}/test/0/{index}" for index in main.index],
            "accuracy": main.per_episode.tolist(),
            "actual": main.actual.tolist(),
            "predicted": main.predicted.tolist(),
        },
    }


def report_of_episodes(
    found: Sequence[tuple[tuple[int, int], EpisodeResults]], checkpoint: Mapping[str, Any], timing: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the content of ``results.json`` for other loaders, without class names and protocol card.

    Args:
        found: (way, shot) and predictions of each loader, the main one first.
        checkpoint: see `describe_checkpoint`.
        timing: seconds of each part, and the device.
    """
    (way, shot), main = found[0]
    sweep = [{"way": n, "shot": k, **r.summary(), "per_episode": r.per_episode.tolist()} for (n, k), r in found]
    return {
        **main.summary(),
        "way": way,
        "shot": shot,
        "sweep": sweep if len(sweep) > 1 else [],
        "timing": dict(timing),
        "checkpoint": dict(checkpoint),
        "per_episode": {
            "index": main.index.tolist(),
            "accuracy": main.per_episode.tolist(),
            "actual": main.actual.tolist(),
            "predicted": main.predicted.tolist(),
        },
    }


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or the device type and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def run_folder(trainer: L.Trainer) -> Path:
    """Return the output folder of a run: that of its first logger, or ``default_root_dir`` without loggers."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    logger: Any = trainer.loggers[0]
    if isinstance(folder := getattr(logger, "log_dir", None), str):
        return Path(folder)
    # `ModelCheckpoint` uses this folder for loggers without ``log_dir``, such as W&B.
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / str(logger.version)


def save_results(folder: str | Path, document: Mapping[str, Any]) -> Path:
    """Write ``results.json`` atomically, one line for each top-level key; return its path."""
    path = Path(folder) / RESULTS
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items())
    write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")
    return path


def load_results(path: str | Path) -> dict[str, Any]:
    """Read a ``results.json``, or the one in a folder.

    Raises:
        MissingFileError: the file does not exist.
        InputError: the file is not a results.json of this package.
    """
    path = Path(path)
    path = path / RESULTS if path.is_dir() else path
    if not path.is_file():
        raise MissingFileError(f"no results at {path}; `strm test` writes them")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        missing = {"accuracy", "ci95", "sweep", "card", "per_class", "per_episode", "confusion"} - document.keys()
        missing |= {"protocol", "data", "checkpoint"} - document.get("card", {}).keys()
    except (ValueError, AttributeError):
        raise InputError(f"{path} is not a results.json of `strm test`") from None
    if missing:
        raise InputError(f"{path} is not a results.json of `strm test`: it has no {', '.join(sorted(missing))}")
    return document


def results_of(document: Mapping[str, Any]) -> EpisodeResults:
    """Return the predictions in a document."""
    episodes = document["per_episode"]
    index = [int(seed.rpartition("/")[2]) for seed in episodes["seed"]]
    return EpisodeResults(np.array(index), np.array(episodes["predicted"]), np.array(episodes["actual"]))
