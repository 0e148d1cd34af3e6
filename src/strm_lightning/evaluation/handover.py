"""Results of a process that Lightning started, brought to the process that started it."""

import json
import multiprocessing
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from strm_lightning.evaluation.results import EpisodeResults
from strm_lightning.fileio import write_atomically


class Handover:
    """A file through which results go from a child process to its parent.

    The strategies ``ddp_notebook``, ``ddp_fork`` and ``ddp_spawn`` run everything in child processes and return metrics
    and weights, but no attribute of the module. The object is made in the parent and copied into the child.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.path = Path(tempfile.gettempdir()) / f"strm-results-{uuid4().hex}.json"
        weakref.finalize(self, _delete, self.path, self.owner)

    def __deepcopy__(self, memo: Any) -> "Handover":
        return Handover()

    def give(self, results: EpisodeResults, report: dict[str, Any] | None) -> None:
        """Write results if this is a child of the process that made the object; do nothing in that process."""
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid == self.owner:
            arrays = {name: array.tolist() for name, array in vars(results).items()}
            write_atomically(self.path, json.dumps({"results": arrays, "report": report}))

    def take(self) -> tuple[EpisodeResults, dict[str, Any] | None] | None:
        """Results and report that a child gave since the last call; None without any."""
        if os.getpid() != self.owner or not self.path.is_file():
            return None
        found = json.loads(self.path.read_text(encoding="utf-8"))
        self.path.unlink()
        arrays = {name: np.array(values, dtype=np.int64) for name, values in found["results"].items()}
        return EpisodeResults(**arrays), found["report"]


def _delete(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child inherits the finaliser
        path.unlink(missing_ok=True)
