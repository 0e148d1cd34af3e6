"""The frame cache of `strm prepare`: for each video, all frames that training and test can choose.

It is a folder of ``<class>/<video>.clip`` files and a manifest ``strm-cache.json`` of its options and videos.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, SupportsIndex, get_args

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from strm_lightning._version import __version__
from strm_lightning.data.cache.clipfile import SUFFIX, ClipFile
from strm_lightning.data.decode.limits import MAX_FRAMES
from strm_lightning.data.sampling import FramePolicy, reachable_frames
from strm_lightning.data.sources.base import Layout, Listing, PathStore, VideoStore
from strm_lightning.data.sources.frame_folders import EncodedStore
from strm_lightning.errors import InputError
from strm_lightning.fileio import write_atomically

CacheFormat = Literal["raw", "jpeg", "keep"]
MANIFEST = "strm-cache.json"
_VERSION = 1


@dataclass(frozen=True)
class CacheOptions:
    """Options of a frame cache.

    Attributes:
        format: ``raw`` pixels, ``jpeg``, or ``keep`` for the image files of the source.
        short_side: short side of the frames in pixels; ignored for ``keep``.
        quality: JPEG quality, 1 to 100; ignored for the other formats.
        policies: frame policies that the cache supports.
        num_frames: frames of a clip, L.
    """

    format: CacheFormat
    short_side: int
    quality: int
    policies: tuple[FramePolicy, ...]
    num_frames: int


@dataclass(frozen=True)
class CacheListing(Listing):
    """Listing of a frame cache."""

    manifest: Any = None

    @property
    def layout(self) -> Layout:
        """Name of the layout."""
        return "cache"

    def count(self, names: Sequence[str], *, progress: bool) -> dict[str, int | str]:
        """Return the number of frames of the source of each video, or the error of its clip file."""
        return {name: self._count(name) for name in names}

    def _count(self, name: str) -> int | str:
        path, (frames, size) = self.paths[name], self.manifest["videos"][name]
        try:
            found = os.stat(path).st_size  # noqa: PTH116 (called for 200,000 paths; creating a Path takes longer)
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        return int(frames) if found == size else f"{path} has {found} bytes, not {size}"

    def open(self, frame_counts: Mapping[str, int], unreadable: Mapping[str, str]) -> VideoStore:
        """Open a store that reads the cache."""
        kind = RawCacheStore if self.manifest["options"]["format"] == "raw" else ImageCacheStore
        return kind(self, frame_counts, unreadable)


class _CacheStore(PathStore):
    def __init__(self, listing: CacheListing, frame_counts: Mapping[str, int], unreadable: Mapping[str, str]) -> None:
        super().__init__(listing.paths, frame_counts, unreadable)
        self.options, self._root = options_of(listing.manifest), listing.root

    def check_supports(self, policy: FramePolicy, num_frames: int, short_side: int) -> None:
        """Raise an `InputError` if the cache lacks frames of the policy, or its frames are too small."""
        made = self.options
        if made.format != "keep" and made.short_side < short_side:
            raise InputError(
                f"the cache {self._root} has frames of short side {made.short_side}; {short_side} is needed: lower "
                "data.image_size and data.short_side, or prepare a new cache with a larger --short-side"
            )
        for frames in set(self.frame_counts.tolist()):
            kept = reachable_frames(made.policies, frames, made.num_frames)
            if not set(reachable_frames(policy, frames, num_frames)) <= set(kept):
                raise InputError(
                    f"the cache {self._root} has the frames of {' and '.join(made.policies)} with {made.num_frames} "
                    f"frames a clip; {policy} with {num_frames} needs more: prepare a new cache with these options"
                )


class RawCacheStore(_CacheStore):
    """Store of a cache of raw pixels, read by offset."""

    def read(self, row: SupportsIndex, frames: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
        """Read frames from the clip file."""
        clip = ClipFile(self._paths[row])
        with clip:
            entries = clip.find(frames)
            out = np.empty((len(entries), 3, clip.height, clip.width), dtype=np.uint8)
            for entry, image in zip(entries, out, strict=True):
                clip.read_into(entry, image)
        return torch.from_numpy(out).permute(0, 2, 3, 1)


class ImageCacheStore(_CacheStore, EncodedStore):
    """Store of a cache of encoded images, decoded at every read."""

    def encoded(self, row: SupportsIndex, frames: Sequence[int]) -> Iterable[tuple[str, bytes]]:
        """Yield a description and the encoded bytes of each frame, after verifying the checksum."""
        with ClipFile(self._paths[row]) as clip:
            for number, entry in zip(frames, clip.find(frames), strict=True):
                yield f"{clip.path}: frame {number}", clip.read(entry)


def is_cache(root: Path) -> bool:
    """Whether a folder contains the manifest of a frame cache."""
    return (root / MANIFEST).is_file()


def read_manifest(root: Path) -> dict[str, Any]:
    """Read and check the manifest of a cache; ``stamps`` is empty for manifests of version 0.1, which lack it.

    Raises:
        InputError: the manifest is damaged, or of another format version.
    """
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["version"]
        if version == _VERSION:
            manifest = {"stamps": {}} | manifest
            _check(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{root / MANIFEST} is damaged ({error}): delete it and run `strm prepare` again") from error
    if version != _VERSION:
        raise InputError(f"{root} is a frame cache of format {version}; this version reads format {_VERSION}")
    return dict(manifest)


def write_manifest(
    root: Path,
    options: CacheOptions,
    *,
    source: Path,
    videos: Mapping[str, Sequence[int]],
    stamps: Mapping[str, str],
    complete: bool,
) -> None:
    """Write the manifest of a cache.

    Args:
        root: folder of the cache.
        options: options of the cache.
        source: root of the source videos.
        videos: number of frames of the source and bytes of the clip file, by name.
        stamps: `Listing.stamp` of the source of each clip, by name; also of clips that are not written yet.
        complete: whether all clips are written.
    """
    manifest = {
        "version": _VERSION,
        "made_by": f"strm_lightning {__version__}",
        "source": str(source),
        "options": asdict(options),
        "complete": complete,
        "videos": {name: list(sizes) for name, sizes in videos.items()},
        "stamps": dict(stamps),
    }
    write_atomically(root / MANIFEST, json.dumps(manifest, sort_keys=True))


def options_of(manifest: Mapping[str, Any]) -> CacheOptions:
    """Return the options of a cache from its manifest."""
    return CacheOptions(**manifest["options"] | {"policies": tuple(manifest["options"]["policies"])})


def list_cache(root: Path) -> CacheListing:
    """List the videos in a cache.

    Raises:
        InputError: the folder is not a cache, or the cache is damaged, incomplete or of another format version.
    """
    if not is_cache(root):
        raise InputError(f"{root} is not a frame cache: it contains no {MANIFEST}")
    manifest = read_manifest(root)
    if not manifest["complete"]:
        raise InputError(
            f"the frame cache {root} is incomplete: run the same `strm prepare` command again to complete it"
        )
    paths = {name: f"{root}/{name}{SUFFIX}" for name in sorted(manifest["videos"])}
    return CacheListing(root, paths, manifest=manifest)


def _check(manifest: Mapping[str, Any]) -> None:
    """Raise an error if a manifest has values that `write_manifest` cannot have written."""
    options = manifest["options"]
    for key in ("short_side", "quality", "num_frames"):
        if type(options[key]) is not int or not 0 < options[key] < MAX_FRAMES:
            raise InputError(f"{key} is {options[key]!r}")
    policies = options["policies"]
    if options["format"] not in get_args(CacheFormat) or not policies or not {*policies} <= {*get_args(FramePolicy)}:
        raise InputError(f"format {options['format']!r} or policies {policies!r} are unknown")
    options_of(manifest)  # raises a TypeError for unknown options
    if type(manifest["complete"]) is not bool or not isinstance(manifest["source"], str):
        raise InputError("complete or source is of the wrong type")
    for name, (frames, size) in manifest["videos"].items():
        if name.startswith("/") or "\\" in name or {"", ".", ".."} & set(name.split("/")):
            raise InputError(f"{name!r} is a path outside the cache")
        if type(frames) is not int or type(size) is not int or not 0 < frames <= MAX_FRAMES or size < 0:
            raise InputError(f"{name!r} has {frames!r} frames and {size!r} bytes")
    if not all(isinstance(stamp, str) for stamp in manifest["stamps"].values()):
        raise InputError("a stamp is not text")
