"""The index of a root: how many frames each video has, or what is wrong with it, found out once and remembered."""

import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from tqdm import tqdm

from strm_lightning.data.decode.limits import MAX_FRAMES
from strm_lightning.data.decode.video import VideoError
from strm_lightning.data.sources.base import stamp_of_file
from strm_lightning.fileio import cache_folder, sweep_parts, write_atomically

_VERSION = 1
_SAVE_EVERY = 30.0  # seconds; an index of a large data set takes hours, and what was counted is never counted again


def index_file(root: Path, kind: str) -> Path:
    """Path of the file that keeps the index of a root; the suffix of ``kind`` is its format."""
    return cache_folder() / "index" / f"{sha256(str(root.resolve()).encode()).hexdigest()[:24]}-{kind}"


def remember(path: Path, data: bytes | str) -> None:
    """Write an index file; where the cache folder cannot be written, warn once and go on."""
    try:
        write_atomically(path, data)
    except OSError as error:
        _warn_once(path.parent, error.strerror or str(error))
    else:
        _sweep_once(path.parent)


@cache
def _warn_once(folder: Path, reason: str) -> None:
    warnings.warn(
        f"the cache folder {folder} cannot be written ({reason}), so frames are counted again next time; set "
        "STRM_CACHE to a folder that can be written",
        stacklevel=2,
    )


@cache
def _sweep_once(folder: Path) -> None:
    sweep_parts(folder)


def count_all(
    root: Path, places: Mapping[str, str], count: Callable[[str], int], kind: str, *, progress: bool = True
) -> dict[str, int | str]:
    """Frame count of each video, or (as text) what is wrong with it; only what is new or has changed is counted.

    Counts are kept in the user's cache folder, each with the size and time of change of its place.

    Args:
        root: folder that the index belongs to.
        places: path of the file or folder of each name.
        count: counts the frames of one place, or raises a `VideoError`.
        kind: tells apart indices of one root.
        progress: draw a bar on stderr when it takes longer than two seconds.
    """
    path = index_file(root, f"{kind}.json")
    known = _load(path)
    stamps = {name: stamp_of_file(place) for name, place in places.items()}
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


def _load(path: Path) -> dict[str, list[Any]]:
    """Entries of an index file; none of a damaged file, and no entry that cannot be true: all can be made again."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["version"] != _VERSION:
            return {}
        return {name: entry for name, entry in index["videos"].items() if _is_entry(entry)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _is_entry(entry: object) -> bool:
    match entry:
        case [str(), bool()]:
            return False
        case [str(), int(count)]:
            return 0 < count <= MAX_FRAMES
        case [str(), str()]:
            return True
    return False


def _save(path: Path, known: Mapping[str, list[Any]]) -> None:
    remember(path, json.dumps({"version": _VERSION, "videos": known}, sort_keys=True))
