"""A bank of features: every video is encoded once and used in any number of episodes."""

import json
import os
import shutil
import socket
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from strm_lightning.errors import InputError, WriteError
from strm_lightning.fileio import atomic_path
from strm_lightning.messages import format_bytes
from strm_lightning.models.matching.base import Encoded

_MEMORY = "main memory"
_FORMAT = 2
_CHECKED_AT_ONCE = 2**26  # bytes


class DamagedBankError(InputError):
    """A file of features cannot be used; it is made again."""


class FeatureBank:
    """Tensors of each video by name, in main memory or, beyond a limit, in a memory-mapped file.

    Args:
        rows: rows of the videos that the bank is to hold.
        views: stored views of each video.
        limit_gb: gigabytes (10^9 bytes) of main memory it may take; a larger bank is a temporary file, memory-mapped.

    Attributes:
        tensors: features by name, one leading row for each video and view; None before the first are put.
        place: description of where they are.
    """

    def __init__(self, rows: Iterable[int], *, views: int = 1, limit_gb: float = 8.0) -> None:
        self.rows = torch.tensor(sorted(set(rows)), dtype=torch.long)
        self.views, self.limit_gb = views, limit_gb
        self.tensors: Encoded | None = None
        self.place = _MEMORY
        self._place_of = torch.full((int(self.rows.max()) + 1 if len(self.rows) else 0,), -1)
        self._place_of[self.rows] = torch.arange(len(self.rows))

    def fill(
        self,
        batches: Iterable[Sequence[Any]],
        encode: Callable[[Any], Encoded],
        *,
        device: torch.device | str = "cpu",
        tell: Callable[[str], object] = str,
    ) -> None:
        """Encode batches of ``(row, view) [n, 2]`` and clips ``[n, L, 3, H, W]``, without gradients.

        Args:
            batches: keys, and clips or whatever else is to be encoded.
            encode: clips to their features.
            device: where to encode.
            tell: told how large the bank will be and where, before anything is allocated.
        """
        with torch.no_grad():
            for keys, clips in batches:
                features = encode(clips.to(device, non_blocking=True))
                if self.tensors is None:
                    tell(self.plan(features))
                    self._allocate(features)
                self.put(keys, features)

    def plan(self, example: Encoded) -> str:
        """Decide how large the bank will be and where, from the features of some clips; return a description.

        Nothing is allocated before the first `put`. Every process of a distributed run must call it, since all
        processes of a machine need room on one disk.

        Raises:
            InputError: it is larger than the limit, and the free space for temporary files does not hold it once for
                every process of a machine. All processes raise it.
        """
        size = len(self.rows) * self.views * sum(part.nbytes // len(part) for part in example.values())
        folder = tempfile.gettempdir() if size > self.limit_gb * 1e9 else None
        disk = (socket.gethostname(), Path(folder).stat().st_dev) if folder else None
        free = shutil.disk_usage(folder).free if folder else 0
        mapped = [found for found in _gather((disk, folder, size, free)) if found[0]]
        for found, place, _, available in mapped:
            host, sizes = found[0], [other[2] for other in mapped if other[0] == found]
            if sum(sizes) > available:
                each = f"each of {len(sizes)} processes on {host} needs" if len(sizes) > 1 else "it takes"
                raise InputError(
                    f"a bank of {len(self.rows)} videos is too large: {each} {size / 1e9:.1f} GB, more than "
                    f"model.bank_limit_gb {self.limit_gb:g}, and {available / 1e9:.1f} GB are free in {place}; raise "
                    "the limit, set TMPDIR to a larger disk, or choose data.evaluation: episodes"
                )
        self.place = f"a temporary file in {folder}" if folder else _MEMORY
        return _words(len(self.rows), self.views, size, self.place)

    def _allocate(self, example: Encoded) -> None:
        """Take the memory or the disk space that `plan` found; all processes fail together."""
        error = None
        try:
            self.tensors = _zeros(example, len(self.rows) * self.views, mapped=self.place != _MEMORY)
        except OSError as failed:  # filled since it was planned
            error = f"{self.place} for the features of {len(self.rows)} videos: {failed.strerror}"
        if errors := [found for found in _gather(error) if found]:
            raise WriteError(f"{errors[0]}; set TMPDIR to a larger disk, or raise model.bank_limit_gb")

    def put(self, keys: Int[Tensor, "n 2"], features: Encoded) -> None:
        """Store the features of ``n`` clips; the first call allocates the bank, see `plan`."""
        features = {name: tensor.cpu() for name, tensor in features.items()}
        if self.tensors is None:
            self.plan(features)
            self._allocate(features)
        places = self._place_of[keys[:, 0]] * self.views + keys[:, 1]
        assert self.tensors is not None
        for name, source in features.items():
            self.tensors[name][places] = source

    def get(self, rows: Int[Tensor, "*B"], views: Int[Tensor, "*B"] | None = None) -> Encoded:
        """Features of the videos in ``rows``, whose axes come first.

        Raises:
            KeyError: a video is not in the bank.
        """
        places = self._place_of[rows]
        if self.tensors is None or (places < 0).any():
            raise KeyError(f"{int((places < 0).sum())} of {rows.numel()} videos are not in the bank")
        places = (places * self.views + (0 if views is None else views)).flatten()
        # Whole rows are copied, several times faster than by fancy indexing.
        return {
            name: tensor.index_select(0, places.to(tensor.device)).unflatten(0, rows.shape)
            for name, tensor in self.tensors.items()
        }

    def move(self, device: torch.device) -> None:
        """Put the bank on a GPU where it takes no more than half of what is free there; else it stays where it is."""
        if self.tensors is not None and device.type == "cuda" and 2 * self.nbytes < torch.cuda.mem_get_info(device)[0]:
            self.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
            self.place = f"the memory of {device}"

    def share(self, own: Sequence[int], device: torch.device) -> None:
        """Give every process the features of all; ``own`` are the rows that this one has encoded for the others."""
        if not dist.is_initialized() or self.tensors is None:
            return
        foreign = torch.ones(len(self.rows), dtype=torch.bool)
        foreign[self._place_of[torch.tensor(own, dtype=torch.long)]] = False
        for tensor in self.tensors.values():
            tensor[foreign.repeat_interleave(self.views)] = 0
            for chunk in tensor.split(64):  # rows are zero in all processes but one, so adding joins them
                part = chunk.to(device)
                dist.all_reduce(part)
                chunk.copy_(part)

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the bank to one safetensors file, whole or not at all.

        Its header holds the fingerprint, the rows, the views and a CRC-32 of every tensor.

        Raises:
            WriteError: the file cannot be written, for example because the disk is full.
        """
        tensors = {name: tensor.cpu() for name, tensor in (self.tensors or {}).items()}
        about = json.dumps(
            {
                "format": _FORMAT,
                "fingerprint": fingerprint,
                "rows": self.rows.tolist(),
                "views": self.views,
            }
        )
        sums = {name: _checksum(tensor, about) for name, tensor in tensors.items()}
        try:
            with atomic_path(path) as part:
                save_file(tensors, part, {"bank": about, "checksums": json.dumps(sums)})
        except (OSError, SafetensorError) as error:
            raise WriteError(f"{path} cannot be written ({error})") from error

    @classmethod
    def load(cls, path: Path, fingerprint: str, *, check: bool = True) -> "FeatureBank | None":
        """The bank in a file, memory-mapped; None where there is none or one of another fingerprint.

        Args:
            path: a file that `save` wrote.
            fingerprint: what the bank must depend on.
            check: read the whole file and compare its checksums. One process of a machine is enough.

        Raises:
            DamagedBankError: the file is cut off, is no bank, or its contents differ from its checksums.
        """
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                about, sums = json.loads(metadata["bank"]), json.loads(metadata["checksums"])
                if about["format"] != _FORMAT or about["fingerprint"] != fingerprint:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if sums.keys() != tensors.keys():
                raise ValueError(f"it holds {sorted(tensors)} instead of {sorted(sums)}")
            bank = cls(about["rows"], views=about["views"])
            bank.tensors = _checked(tensors, len(bank.rows) * bank.views)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DamagedBankError(f"{path} is no whole bank of features ({error})") from error
        for name, tensor in tensors.items():
            if check and sums.get(name) != _checksum(tensor, metadata["bank"]):
                raise DamagedBankError(f"{path} is damaged: the checksum of {name} differs")
        bank.place = str(path)
        return bank

    def describe(self) -> str:
        """Number of videos, size and place, for a message."""
        return _words(len(self.rows), self.views, self.nbytes, self.place)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(tensor.nbytes for tensor in (self.tensors or {}).values())


def _words(videos: int, views: int, size: int, place: str) -> str:
    each = f", {views} views of each" if views > 1 else ""
    return f"{videos} videos{each}, {format_bytes(size)} in {place}"


def _checked(tensors: Encoded, clips: int) -> Encoded:
    """The tensors of a file, if each has one row for every clip."""
    if not tensors:
        raise ValueError("it holds no tensor")
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or len(tensor) != clips:
            raise ValueError(f"{name} is of shape {list(tensor.shape)}, not of {clips} clips")
    return tensors


def _checksum(tensor: Tensor, about: str) -> int:
    """CRC-32 of the header and the bytes of a tensor; it differs for other rows, another order or other contents."""
    checksum = zlib.crc32(f"{about} {tensor.dtype} {list(tensor.shape)}".encode())
    for part in tensor.contiguous().flatten().view(torch.uint8).split(_CHECKED_AT_ONCE):
        checksum = zlib.crc32(part.numpy(), checksum)
    return checksum


def _zeros(like: Encoded, clips: int, *, mapped: bool) -> Encoded:
    """Memory for the features of so many clips, each as large as one of these.

    Raises:
        OSError: a mapped file does not fit on its disk.
    """
    made: Encoded = {}
    # A mapped file lives on without a name: it goes with the last process that maps it, even one that is killed.
    with tempfile.TemporaryDirectory(prefix="strm-bank-", ignore_cleanup_errors=True) as folder:
        for name, tensor in like.items():
            shape = (clips, *tensor.shape[1:])
            made[name] = (
                _mapped(Path(folder) / name, shape, tensor.dtype) if mapped else torch.zeros(shape, dtype=tensor.dtype)
            )
    return made


def _mapped(path: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros in a new file whose blocks are reserved.

    A write to a mapped file that has no blocks yet kills the process by SIGBUS when the disk is full.
    """
    size = torch.Size(shape).numel()
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
            os.posix_fallocate(file.fileno(), 0, max(size * dtype.itemsize, 1))
    return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(tuple(shape))


def _gather(value: Any) -> list[Any]:
    """The value of every process, in the order of ranks."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
