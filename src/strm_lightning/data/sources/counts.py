"""Index of a root: the number of frames, or the error, of each video, counted once and kept on disk."""

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
_SAVE_EVERY = 30.0  # seconds; counting a large data set takes hours, and a stopped run continues from the index


def index_file(root: Path, kind: str) -> Path:
    """Return the path of the index file of a root; ``kind`` ends the file name, with its suffix."""
    return cache_folder() / "index" / f"{sha256(str(root.resolve()).encode()).hexdigest()[:24]}-{kind}"


def save_index(path: Path, data: bytes | str) -> None:
    """Write an index file; if the cache folder cannot be written, warn once."""
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
        "STRM_CACHE to a writable folder",
        stacklevel=2,
    )


@cache
def _sweep_once(folder: Path) -> None:
    sweep_parts(folder)


def count_all(
    root: Path, paths: Mapping[str, str], count: Callable[[str], int], kind: str, *, progress: bool = True
) -> dict[str, int | str]:
    """Return the number of frames, or the error as text, of each video; only new and changed videos are counted.

    Counts are kept in the user's cache folder, with the size and modification time of each path.

    Args:
        root: folder of the index.
        paths: path of the file or folder of each name.
        count: function that counts the frames of a path, or raises a `VideoError`.
        kind: name of the index, since a root may have several.
        progress: show a progress bar on stderr after two seconds.
    """
    found = _measure(root, paths, lambda path: [_count(count, path)], kind, lengths=(2,), progress=progress)
    return {name: entry[1] for name, entry in found.items()}


def estimate_all(
    root: Path,
    paths: Mapping[str, str],
    estimate: Callable[[str], int],
    count: Callable[[str], int],
    kind: str,
    *,
    progress: bool = True,
) -> tuple[dict[str, int | str], set[str]]:
    """Do `count_all` with estimates for new and changed videos; return also the names whose number is an estimate.

    Where an estimate fails, the frames are counted. Estimates are kept in the same index; `count_all` ignores them and
    `record_counts` replaces them.
    """

    def measure(path: str) -> list[Any]:
        number = _count(estimate, path)
        usable = isinstance(number, int) and 0 < number <= MAX_FRAMES
        return [number, "estimate"] if usable else [_count(count, path)]

    found = _measure(root, paths, measure, kind, lengths=(2, 3), progress=progress)
    return {name: entry[1] for name, entry in found.items()}, {name for name, e in found.items() if len(e) == 3}


def record_counts(root: Path, paths: Mapping[str, str], counts: Mapping[str, int], kind: str) -> None:
    """Replace estimates in an index by counts; those of files that have changed since the estimate stay."""
    path = index_file(root, f"{kind}.json")
    known = _load(path)
    for name, video in paths.items():
        if name in known and known[name][0] == stamp_of_file(video):
            known[name] = [known[name][0], counts[name]]
    _save(path, known)


def _measure(
    root: Path,
    paths: Mapping[str, str],
    measure: Callable[[str], list[Any]],
    kind: str,
    *,
    lengths: tuple[int, ...],
    progress: bool,
) -> dict[str, list[Any]]:
    """Return the entry of each path in an index; ``measure`` is called where there is none of these lengths."""
    path = index_file(root, f"{kind}.json")
    known = _load(path)
    stamps = {name: stamp_of_file(video) for name, video in paths.items()}
    usable = {name for name, entry in known.items() if len(entry) in lengths and entry[0] == stamps.get(name)}
    new = [name for name in paths if name not in usable]
    if new:
        saved = time.monotonic()
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the GIL
            jobs = {pool.submit(measure, paths[name]): name for name in new}
            try:
                for job in tqdm(
                    as_completed(jobs),
                    f"Indexing {root}",
                    len(jobs),
                    delay=2,
                    disable=None if progress else True,
                    unit="videos",
                ):
                    known[jobs[job]] = [stamps[jobs[job]], *job.result()]
                    if time.monotonic() - saved > _SAVE_EVERY:
                        _save(path, known)
                        saved = time.monotonic()
            finally:
                pool.shutdown(cancel_futures=True)
                _save(path, known)
    return {name: known[name] for name in paths}


def _count(count: Callable[[str], int], path: str) -> int | str:
    try:
        return count(path)
    except VideoError as error:
        return str(error).removeprefix(f"{path}: ")


def _load(path: Path) -> dict[str, list[Any]]:
    """Return the valid entries of an index file; damaged files and entries are ignored and counted again."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["version"] != _VERSION:
            return {}
        return {name: entry for name, entry in index["videos"].items() if _is_entry(entry)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _is_entry(entry: object) -> bool:
    match entry:
        case [str(), bool(), *_]:
            return False
        case [str(), int(count)] | [str(), int(count), "estimate"]:
            return 0 < count <= MAX_FRAMES
        case [str(), str()]:
            return True
    return False


def _save(path: Path, known: Mapping[str, list[Any]]) -> None:
    save_index(path, json.dumps({"version": _VERSION, "videos": known}, sort_keys=True))
