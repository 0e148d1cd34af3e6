"""The index of a root: how many frames each video has, or what is wrong with it, found out once and remembered."""

import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from hashlib import sha256
from pathlib import Path
from typing import Any

from tqdm import tqdm

from strm_lightning.data.videos import VideoError
from strm_lightning.fileio import cache_folder, write_atomically

_VERSION = 1
_SAVE_EVERY = 30.0  # seconds; an index of a large data set takes hours, and what was counted is never counted again


def index_file(root: Path, kind: str) -> Path:
    """Where the index of a root is remembered; the suffix of ``kind`` tells its format."""
    return cache_folder() / "index" / f"{sha256(str(root.resolve()).encode()).hexdigest()[:24]}-{kind}"


def count_all(
    root: Path, places: Mapping[str, str], count: Callable[[str], int], kind: str, *, progress: bool = True
) -> dict[str, int | str]:
    """Frame count of each video, or (as text) what is wrong with it; only what is new or has changed is counted.

    Counts are remembered in the user's cache folder, each for the place's size and time of change.

    Args:
        root: folder that the index belongs to.
        places: path of the file or folder of each name.
        count: counts the frames of one place, or raises a `VideoError`.
        kind: tells apart indices of one root.
        progress: draw a bar on stderr when it takes longer than two seconds.
    """
    path = index_file(root, f"{kind}.json")
    known = _load(path)
    stamps = {name: _stamp(place) for name, place in places.items()}
    new = [name for name, stamp in stamps.items() if known.get(name, [None])[0] != stamp]
    if new:
        saved = time.monotonic()
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter's lock
            jobs = {pool.submit(_count, count, places[name]): name for name in new}
            try:
                for job in tqdm(
                    as_completed(jobs),
                    f"Indexing {root}",
                    len(jobs),
                    delay=2,
                    disable=None if progress else True,
                    unit="videos",
                ):
                    known[jobs[job]] = [stamps[jobs[job]], job.result()]
                    if time.monotonic() - saved > _SAVE_EVERY:
                        _save(path, known)
                        saved = time.monotonic()
            finally:
                pool.shutdown(cancel_futures=True)
                _save(path, known)
    return {name: known[name][1] for name in places}


def _count(count: Callable[[str], int], place: str) -> int | str:
    try:
        return count(place)
    except VideoError as error:
        return str(error).removeprefix(f"{place}: ")


def _stamp(place: str) -> str:
    try:
        status = os.stat(place)  # noqa: PTH116 (of 200,000 places: a Path of each would take longer)
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
    index = json.dumps({"version": _VERSION, "videos": known}, sort_keys=True)
    write_atomically(path, index)
