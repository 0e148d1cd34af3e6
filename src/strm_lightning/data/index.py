"""The index of a folder of video files: how many frames each has, or what is wrong with it, counted once."""

import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from hashlib import sha256
from pathlib import Path
from typing import Any

from tqdm import tqdm

from strm_lightning.data.videos import VideoError, count_frames

_VERSION = 1
_SAVE_EVERY = 30.0  # seconds; an index of a large data set takes hours, and what was counted is never counted again


def cache_folder() -> Path:
    """Where what can be made again is kept: $STRM_CACHE, or strm_lightning in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("STRM_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "strm_lightning"


def count_all(root: Path, files: Mapping[str, Path], *, progress: bool = True) -> dict[str, int | str]:
    """Frame count of each file, or (as text) what is wrong with it; files not seen before are decoded, all cores busy.

    Counts are remembered in the user's cache folder under the root, each for the file's size and time of change.

    Args:
        root: folder that the index belongs to.
        files: path of each name.
        progress: draw a bar on stderr when it takes longer than two seconds.
    """
    index_path = cache_folder() / "index" / f"{sha256(str(root.resolve()).encode()).hexdigest()[:24]}.json"
    known = _load(index_path)
    stamps = {name: _stamp(path) for name, path in files.items()}
    new = [name for name, stamp in stamps.items() if known.get(name, [None, None])[0] != stamp]
    if new:
        saved = time.monotonic()
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter's lock
            jobs = {pool.submit(_count, files[name]): name for name in new}
            try:
                for job in tqdm(
                    as_completed(jobs), f"Indexing {root}", len(jobs), delay=2, disable=not progress, unit="videos"
                ):
                    known[jobs[job]] = [stamps[jobs[job]], job.result()]
                    if time.monotonic() - saved > _SAVE_EVERY:
                        _save(index_path, known)
                        saved = time.monotonic()
            finally:
                pool.shutdown(cancel_futures=True)
                _save(index_path, known)
    return {name: known[name][1] for name in files}


def _count(path: Path) -> int | str:
    try:
        return count_frames(path)
    except VideoError as error:
        return str(error).removeprefix(f"{path}: ")


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "gone"
    return f"{status.st_size}-{status.st_mtime_ns}"


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return dict(index["videos"]) if index["version"] == _VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # it can always be made again


def _save(path: Path, known: Mapping[str, list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(json.dumps({"version": _VERSION, "videos": known}, sort_keys=True), encoding="utf-8")
    part.replace(path)
