"""`strm prepare`: convert videos or frames to a frame cache."""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from strm_lightning.data.cache.clipfile import SUFFIX, ClipFile
from strm_lightning.data.cache.shards import Shard, check_all_complete, parse_shard, read_shards, write_shard
from strm_lightning.data.cache.store import (
    CacheFormat,
    CacheOptions,
    is_cache,
    options_of,
    read_manifest,
    write_manifest,
)
from strm_lightning.data.cache.writer import Converter
from strm_lightning.data.decode.video import VideoError
from strm_lightning.data.detect import list_videos
from strm_lightning.data.sampling import FramePolicy
from strm_lightning.data.sources.base import LayoutOption, Listing
from strm_lightning.data.sources.video_files import FileListing
from strm_lightning.data.splits.match import match_split
from strm_lightning.data.splits.split import SplitOption, resolve_split
from strm_lightning.errors import InputError
from strm_lightning.fileio import sweep_parts
from strm_lightning.messages import check_positive, count_of, format_bytes

_SAMPLE = 16  # videos from which the size of a cache is estimated


@dataclass(frozen=True)
class PrepareReport:
    """Result of `prepare`.

    Attributes:
        out: folder of the cache.
        written: number of clips written by this run.
        present: number of clips from earlier runs.
        failed: error of each video that is not in the cache.
        size: bytes of all clips.
        seconds: duration of the run.
        refreshed: number of clips written again because their source has changed.
        shard: the shard that this run has written; None for the whole cache.
    """

    out: Path
    written: int
    present: int
    failed: dict[str, str]
    size: int
    seconds: float
    refreshed: int = 0
    shard: Shard | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.out}: {count_of(range(self.written + self.present), 'clip')}, {format_bytes(self.size)}; "
            f"{self.written} written in {self.seconds:.0f} s, {self.present} from earlier runs"
        ]
        if self.refreshed:
            lines.append(f"{count_of(range(self.refreshed), 'clip')} refreshed, since the source has changed")
        if self.failed:
            lines += [f"{count_of(self.failed, 'video')} could not be read:"]
            lines += [f"  {name}: {reason}" for name, reason in sorted(self.failed.items())]
        if self.shard is None:
            return "\n".join([*lines, f"To use the cache: --data.root={self.out}"])
        last = f"After all {self.shard.count} shards: the same command without --shard, which completes the cache"
        return "\n".join([f"Shard {self.shard}", *lines, last])


