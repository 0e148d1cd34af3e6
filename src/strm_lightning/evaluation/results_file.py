"""Write and read ``results.json``, which `strm compare` and `strm plot` read; imports neither torch nor Lightning."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from strm_lightning.errors import InputError, MissingFileError
from strm_lightning.evaluation.results import EpisodeResults
from strm_lightning.fileio import write_atomically

RESULTS = "results.json"


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
    """Return the predictions in a document; those of version 0.1 contain no clips."""
    episodes = document["per_episode"]
    index = [int(seed.rpartition("/")[2]) for seed in episodes["seed"]]
    names = ("predicted", "actual", "classes", "support", "query")
    return EpisodeResults(np.array(index), **{name: np.array(episodes[name]) for name in names if name in episodes})
