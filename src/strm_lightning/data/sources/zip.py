"""Frames in one zip, ``…/<class>/<video>/00000001.jpg``, read by offset from a memory map."""

import json
import mmap
import struct
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load, save

from strm_lightning.data.decode import limits
from strm_lightning.data.decode.video import VideoError
from strm_lightning.data.sources.base import GONE, Layout, Listing
from strm_lightning.data.sources.counts import index_file, save_index
from strm_lightning.data.sources.frame_folders import EncodedStore, frame_files, is_image
from strm_lightning.errors import InputError
from strm_lightning.messages import format_bytes

_VERSION = 2
_ARRAYS = ("starts", "offsets", "sizes", "lengths", "checksums", "deflated")


@dataclass(frozen=True)
class _Table:
    """Positions of the frames of all videos; video v has the entries ``starts[v]`` to ``starts[v + 1]``.

    Attributes:
        names: videos, ascending.
        damaged: error of each video that cannot be read.
        starts: first entry of each video, then the number of entries.
        offsets: byte offset of the header of each entry.
        sizes: compressed size in bytes.
        lengths: uncompressed size in bytes.
        checksums: CRC-32 of the uncompressed bytes.
        deflated: 1 where the entry is compressed.
    """

    names: list[str]
    damaged: dict[str, str]
    starts: Int[np.ndarray, " V1"]
    offsets: Int[np.ndarray, " E"]
    sizes: Int[np.ndarray, " E"]
    lengths: Int[np.ndarray, " E"]
    checksums: Int[np.ndarray, " E"]
    deflated: Int[np.ndarray, " E"]

    def check(self) -> None:
        """Raise a ValueError if the arrays are inconsistent."""
        videos, entries = len(self.names), len(self.offsets)
        whole = all(isinstance(name, str) for name in self.names) and self.names == sorted(set(self.names))
        whole &= all(isinstance(reason, str) for reason in self.damaged.values()) and self.damaged.keys() <= {
            *self.names
        }
        whole &= self.starts.shape == (videos + 1,) and self.starts[0] == 0 and self.starts[-1] == entries
        whole &= bool((np.diff(self.starts) > 0).all())
        for key in _ARRAYS[1:]:
            array = getattr(self, key)
            whole &= array.shape == (entries,) and array.dtype.kind == "i" and bool((array >= 0).all())
        if not whole:
            raise ValueError("damaged index")


@dataclass(frozen=True)
class ZipListing(Listing):
    """Listing of the videos in one zip of frames."""

    table: Any = None

    @property
    def layout(self) -> Layout:
        """Name of the layout."""
        return "zip"

    def count(self, names: Sequence[str], *, progress: bool) -> dict[str, int | str]:
        """Count the entries of each video."""
        counts = dict(zip(self.table.names, np.diff(self.table.starts).tolist(), strict=True)) | self.table.damaged
        return {name: counts[name] for name in names}

    def stamp(self, name: str) -> str:
        """Return a hash of the sizes and checksums of the images of a video; other entries have no effect."""
        return _stamp(self.table, bisect_left(self.table.names, name))

    def open(self, frame_counts: Mapping[str, int], unreadable: Mapping[str, str]) -> "ZipStore":
        """Open a store that reads the zip."""
        return ZipStore(self.root, self.table, frame_counts, unreadable)


class ZipStore(EncodedStore):
    """Store of the frames in one zip, stored or deflated; checksums are verified at every read."""

    def __init__(
        self, path: Path, table: _Table, frame_counts: Mapping[str, int], unreadable: Mapping[str, str]
    ) -> None:
        super().__init__(frame_counts, unreadable)
        self._path, self._table = path, table
        row_of = {name: row for row, name in enumerate(table.names)}
        self._rows = [row_of[name] for name in self.videos]
        self._starts = np.array([table.starts[row] for row in self._rows])
        self._map: mmap.mmap | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None}

    def path_of(self, row: SupportsIndex) -> Path:
        """Path of the zip."""
        del row
        return self._path

    def _stamp(self, row: SupportsIndex) -> str:
        return _stamp(self._table, self._rows[row]) if self._path.is_file() else GONE

    def encoded(self, row: SupportsIndex, frames: Sequence[int]) -> Iterable[tuple[str, bytes]]:
        """Yield a description and the bytes of each entry."""
        if self._map is None:
            with self._path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for number in frames:
            place = f"{self._path}: frame {number} of {self.videos[row]}"
            yield place, self._entry(int(self._starts[row]) + number, place)

    def _entry(self, entry: int, place: str) -> bytes:
        table, start = self._table, int(self._table.offsets[entry])
        assert self._map is not None
        try:
            signature, name_length, extra_length = struct.unpack_from("<4s22xHH", self._map, start)
            start += 30 + name_length + extra_length
            data = self._map[start : start + int(table.sizes[entry])]
            if table.deflated[entry]:  # the limit, one byte more than the directory says, protects memory
                data = zlib.decompressobj(-15).decompress(data, int(table.lengths[entry]) + 1)
        except (struct.error, zlib.error) as error:
            raise VideoError(f"{place} is damaged ({error})") from error
        if signature != b"PK\x03\x04" or zlib.crc32(data) != table.checksums[entry]:
            raise VideoError(f"{place} is damaged (its checksum differs)")
        return data


