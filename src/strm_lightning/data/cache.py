"""The frame cache: one file a video with the frames that training and test can ever want, made by `strm prepare`.

A folder of ``<class>/<video>.clip`` and ``strm-cache.json``, which says what made it and lists its videos. A clip file
is a header, the frames (raw pixels, or images), and at its end the table of the frames: number, checksum, end.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from strm_lightning.data.frames import FramePolicy, reachable_frames
from strm_lightning.data.images import EncodedStore
from strm_lightning.data.index import part_of, write_atomically
from strm_lightning.data.listing import Layout, Listing, VideoStore
from strm_lightning.data.videos import VideoError

CacheFormat = Literal["raw", "jpeg", "keep"]
MANIFEST = "strm-cache.json"
SUFFIX = ".clip"
_VERSION = 1
_MAGIC = b"STRMCLIP"
_HEADER = struct.Struct("<8s6I")  # magic, version, raw or images, frames of the source, frames kept, height, width
_ENTRY = np.dtype([("number", "<i4"), ("checksum", "<u4"), ("end", "<i8")])


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
        counts: dict[str, int | str] = {}
        for name in names:
            frames, size = self.manifest["videos"][name]
            found = self.places[name].stat().st_size if self.places[name].is_file() else None
            counts[name] = frames if found == size else f"{self.places[name]} has {found} bytes, not {size}"
        return counts

    def open(self, frame_counts: Mapping[str, int], unreadable: Mapping[str, str]) -> VideoStore:
        """Read from the cache."""
        kind = RawCacheStore if self.manifest["options"]["format"] == "raw" else ImageCacheStore
        return kind(self.root, options_of(self.manifest), frame_counts, unreadable)


class _CacheStore(VideoStore):
    def __init__(
        self, root: Path, options: CacheOptions, frame_counts: Mapping[str, int], unreadable: Mapping[str, str]
    ) -> None:
        super().__init__(frame_counts, unreadable)
        self.options, self._root = options, str(root)

    def path_of(self, row: SupportsIndex) -> Path:
        """The clip file."""
        return Path(f"{self._root}/{self.videos[row]}{SUFFIX}")

    def require(self, policies: FramePolicy | Sequence[FramePolicy], num_frames: int) -> None:
        """Raise a ValueError if these policies could choose a frame that was not kept."""
        for frames in set(self.frame_counts.tolist()):
            kept = reachable_frames(self.options.policies, frames, self.options.num_frames)
            if not set(reachable_frames(policies, frames, num_frames)) <= set(kept):
                raise ValueError(
                    f"the cache {self._root} keeps the frames of {' and '.join(self.options.policies)} with "
                    f"{self.options.num_frames} frames a clip; {policies} with {num_frames} needs more: prepare anew"
                )


class RawCacheStore(_CacheStore):
    """Raw pixels, read by offset."""

    def read(self, row: SupportsIndex, frames: Sequence[int]) -> UInt8[Tensor, "n H W 3"]:
        """Copy these frames out of the file."""
        clip = ClipFile(self.path_of(row))
        with clip:
            entries = clip.find(frames)
            out = np.empty((len(entries), clip.height, clip.width, 3), dtype=np.uint8)
            for entry, image in zip(entries, out, strict=True):
                clip.read_into(entry, image)
        return torch.from_numpy(out)


class ImageCacheStore(_CacheStore, EncodedStore):
    """Images, decoded at every read."""

    def encoded(self, row: SupportsIndex, frames: Sequence[int]) -> Iterable[tuple[str, bytes]]:
        """The images as they lie in the file, held against their checksums."""
        with ClipFile(self.path_of(row)) as clip:
            for number, entry in zip(frames, clip.find(frames), strict=True):
                yield f"{clip.path}: frame {number}", clip.read(entry)


class ClipFile:
    """One clip file, open for reading.

    Raises:
        VideoError: no clip file, of another version, cut off, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise VideoError(f"{path}: cannot be read ({error.strerror})") from error
        try:
            self._read_head()
        except VideoError:
            os.close(self._file)
            raise

    def _read_head(self) -> None:
        head = os.pread(self._file, _HEADER.size, 0)
        if len(head) < _HEADER.size or not head.startswith(_MAGIC):
            raise VideoError(f"{self.path}: is no clip file of a frame cache")
        _, version, raw, self.source_frames, self.kept, self.height, self.width = _HEADER.unpack(head)
        if version != _VERSION:
            raise VideoError(f"{self.path}: is of cache format {version}; this program reads format {_VERSION}")
        self.raw = bool(raw)
        self.size = os.fstat(self._file).st_size
        end = self.size - self.kept * _ENTRY.itemsize
        table = os.pread(self._file, self.size - end, end) if end >= _HEADER.size else b""
        self.table = np.frombuffer(table, _ENTRY)
        if not len(table) or int(self.table["end"][-1]) != end:
            raise VideoError(f"{self.path}: is cut off or damaged ({self.size} bytes)")

    def __enter__(self) -> "ClipFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def find(self, frames: Sequence[int]) -> list[int]:
        """Entries of these frame numbers."""
        numbers = self.table["number"]
        entries = np.searchsorted(numbers, frames)
        absent = [
            frame for frame, entry in zip(frames, entries, strict=True) if entry == self.kept or numbers[entry] != frame
        ]
        if absent:
            raise VideoError(
                f"{self.path}: frame {absent[0]} was not kept; other frames were chosen when it was prepared"
            )
        return [int(entry) for entry in entries]

    def read(self, entry: int) -> bytes:
        """The bytes of a frame, held against their checksum."""
        start, end = self._span(entry)
        data = os.pread(self._file, end - start, start)
        if zlib.crc32(data) != self.table["checksum"][entry]:
            raise VideoError(f"{self.path}: frame {self.table['number'][entry]} is damaged (its checksum differs)")
        return data

    def read_into(self, entry: int, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Copy a frame's raw pixels; checksums are left to `strm doctor`, they cost more than the copy."""
        start, end = self._span(entry)
        if end - start != image.nbytes or os.preadv(self._file, [image.data], start) != image.nbytes:
            raise VideoError(f"{self.path}: frame {self.table['number'][entry]} is damaged")

    def _span(self, entry: int) -> tuple[int, int]:
        ends = self.table["end"]
        return int(ends[entry - 1]) if entry else _HEADER.size, int(ends[entry])


class ClipWriter:
    """Writes a clip file frame by frame; it appears whole at `finish`, or not at all.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._part = path, part_of(path)
        self._entries: list[tuple[int, int, int]] = []
        self._file = self._part.open("wb")
        self._file.write(bytes(_HEADER.size))

    def __enter__(self) -> "ClipWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    def add(self, number: int, data: bytes | memoryview) -> None:
        """Append a frame; numbers ascend."""
        self._file.write(data)
        self._entries.append((number, zlib.crc32(data), self._file.tell()))

    def finish(self, *, source_frames: int, raw_size: tuple[int, int] | None) -> int:
        """Put the file in its place, and return its size in bytes.

        Args:
            source_frames: frames that the source has.
            raw_size: height and width where the frames are raw pixels, None where they are images.
        """
        self._file.write(np.array(self._entries, _ENTRY).tobytes())
        size = self._file.tell()
        self._file.seek(0)
        kept = len(self._entries)
        self._file.write(
            _HEADER.pack(_MAGIC, _VERSION, raw_size is not None, source_frames, kept, *(raw_size or (0, 0)))
        )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._part.replace(self._path)
        return size


def is_cache(root: Path) -> bool:
    """Whether a folder says that it is a frame cache."""
    return (root / MANIFEST).is_file()


def read_manifest(root: Path) -> dict[str, Any]:
    """What a cache says of itself.

    Raises:
        ValueError: not a manifest, or of another format version.
    """
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["version"]
        if version == _VERSION:
            options_of(manifest)
            _check_names(manifest["videos"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{root / MANIFEST} is damaged ({error}); prepare the cache anew") from error
    if version != _VERSION:
        raise ValueError(f"{root} is a frame cache of format {version}; this program reads format {_VERSION}")
    return dict(manifest)


def write_manifest(
    root: Path, options: CacheOptions, *, source: Path, made_by: str, videos: Mapping[str, tuple[int, int]] | None
) -> None:
    """Write what a cache says of itself; without videos it is not finished yet."""
    manifest = {
        "version": _VERSION,
        "made_by": made_by,
        "source": str(source),
        "options": asdict(options),
        "complete": videos is not None,
        "videos": videos or {},
    }
    write_atomically(root / MANIFEST, json.dumps(manifest, sort_keys=True).encode())


def options_of(manifest: Mapping[str, Any]) -> CacheOptions:
    """The options that made a cache."""
    return CacheOptions(**manifest["options"] | {"policies": tuple(manifest["options"]["policies"])})


def list_cache(root: Path) -> CacheListing:
    """List the videos in a cache.

    Raises:
        ValueError: no cache, of another format version, damaged, or not finished.
    """
    if not is_cache(root):
        raise ValueError(f"{root} is no frame cache: it has no {MANIFEST}")
    manifest = read_manifest(root)
    if not manifest["complete"]:
        raise ValueError(f"the frame cache {root} is not finished; the same `strm prepare` again will finish it")
    places = {name: root / f"{name}{SUFFIX}" for name in sorted(manifest["videos"])}
    return CacheListing(root, places, manifest=manifest)


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if name.startswith("/") or "\\" in name or {"", ".", ".."} & set(name.split("/")):
            raise ValueError(f"{name!r} leads out of its folder")
