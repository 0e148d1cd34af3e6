"""Build the report of a test, the content of ``results.json``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from strm_lightning.data.datamodule import EpisodeDataModule
from strm_lightning.evaluation.card import protocol_card
from strm_lightning.evaluation.intervals import all_intervals, difference_intervals
from strm_lightning.evaluation.results import EpisodeResults
from strm_lightning.evaluation.results_file import save_results


def report_test(
    trainer: L.Trainer,
    data: EpisodeDataModule | None,
    model: nn.Module,
    options: Mapping[str, Any],
    found: Sequence[tuple[tuple[int, int], EpisodeResults]],
    checkpoint: Mapping[str, Any],
    seconds: Mapping[str, float],
    controls: Mapping[str, Sequence[EpisodeResults]] | None = None,
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
        controls: predictions of each control, for each setting; see `evaluation.controls`.

    Returns:
        The content of ``results.json``, see `build_report`.
    """
    device = device_name(trainer.strategy.root_device)
    timing = {**seconds, "device": device, "processes": trainer.world_size}
    if data is None:
        report = report_of_episodes(found, checkpoint, timing, controls)
    else:
        options = {**options, "precision": str(trainer.precision)}
        report = build_report(data, model, options, dict(found), checkpoint, timing, controls)
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
    controls: Mapping[str, Sequence[EpisodeResults]] | None = None,
) -> dict[str, Any]:
    """Build the content of ``results.json``.

    Args:
        data: data module of the test episodes.
        model: the tested `STRM`.
        options: options of the model.
        found: predictions for each (way, shot), the main setting first.
        checkpoint: source of the weights, see `describe_checkpoint`.
        timing: seconds of each part, and the device.
        controls: predictions of each control, for each setting.

    Returns:
        Accuracy and intervals, ways and shots, controls, accuracy per class, timing, protocol card, confusion, episodes
        and the names of the videos.
    """
    main, videos = next(iter(found.values())), data.videos["test"]
    class_names, rows = videos.class_names, np.concatenate(videos.members)
    return {
        **_summary(main),
        "way": data.way,
        "shot": data.shot,
        "sweep": sorted(_sweep([*found.items()], controls), key=lambda row: (row["way"], row["shot"])),
        "controls": _controls(main, controls),
        "per_class": main.by_class(class_names),
        "timing": dict(timing),
        "card": protocol_card(data, model, options, checkpoint, episodes=len(main.index)),
        "confusion": {"classes": list(class_names), "counts": main.confusion(len(class_names)).tolist()},
        "per_episode": {
            "seed": [f"{data.seed}/test/0/{index}" for index in main.index],
            **_per_episode(main, rows),
        },
        "videos": [videos.store.videos[row] for row in rows],
    }


def report_of_episodes(
    found: Sequence[tuple[tuple[int, int], EpisodeResults]],
    checkpoint: Mapping[str, Any],
    timing: Mapping[str, Any],
    controls: Mapping[str, Sequence[EpisodeResults]] | None = None,
) -> dict[str, Any]:
    """Build the content of ``results.json`` for other loaders, without class names and protocol card.

    Args:
        found: (way, shot) and predictions of each loader, the main one first.
        checkpoint: see `describe_checkpoint`.
        timing: seconds of each part, and the device.
        controls: predictions of each control, for each loader.
    """
    (way, shot), main = found[0]
    return {
        **_summary(main),
        "way": way,
        "shot": shot,
        "sweep": _sweep(found, controls),
        "controls": _controls(main, controls),
        "timing": dict(timing),
        "checkpoint": dict(checkpoint),
        "per_episode": {"index": main.index.tolist(), **_per_episode(main)},
    }


def _summary(results: EpisodeResults) -> dict[str, Any]:
    return {**results.summary(), "intervals": all_intervals(results)}


def _sweep(
    found: Sequence[tuple[tuple[int, int], EpisodeResults]], controls: Mapping[str, Sequence[EpisodeResults]] | None
) -> list[dict[str, Any]]:
    """Return a row for each setting; none for a single one."""
    return [
        {
            "way": way,
            "shot": shot,
            **_summary(results),
            "controls": {name: _summary(of[number]) for name, of in (controls or {}).items()},
            "per_episode": results.per_episode.tolist(),
        }
        for number, ((way, shot), results) in enumerate(found)
        if len(found) > 1
    ]


def _controls(main: EpisodeResults, controls: Mapping[str, Sequence[EpisodeResults]] | None) -> dict[str, Any]:
    """Return the accuracy of each control, and its difference to the accuracy of the clips as they are."""
    return {
        name: {
            **_summary(of[0]),
            "difference": of[0].accuracy - main.accuracy,
            "difference_intervals": difference_intervals(main, of[0]),
        }
        for name, of in (controls or {}).items()
    }


def _per_episode(results: EpisodeResults, rows: Int[np.ndarray, " V"] | None = None) -> dict[str, Any]:
    """Return accuracy, predictions and clips of each episode; clips as indices of ``rows``."""
    ids = {"classes": results.classes, "support": results.support, "query": results.query}
    if rows is not None:
        place = np.full(rows.max() + 1, -1)
        place[rows] = np.arange(len(rows))
        ids |= {name: None if ids[name] is None else place[ids[name]] for name in ("support", "query")}
    return {
        "accuracy": results.per_episode.tolist(),
        "actual": results.actual.tolist(),
        "predicted": results.predicted.tolist(),
        **{name: array.tolist() for name, array in ids.items() if array is not None},
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