def prepare(
    root: str,
    out: str,
    *,
    split: SplitOption | None = None,
    lists: str | None = None,
    layout: LayoutOption = "auto",
    format: CacheFormat = "raw",  # noqa: A002
    short_side: int = 256,
    quality: int = 90,
    policies: FramePolicy | list[FramePolicy] = "segments",
    num_frames: int = 8,
    jobs: int | None = None,
    seed: int = 0,
    shard: str | None = None,
) -> PrepareReport:
    """Decode each video once into a frame cache, from which training reads ten times faster than from video files.

    The same command completes a run that was stopped, and writes again the clips whose source has changed. A change is
    detected by size and modification time (of every image in a folder of frames), in a zip by the checksums of the
    images. Caches of version 0.1 do not record their sources: their clips are kept, and their sources are recorded from
    then on.

    Args:
        root: folder (or zip) of videos or frames.
        out: folder of the cache.
        split: include only the videos of this split; all by default.
        lists: folder of the list files of the split.
        layout: layout of the videos under ``root``; ``auto`` detects it.
        format: ``raw`` pixels are the fastest; ``jpeg`` takes about a tenth of the disk space; ``keep`` copies image
            files unchanged.
        short_side: short side of the frames in pixels (raw, jpeg); 256 is for clips of 224 pixels.
        quality: JPEG quality, 1 to 100.
        policies: frame policy, or several, that the cache supports; with 8 frames a clip, ``release`` needs at most 48
            frames of a video, ``segments`` needs all.
        num_frames: frames of a clip, L.
        jobs: number of videos converted in parallel; by default the number of cores.
        seed: seed of a random split.
        shard: convert only one part of the videos, such as ``3/16`` for the third of 16 parts. Shards can be written at
            the same time, on several machines with a common folder ``out``. Then the same command without ``shard``
            checks that all of them are complete, and completes the cache.

    Raises:
        MissingFileError: the root or the lists do not exist.
        InputError: root, out and options do not match, the disk is too small, no video can be read, or shards are not
            complete.
    """
    start = time.monotonic()
    listing = list_videos(root, layout)
    chosen = (policies,) if isinstance(policies, str) else tuple(policies)
    options = CacheOptions(format, short_side, quality, chosen, num_frames)
    target = Path(out).expanduser()
    part = None if shard is None else parse_shard(shard)
    _check(listing, target, options, part)
    check_positive(jobs=jobs)
    names = list(listing.paths) if split is None else _names_of(listing, root, split, lists, seed)
    names = part.take(names) if part else names
    convert = Converter(listing, names, options, target)
    with _locked(target, part), _one_thread():
        _sweep(target, names)
        before, stamps = _kept(target, listing.root)
        shards = _shards(target, part)
        for record in shards.values():
            stamps |= record["stamps"]
        sizes = _present(target, names)
        now = {name: listing.stamp(name) for name in tqdm(names, "Looking for changes", delay=2, unit="videos")}
        changed = {name for name in sizes if stamps.get(name, now[name]) != now[name]}
        _log_unrecorded(target, [name for name in sizes if name not in stamps])
        missing = [name for name in names if name not in sizes or name in changed]
        _check_space(convert, missing, target)
        if part and is_cache(target):
            _save(target, None, options, listing, before, stamps, complete=False)
        for name in changed:  # before the new stamps are saved; a run killed between would keep old pixels
            _clip_path(target, name).unlink(missing_ok=True)
            del sizes[name]
            before.pop(name, None)
        stamps |= now
        _save(target, part, options, listing, before, now if part else stamps, complete=False)
        present = len(sizes)
        done, failed = _work(convert, missing, jobs or os.cpu_count() or 1)
        sizes |= done
        if not sizes and part is None:
            raise InputError(
                f"none of {count_of(names, 'video')} under {root} can be read: {next(iter(failed.values()))}"
            )
        videos = {name: known for name, known in (before | sizes).items() if name not in failed}
        stamps = now if part else {name: stamp for name, stamp in stamps.items() if name in videos}
        _save(target, part, options, listing, videos, stamps, complete=True)
        if part is None:
            for finished in shards:
                (target / finished.file).unlink()
    size, refreshed = sum(size for _, size in sizes.values()), len(changed & done.keys())
    return PrepareReport(target, len(done), present, failed, size, time.monotonic() - start, refreshed, part)


def _names_of(listing: Listing, root: str, split: SplitOption, lists: str | None, seed: int) -> list[str]:
    resolved = resolve_split(split, lists=lists, class_names=listing.class_names, seed=seed)
    match = match_split(listing, resolved)
    if not match.names:
        raise InputError(f"no video of split {split!r} is under {root}, which has {listing.summary}")
    if match.missing:
        _log(match.missing_message(resolved, root))
    return match.names


def _shards(target: Path, part: Shard | None) -> dict[Shard, dict[str, Any]]:
    """Return the records of shards; the last run, of the whole cache, needs all of them to be complete."""
    shards = read_shards(target)
    if shards and part is None:
        check_all_complete(target, shards)
    return shards


def _save(
    target: Path,
    part: Shard | None,
    options: CacheOptions,
    listing: Listing,
    videos: Mapping[str, tuple[int, int]],
    stamps: Mapping[str, str],
    *,
    complete: bool,
) -> None:
    if part:
        write_shard(target, part, options, source=listing.root, stamps=stamps, complete=complete)
    else:
        write_manifest(target, options, source=listing.root, videos=videos, stamps=stamps, complete=complete)