def list_zip(path: Path) -> ZipListing:
    """List the videos in a zip; its directory is read once and kept in the user's cache folder.

    Raises:
        InputError: the file is not a zip, or it is truncated.
    """
    status = path.stat()
    index = index_file(path, "zip.safetensors")
    stamp = np.array([_VERSION, status.st_size, status.st_mtime_ns])
    table = _load(index, stamp)
    if table is None:
        table = _read_directory(path)
        arrays = {key: getattr(table, key) for key in _ARRAYS}
        save_index(index, save(arrays | {"stamp": stamp, "texts": _packed([table.names, table.damaged])}))
    return ZipListing(path, dict.fromkeys(table.names, str(path)), table=table)


def _read_directory(path: Path) -> _Table:
    try:
        with zipfile.ZipFile(path) as opened:
            infos = opened.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise InputError(f"{path} is not a complete zip ({error}); it may be truncated") from error
    videos: dict[str, dict[str, zipfile.ZipInfo]] = {}
    parent_of: dict[str, str] = {}
    damaged: dict[str, str] = {}
    for info in infos:
        path_in_zip = info.filename.replace("\\", "/")  # some programs for Windows write backslashes
        folder, _, image = path_in_zip.rpartition("/")
        parent, _, class_name = folder.rpartition("/")[0].rpartition("/")
        if not class_name or not is_image(image) or image.startswith("."):  # hidden files are ignored, as in folders
            continue
        name = f"{class_name}/{folder.rpartition('/')[2]}"
        videos.setdefault(name, {})[image] = info  # the last of entries of one name counts, as when unpacking
        reason = "is in two folders" if parent_of.setdefault(name, parent) != parent else _refuse(info)
        if reason:
            damaged[name] = f"{info.filename!r} {reason}"
    names = sorted(videos)
    frames = [[videos[name][image] for image in frame_files(videos[name])] for name in names]
    flat = [info for listed in frames for info in listed]
    return _Table(
        names=names,
        damaged=damaged,
        starts=np.cumsum([0, *map(len, frames)]),
        offsets=np.array([info.header_offset for info in flat], dtype=np.int64),
        sizes=np.array([info.compress_size for info in flat], dtype=np.int64),
        lengths=np.array([info.file_size for info in flat], dtype=np.int64),
        checksums=np.array([info.CRC for info in flat], dtype=np.int64),
        deflated=np.array([info.compress_type != zipfile.ZIP_STORED for info in flat], dtype=np.int8),
    )


def _refuse(info: zipfile.ZipInfo) -> str | None:
    parts = info.filename.replace("\\", "/").split("/")
    if not {"", ".", ".."}.isdisjoint(parts) or ":" in parts[0]:
        return "has a path outside the zip"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        return f"uses compression method {info.compress_type}, which is not supported"
    if not info.file_size:
        return "is empty (0 bytes)"
    if max(info.file_size, info.compress_size) > limits.MAX_BYTES:
        return f"is larger than {format_bytes(limits.MAX_BYTES)}"
    return None


def _load(path: Path, stamp: Int[np.ndarray, " 3"]) -> _Table | None:
    """Return the table in an index file; None if the zip has changed or the file is damaged."""
    try:
        stored = load(path.read_bytes())
        if not np.array_equal(stored["stamp"], stamp):
            return None
        names, damaged = json.loads(stored["texts"].tobytes())
        table = _Table(names=names, damaged=damaged, **{key: stored[key] for key in _ARRAYS})
        table.check()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError):
        return None
    return table


def _packed(texts: object) -> UInt8[np.ndarray, " _"]:
    return np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)


def _stamp(table: _Table, row: int) -> str:
    rows = slice(int(table.starts[row]), int(table.starts[row + 1]))
    found = np.stack([table.lengths[rows], table.checksums[rows]])
    return sha256(found.tobytes()).hexdigest()[:24]
