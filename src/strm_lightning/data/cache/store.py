"""The frame cache: one file a video with the frames that training and test can ever want, made by `strm prepare`.

A folder of ``<class>/<video>.clip`` files and ``strm-cache.json``, which says what made it and lists its videos.
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
    """What decides the contents of a cache.

    Attributes:
        format: raw pixels, JPEG, or the source's own image files.
        short_side: short side of the frames in pixels; of no meaning for ``keep``.
        quality: of JPEG, 1 to 100; of no meaning for the others.
        policies: frame policies whose frames are kept.
        num_frames: frames of a clip, L.
    """

    format: CacheFormat
    short_side: int
    quality: int
    policies: tuple[FramePolicy, ...]
    num_frames: int


@dataclass(frozen=True)
class CacheListing(Listing):
    """A frame cache."""

    manifest: Any = None

    @property
    def layout(self) -> Layout:
        """A frame cache."""
        return "cache"

    def count(self, names: Sequence[str], *, progress: bool) -> dict[str, int | str]:
        """Frames that the source of each video has, or what is wrong with its file."""
        return {name: self._count(name) for name in names}

    def _count(self, name: str) -> int | str:
        place, (frames, size) = self.places[name], self.manifest["videos"][name]
        try:
            found = os.stat(place).st_size  # noqa: PTH116 (of 200,000 places: a Path of each would take longer)
        except OSError as error:
            return f"{place} cannot be read ({error.strerror})"
        return int(frames) if found == size else f"{place} has {found} bytes, not {size}"

    def open(self, frame_counts: Mapping[str, int], unreadable: Mapping[str, str]) -> VideoStore:
        """Read from the cache."""
        kind = RawCacheStore if self.manifest["options"]["format"] == "raw" else ImageCacheStore
        return kind(self, frame_counts, unreadable)


class _CacheStore(PathStore):
    def __init__(self, listing: CacheListing, frame_counts: Mapping[str, int], unreadable: Mapping[str, str]) -> None:
        super().__init__(listing.places, frame_counts, unreadable)
        self.options, self._root = options_of(listing.manifest), listing.root

    def require(self, policy: FramePolicy, num_frames: int, short_side: int) -> None:
        """Raise a ValueError if the policy could choose a frame that was not kept, or frames would be blown up."""
        made = self.options
        if made.format != "keep" and made.short_side < short_side:
            raise InputError(
                f"the cache {self._root} has frames of short side {made.short_side}, and {short_side} is wanted: "
                "lower data.image_size and data.short_side, or prepare it anew with a larger --short-side"
            )
        for frames in set(self.frame_counts.tolist()):
            kept = reachable_frames(made.policies, frames, made.num_frames)
            if not set(reachable_frames(policy, frames, num_frames)) <= set(kept):
                raise InputError(
                    f"the cache {self._root} keeps the frames of {' and '.join(made.policies)} with {made.num_frames} "
                    f"frames a clip; {policy} with {num_frames} needs more: prepare it anew with these"
                )


class RawCacheStore(_CacheStore):
    """Raw pixels, read by offset."""

    def read(self, row: SupportsIndex, frames: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
        """Copy these frames out of the file."""
        clip = ClipFile(self._paths[row])
        with clip:
            entries = clip.find(frames)
            out = np.empty((len(entries), 3, clip.height, clip.width), dtype=np.uint8)
            for entry, image in zip(entries, out, strict=True):
                clip.read_into(entry, image)
        return torch.from_numpy(out).permute(0, 2, 3, 1)


class ImageCacheStore(_CacheStore, EncodedStore):
    """Images, decoded at every read."""

    def encoded(self, row: SupportsIndex, frames: Sequence[int]) -> Iterable[tuple[str, bytes]]:
        """The images as they are in the file, after a check of their checksums."""
        with ClipFile(self._paths[row]) as clip:
            for number, entry in zip(frames, clip.find(frames), strict=True):
                yield f"{clip.path}: frame {number}", clip.read(entry)


def is_cache(root: Path) -> bool:
    """Whether a folder has the manifest of a frame cache."""
    return (root / MANIFEST).is_file()


def read_manifest(root: Path) -> dict[str, Any]:
    """Read and check the manifest of a cache; ``stamps`` is empty in manifests of version 0.1, which have none.

    Raises:
        ValueError: not a manifest, or of another format version.
    """
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["version"]
        if version == _VERSION:
            manifest = {"stamps": {}} | manifest
            _check(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{root / MANIFEST} is damaged ({error}); delete it and prepare the cache again") from error
    if version != _VERSION:
        raise InputError(f"{root} is a frame cache of format {version}; this program reads format {_VERSION}")
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
        root: the cache.
        options: what decides its contents.
        source: where its videos come from.
        videos: frames of the source and bytes of the clip file, by name.
        stamps: `Listing.stamp` of the source of each clip, by name; also of clips that are not written yet.
        complete: whether every clip is written.
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
    """The options that made a cache."""
    return CacheOptions(**manifest["options"] | {"policies": tuple(manifest["options"]["policies"])})


def list_cache(root: Path) -> CacheListing:
    """List the videos in a cache.

    Raises:
        ValueError: no cache, of another format version, damaged, or not finished.
    """
    if not is_cache(root):
        raise InputError(f"{root} is no frame cache: it has no {MANIFEST}")
    manifest = read_manifest(root)
    if not manifest["complete"]:
        raise InputError(f"the frame cache {root} is not finished; the same `strm prepare` again will finish it")
    places = {name: f"{root}/{name}{SUFFIX}" for name in sorted(manifest["videos"])}
    return CacheListing(root, places, manifest=manifest)


def _check(manifest: Mapping[str, Any]) -> None:
    """Raise an InputError where a manifest cannot be what `write_manifest` wrote."""
    options = manifest["options"]
    for key in ("short_side", "quality", "num_frames"):
        if type(options[key]) is not int or not 0 < options[key] < MAX_FRAMES:
            raise InputError(f"{key} is {options[key]!r}")
    policies = options["policies"]
    if options["format"] not in get_args(CacheFormat) or not policies or not {*policies} <= {*get_args(FramePolicy)}:
        raise InputError(f"format {options['format']!r} or policies {policies!r} are not known")
    options_of(manifest)  # a TypeError where a name is unknown
    if type(manifest["complete"]) is not bool or not isinstance(manifest["source"], str):
        raise InputError("complete or source is of the wrong type")
    for name, (frames, size) in manifest["videos"].items():
        if name.startswith("/") or "\\" in name or {"", ".", ".."} & set(name.split("/")):
            raise InputError(f"{name!r} leads out of its folder")
        if type(frames) is not int or type(size) is not int or not 0 < frames <= MAX_FRAMES or size < 0:
            raise InputError(f"{name!r} has {frames!r} frames and {size!r} bytes")
    if not all(isinstance(stamp, str) for stamp in manifest["stamps"].values()):
        raise InputError("a stamp is not text")
