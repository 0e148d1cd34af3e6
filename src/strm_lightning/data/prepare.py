"""`strm prepare`: videos or frames to a frame cache, each video decoded once."""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from strm_lightning.data.cache.clipfile import SUFFIX, ClipFile
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
from strm_lightning.data.sources.base import LayoutOption, Listing, count_of
from strm_lightning.data.sources.video_files import FileListing
from strm_lightning.data.splits.match import match_split
from strm_lightning.data.splits.split import SplitOption, resolve_split
from strm_lightning.errors import InputError
from strm_lightning.fileio import sweep_parts

_SAMPLE = 16  # videos looked at to foretell the size of a cache


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` did.

    Attributes:
        out: the cache.
        written: clips written by this run.
        present: clips that were there already.
        failed: what is wrong with each video that is not in the cache.
        size: bytes of all clips.
        seconds: time taken.
        refreshed: clips among ``written`` that replace one whose source has changed.
    """

    out: Path
    written: int
    present: int
    failed: dict[str, str]
    size: int
    seconds: float
    refreshed: int = 0

    def __str__(self) -> str:
        lines = [
            f"{self.out}: {count_of(range(self.written + self.present), 'clip')}, {_bytes(self.size)}; {self.written} "
            f"written in {self.seconds:.0f} s, {self.present} there already"
        ]
        if self.refreshed:
            lines.append(f"{count_of(range(self.refreshed), 'clip')} refreshed: the source has changed")
        if self.failed:
            lines += [f"{count_of(self.failed, 'video')} could not be read:"]
            lines += [f"  {name}: {reason}" for name, reason in sorted(self.failed.items())]
        return "\n".join([*lines, f"Use it: --data.root={self.out}"])


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
) -> PrepareReport:
    """Decode each video once into a frame cache, from which training reads ten times faster than from video files.

    The same command finishes a run that was stopped or killed, and writes the clips again whose source has changed
    since. A change is seen by size and time of change (of every image in a folder of frames), in a zip by the
    checksums of the video's images. A cache of version 0.1 has no record of its sources: its clips are kept, and their
    sources are recorded from then on.

    Args:
        root: folder (or zip) of videos or frames.
        out: folder of the cache.
        split: only the videos of this split; all by default.
        lists: folder of the split's list files.
        layout: how videos lie under ``root``; ``auto`` looks.
        format: ``raw`` pixels are fastest; ``jpeg`` takes about a tenth of the room; ``keep`` copies your own image
            files unchanged and as large as they are.
        short_side: short side of the frames in pixels (raw, jpeg); 256 goes with clips of 224 pixels.
        quality: of JPEG, 1 to 100.
        policies: frame policy, or several, to keep the frames of; ``release`` needs at most 48 of a video with 8 frames
            a clip, ``segments`` needs all.
        num_frames: frames of a clip, L.
        jobs: videos at work at once; by default one for each core.
        seed: of a random split.

    Raises:
        FileNotFoundError: no such root or lists.
        ValueError: root, out or options do not fit, the disk is too small, or no video can be read.
    """
    start = time.monotonic()
    listing = list_videos(root, layout)
    chosen = (policies,) if isinstance(policies, str) else tuple(policies)
    options = CacheOptions(format, short_side, quality, chosen, num_frames)
    target = Path(out).expanduser()
    _check(listing, target, options)
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs is {jobs}: give a positive number, or none for one a core")
    names = list(listing.places)
    if split is not None:
        resolved = resolve_split(split, lists=lists, class_names=listing.class_names, seed=seed)
        match = match_split(listing, resolved)
        names = match.names
        if not names:
            raise InputError(f"none of the videos of split {split!r} is under {root}; there are {listing.summary}")
        if match.missing:
            _say(match.lacking(resolved, root))
    convert = Converter(listing, names, options, target)
    with _alone(target), _one_thread_each():
        _sweep(target, names)
        before, stamps = _kept(target, listing.root)
        sizes = _present(target, names)
        now = {name: listing.stamp(name) for name in tqdm(names, "Looking for changes", delay=2, unit="videos")}
        changed = {name for name in sizes if stamps.get(name, now[name]) != now[name]}
        _say_unrecorded(target, [name for name in sizes if name not in stamps])
        missing = [name for name in names if name not in sizes or name in changed]
        _announce(convert, missing, target)
        for name in changed:  # before the manifest has the new stamps, or a run killed after it would keep old pixels
            _clip_path(target, name).unlink(missing_ok=True)
            del sizes[name]
            before.pop(name, None)
        stamps |= now
        write_manifest(target, options, source=listing.root, videos=before, stamps=stamps, complete=False)
        present = len(sizes)
        done, failed = _work(convert, missing, jobs or os.cpu_count() or 1)
        sizes |= done
        if not sizes:
            raise InputError(
                f"none of {count_of(names, 'video')} under {root} can be read: {next(iter(failed.values()))}"
            )
        videos = {name: known for name, known in (before | sizes).items() if name not in failed}
        stamps = {name: stamp for name, stamp in stamps.items() if name in videos}
        write_manifest(target, options, source=listing.root, videos=videos, stamps=stamps, complete=True)
    size, refreshed = sum(size for _, size in sizes.values()), len(changed & done.keys())
    return PrepareReport(target, len(done), present, failed, size, time.monotonic() - start, refreshed)


def _check(listing: Listing, target: Path, options: CacheOptions) -> None:
    source = listing.root.resolve()
    if listing.layout == "cache":
        raise InputError(f"{listing.root} is a frame cache already")
    if options.format == "keep" and isinstance(listing, FileListing):
        raise InputError(f"format 'keep' copies image files, and {listing.root} holds video files: choose raw or jpeg")
    if source == target.resolve() or source in target.resolve().parents:
        raise InputError(f"the cache {target} would lie inside its source {listing.root}: choose another folder")
    if options.short_side < 1 or not 1 <= options.quality <= 100 or options.num_frames < 1:
        raise InputError(f"short_side and num_frames are 1 or more and quality is 1 to 100, not {options}")
    if is_cache(target):
        made, wanted = asdict(options_of(read_manifest(target))), asdict(options)
        if others := [f"{name}={made[name]}, not {wanted[name]}" for name in made if made[name] != wanted[name]]:
            raise InputError(f"{target} was made with {'; '.join(others)}: choose another folder or delete it")
    elif target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} is there already and is no frame cache: choose another folder")


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    try:
        target.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another `strm prepare` is at work on {target}") from None
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Videos are what is worked on in parallel; threads inside a resize would only be in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _present(target: Path, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Frames of the source and bytes of each clip file that is there and whole."""
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


def _announce(convert: Converter, missing: Sequence[str], target: Path) -> None:
    """Say how much room the cache will take, by a sample, and refuse to start what cannot end well."""
    rooms = []
    for name in missing[:: max(1, len(missing) // _SAMPLE)][:_SAMPLE]:
        try:
            rooms.append(convert.room(name))
        except VideoError:
            continue  # reported when its turn comes
    if not rooms:
        return
    room, free = round(mean(rooms) * len(missing)), shutil.disk_usage(target).free
    message = (
        f"{count_of(missing, 'video')} to prepare will take about {_bytes(room)} in {target} ({_bytes(free)} are free)"
    )
    if room > free:
        raise InputError(f"{message}: too much; format jpeg, policy release or a split need less")
    _say(message)


def _kept(target: Path, source: Path) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Frames of the source and bytes of each clip in a cache that is there already, and the stamps of their sources."""
    if not is_cache(target):
        return {}, {}
    manifest = read_manifest(target)
    if manifest["videos"] and manifest["source"] != str(source):
        _say(
            f"{target} holds clips from {manifest['source']}; those of files with the same name, size and time are kept"
        )
    return {name: (frames, size) for name, (frames, size) in manifest["videos"].items()}, dict(manifest["stamps"])


def _say_unrecorded(target: Path, names: Sequence[str]) -> None:
    if names:
        _say(
            f"{target} was made by a version that did not record the state of its sources: {count_of(names, 'clip')} "
            "kept, changes are noticed from now on; delete the folder if a source has changed since it was made"
        )


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def _work(convert: Converter, names: Sequence[str], jobs: int) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    done: dict[str, tuple[int, int]] = {}
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(jobs) as pool:  # decoding, resizing and encoding release the interpreter's lock
        futures = {pool.submit(convert, name): name for name in names}
        try:
            for future in tqdm(
                as_completed(futures), "Preparing", len(futures), unit="videos", disable=None if names else True
            ):
                name = futures[future]
                try:
                    done[name] = future.result()
                except VideoError as error:
                    failed[name] = str(error).removeprefix(f"{convert.listing.places[name]}: ")
                except OSError as error:
                    raise InputError(
                        f"{convert.target} cannot be written ({error.strerror}); with room the same command goes on"
                    ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return done, failed


def _sweep(target: Path, names: Sequence[str]) -> None:
    """Delete what runs that were killed left half written; younger files may belong to a run on another machine."""
    for folder in {target, *(_clip_path(target, name).parent for name in names)}:
        sweep_parts(folder, older_than_s=3600.0)


def _bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
