"""Transfer of results from a child process of Lightning to its parent."""

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
    """Transfers results from a child process to its parent through a temporary file.

    The strategies ``ddp_notebook``, ``ddp_fork`` and ``ddp_spawn`` run in child processes and return metrics and
    weights, but no attributes of the module. The object is created in the parent and copied into the child.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.path = Path(tempfile.gettempdir()) / f"strm-results-{uuid4().hex}.json"
        weakref.finalize(self, _delete, self.path, self.owner)

    def __deepcopy__(self, memo: Any) -> "Handover":
        return Handover()

    def give(self, results: EpisodeResults, report: dict[str, Any] | None) -> None:
        """Write results for the parent, if this is a child of the process that created the object."""
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid == self.owner:
            arrays = {name: None if array is None else array.tolist() for name, array in vars(results).items()}
            write_atomically(self.path, json.dumps({"results": arrays, "report": report}))

    def take(self) -> tuple[EpisodeResults, dict[str, Any] | None] | None:
        """Return results and report that a child has written since the last call, or None."""
        if os.getpid() != self.owner or not self.path.is_file():
            return None
        found = json.loads(self.path.read_text(encoding="utf-8"))
        self.path.unlink()
        arrays: dict[str, Any] = {
            name: None if values is None else np.array(values, dtype=np.int64)
            for name, values in found["results"].items()
        }
        return EpisodeResults(**arrays), found["report"]


def _delete(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child inherits the finaliser
        path.unlink(missing_ok=True)
