"""results.json: one file that holds all that a test found, for people, programs, `compare` and `plot`."""

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


def test_report(
    data: EpisodeDataModule,
    model: nn.Module,
    options: Mapping[str, Any],
    found: Mapping[tuple[int, int], EpisodeResults],
    checkpoint: Mapping[str, Any],
    timing: Mapping[str, Any],
) -> dict[str, Any]:
    """What `results.json` holds: accuracy, interval, classes, confusion, episodes, timing and the protocol card.

    Args:
        data: whose test episodes they were.
        model: the `STRM` that was tested.
        options: those that it was built with.
        found: predictions for each (way, shot), the main one first.
        checkpoint: where the weights come from, see `describe_checkpoint`.
        timing: seconds of each part, and on what.
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
    """`test_report` for episodes of the user's own loaders: without names of classes and without a protocol card.

    Args:
        found: (way, shot) and predictions of each loader, the main one first.
        checkpoint: see `describe_checkpoint`.
        timing: seconds of each part, and on what.
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
    """What the numbers were made on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def run_folder(trainer: L.Trainer) -> Path:
    """Where what a run leaves is put: its first logger's folder, that of its checkpoints' folder, or the root."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    logger: Any = trainer.loggers[0]
    if isinstance(folder := getattr(logger, "log_dir", None), str):
        return Path(folder)
    # As `ModelCheckpoint` does for loggers without a folder for each run, such as W&B.
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / str(logger.version)


def save_results(folder: str | Path, document: Mapping[str, Any]) -> Path:
    """Write ``results.json`` whole or not at all, a line for each of its parts."""
    path = Path(folder) / RESULTS
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items())
    write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")
    return path


def load_results(path: str | Path) -> dict[str, Any]:
    """Read a ``results.json``, or the one in a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is none of ours.
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
    """The predictions that a document was made of."""
    episodes = document["per_episode"]
    index = [int(seed.rpartition("/")[2]) for seed in episodes["seed"]]
    return EpisodeResults(np.array(index), np.array(episodes["predicted"]), np.array(episodes["actual"]))