def _check(listing: Listing, target: Path, options: CacheOptions, part: Shard | None) -> None:
    source = listing.root.resolve()
    if listing.layout == "cache":
        raise InputError(f"{listing.root} is already a frame cache")
    if options.format == "keep" and isinstance(listing, FileListing):
        raise InputError(
            f"format 'keep' copies image files, but {listing.root} contains video files: choose raw or jpeg"
        )
    if source == target.resolve() or source in target.resolve().parents:
        raise InputError(f"the cache {target} is inside its source {listing.root}: choose another folder")
    check_positive(short_side=options.short_side, num_frames=options.num_frames)
    if not 1 <= options.quality <= 100:
        raise InputError(f"quality is {options.quality}: give a number from 1 to 100")
    blank = not target.exists() or _is_empty(target, part)  # first, since other shards can begin meanwhile
    shards = read_shards(target)
    if part and (others := {shard.count for shard in shards} - {part.count}):
        raise InputError(f"shard {part}: {target} has shards of {others.pop()}; delete its strm-shard files first")
    existing = [options_of(read_manifest(target))] if is_cache(target) else []
    wanted = asdict(options)
    for made in (asdict(found) for found in [*existing, *map(options_of, shards.values())]):
        if differing := [f"{name}={made[name]}, not {wanted[name]}" for name in made if made[name] != wanted[name]]:
            raise InputError(f"{target} has other options ({'; '.join(differing)}): choose another folder or delete it")
    if not (existing or shards or blank):
        raise InputError(f"{target} exists and is not a frame cache: choose another folder")


def _is_empty(target: Path, part: Shard | None) -> bool:
    """Whether a folder is empty; another shard that has just made it may have written its lock or a temporary file."""
    return target.is_dir() and all(part and entry.name.startswith(".") for entry in target.iterdir())


@contextmanager
def _locked(target: Path, part: Shard | None) -> Iterator[None]:
    try:
        target.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target / (f".lock-{part.number}-of-{part.count}" if part else ".lock"))
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another `strm prepare` is writing {f'shard {part} of ' if part else ''}{target}") from None
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Turn off the threads of torch operations, since videos are converted in parallel."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _present(target: Path, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the number of source frames and the bytes of each valid clip file."""
    sizes = {}
    for name in names:
        try:
            with ClipFile(_clip_path(target, name)) as clip:
                sizes[name] = (clip.source_frames, clip.size)
        except VideoError:
            continue
    return sizes


def _clip_path(target: Path, name: str) -> Path:
    return target / f"{name}{SUFFIX}"


def _check_space(convert: Converter, missing: Sequence[str], target: Path) -> None:
    """Print the estimated size of the cache, and raise an error if the disk is too small."""
    sizes = []
    for name in missing[:: max(1, len(missing) // _SAMPLE)][:_SAMPLE]:
        try:
            sizes.append(convert.estimated_bytes(name))
        except VideoError:
            continue  # reported when it is converted
    if not sizes:
        return
    needed, free = mean(sizes) * len(missing), shutil.disk_usage(target).free
    message = (
        f"{count_of(missing, 'video')} to prepare will take about {format_bytes(needed)} in {target} "
        f"({format_bytes(free)} free)"
    )
    if needed > free:
        raise InputError(f"{message}: use format jpeg, policy release or a split, which need less")
    _log(message)


def _kept(target: Path, source: Path) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Return the source frames and bytes of each clip in an existing cache, and the stamps of their sources."""
    if not is_cache(target):
        return {}, {}
    manifest = read_manifest(target)
    if manifest["videos"] and manifest["source"] != str(source):
        _log(f"{target} has clips of {manifest['source']}; clips of files with the same name, size and time are kept")
    return {name: (frames, size) for name, (frames, size) in manifest["videos"].items()}, dict(manifest["stamps"])


def _log_unrecorded(target: Path, names: Sequence[str]) -> None:
    if names:
        _log(
            f"{target} was written by a version that did not record its sources: {count_of(names, 'clip')} kept, and "
            "changes are detected from now on; delete the folder if a source has changed since"
        )


def _log(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def _work(convert: Converter, names: Sequence[str], jobs: int) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    done: dict[str, tuple[int, int]] = {}
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(jobs) as pool:  # decoding, resizing and encoding release the GIL
        futures = {pool.submit(convert, name): name for name in names}
        try:
            for future in tqdm(
                as_completed(futures), "Preparing", len(futures), unit="videos", disable=None if names else True
            ):
                name = futures[future]
                try:
                    done[name] = future.result()
                except VideoError as error:
                    failed[name] = str(error).removeprefix(f"{convert.listing.paths[name]}: ")
                except OSError as error:
                    raise InputError(
                        f"{convert.target} cannot be written ({error.strerror}): free disk space and run it again"
                    ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return done, failed


def _sweep(target: Path, names: Sequence[str]) -> None:
    """Delete partial files of killed runs; younger files may belong to a run on another machine."""
    for folder in {target, *(_clip_path(target, name).parent for name in names)}:
        sweep_parts(folder, older_than_s=3600.0)
