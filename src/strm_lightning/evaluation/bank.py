"""In-memory or memory-mapped store of per-video features, from which any number of episodes are matched."""

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
from strm_lightning.fileio import atomic_path, write_errors
from strm_lightning.messages import format_bytes
from strm_lightning.models.matching.base import Encoded

_MEMORY = "main memory"
_FORMAT = 2
_CHECKSUM_CHUNK = 2**26  # bytes


class DamagedBankError(InputError):
    """The file of a bank is damaged. The caller encodes the videos again."""


class FeatureBank:
    """Features of videos: named tensors in main memory or, above a size limit, in memory-mapped temporary files.

    Args:
        rows: rows of the videos.
        views: number of stored views of each video.
        limit_gb: largest size in main memory in gigabytes (10^9 bytes).

    Attributes:
        tensors: features by name, ``[videos * views, ...]``; None before the first `put`.
        place: description of the storage, for messages.
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
        log: Callable[[str], object] = str,
    ) -> None:
        """Encode batches of clips without gradients and store their features.

        Args:
            batches: pairs of keys (row, view) ``[n, 2]`` and the input of ``encode``, such as clips
                ``[n, L, 3, H, W]``.
            encode: computes the features of a batch.
            device: device of the inputs of ``encode``.
            log: called with size and storage of the bank before it is allocated.

        Raises:
            InputError: the bank is too large, see `plan`.
            WriteError: the memory or disk space cannot be allocated.
        """
        with torch.no_grad():
            for keys, clips in batches:
                features = encode(clips.to(device, non_blocking=True))
                if self.tensors is None:
                    log(self.plan(features))
                    self._allocate(features)
                self.put(keys, features)

    def plan(self, example: Encoded) -> str:
        """Compute the size of the bank and choose its storage; return a description of both.

        Nothing is allocated before the first `put`. All processes of a distributed run must call this method, because
        the processes of a machine share its disk.

        Args:
            example: features of some clips.

        Raises:
            InputError: the bank is larger than the limit, and the free space for temporary files is too small for the
                banks of all processes of a machine. All processes raise it.
        """
        size = len(self.rows) * self.views * sum(part.nbytes // len(part) for part in example.values())
        folder = tempfile.gettempdir() if size > self.limit_gb * 1e9 else None
        disk = (socket.gethostname(), Path(folder).stat().st_dev) if folder else None
        free = shutil.disk_usage(folder).free if folder else 0
        mapped = [found for found in _gather((disk, folder, size, free)) if found[0]]
        for found, place, _, available in mapped:
            host, sizes = found[0], [other[2] for other in mapped if other[0] == found]
            if sum(sizes) > available:
                each = f"each of {len(sizes)} processes on {host} needs" if len(sizes) > 1 else "it needs"
                raise InputError(
                    f"a bank of {len(self.rows)} videos is too large: {each} {format_bytes(size)}, more than "
                    f"model.bank_limit_gb {self.limit_gb:g}, and {format_bytes(available)} are free in {place}; raise "
                    "the limit, set TMPDIR to a folder on a larger disk, or set data.evaluation: episodes"
                )
        self.place = f"a temporary file in {folder}" if folder else _MEMORY
        return _description(len(self.rows), self.views, size, self.place)

    def _allocate(self, example: Encoded) -> None:
        """Allocate the storage that `plan` chose; if that fails in one process, all processes raise the error."""
        error = None
        try:
            self.tensors = _zeros(example, len(self.rows) * self.views, mapped=self.place != _MEMORY)
        except OSError as failed:  # the disk has become full since `plan`
            error = f"{self.place} for the features of {len(self.rows)} videos: {failed.strerror}"
        if errors := [found for found in _gather(error) if found]:
            raise WriteError(f"{errors[0]}; set TMPDIR to a folder on a larger disk, or raise model.bank_limit_gb")

    def put(self, keys: Int[Tensor, "n 2"], features: Encoded) -> None:
        """Store the features of ``n`` clips by (row, view); the first call allocates the bank."""
        features = {name: tensor.cpu() for name, tensor in features.items()}
        if self.tensors is None:
            self.plan(features)
            self._allocate(features)
        places = self._place_of[keys[:, 0]] * self.views + keys[:, 1]
        assert self.tensors is not None
        for name, source in features.items():
            self.tensors[name][places] = source

    def get(self, rows: Int[Tensor, "*B"], views: Int[Tensor, "*B"] | None = None) -> Encoded:
        """Return the features of videos.

        Args:
            rows: rows of the videos, ``[*B]``.
            views: view of each video, ``[*B]``; None for view 0.

        Returns:
            Tensors ``[*B, ...]`` by name.

        Raises:
            KeyError: a video is not in the bank.
        """
        places = self._place_of[rows]
        if self.tensors is None or (places < 0).any():
            raise KeyError(f"{int((places < 0).sum())} of {rows.numel()} videos are not in the bank")
        places = (places * self.views + (0 if views is None else views)).flatten()
        # index_select copies whole rows, several times faster than advanced indexing.
        return {
            name: tensor.index_select(0, places.to(tensor.device)).unflatten(0, rows.shape)
            for name, tensor in self.tensors.items()
        }

    def move(self, device: torch.device) -> None:
        """Move the bank to a GPU, unless it is larger than half of the GPU's free memory."""
        if self.tensors is not None and device.type == "cuda" and 2 * self.nbytes < torch.cuda.mem_get_info(device)[0]:
            self.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
            self.place = f"the memory of {device}"

    def share(self, own: Sequence[int], device: torch.device) -> None:
        """Exchange features between processes; ``own`` are the rows that this process has encoded."""
        if not dist.is_initialized() or self.tensors is None:
            return
        foreign = torch.ones(len(self.rows), dtype=torch.bool)
        foreign[self._place_of[torch.tensor(own, dtype=torch.long)]] = False
        for tensor in self.tensors.values():
            tensor[foreign.repeat_interleave(self.views)] = 0
            for chunk in tensor.split(64):  # each row is zero in all processes but one, so the sum is that row
                part = chunk.to(device)
                dist.all_reduce(part)
                chunk.copy_(part)

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the bank atomically to a safetensors file.

        The header contains the fingerprint, the rows, the number of views and a CRC-32 of every tensor.

        Raises:
            WriteError: the file cannot be written, for example because the disk is full.
        """
        tensors = {name: tensor.cpu() for name, tensor in (self.tensors or {}).items()}
        header = json.dumps(
            {"format": _FORMAT, "fingerprint": fingerprint, "rows": self.rows.tolist(), "views": self.views}
        )
        sums = {name: _checksum(tensor, header) for name, tensor in tensors.items()}
        with write_errors(path, SafetensorError), atomic_path(path) as part:
            save_file(tensors, part, {"bank": header, "checksums": json.dumps(sums)})

    @classmethod
    def load(cls, path: Path, fingerprint: str | None, *, check: bool = True) -> "FeatureBank | None":
        """Load a bank memory-mapped; return None if the file does not exist or has another fingerprint.

        Args:
            path: file that `save` wrote.
            fingerprint: expected fingerprint; None accepts any.
            check: read the whole file and verify its checksums. One process of a machine is enough.

        Raises:
            DamagedBankError: the file is truncated, is not a bank, or differs from its checksums.
        """
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                header, sums = json.loads(metadata["bank"]), json.loads(metadata["checksums"])
                if header["format"] != _FORMAT or fingerprint not in (None, header["fingerprint"]):
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if sums.keys() != tensors.keys():
                raise ValueError(f"it contains {sorted(tensors)} instead of {sorted(sums)}")
            bank = cls(header["rows"], views=header["views"])
            _check_shapes(tensors, len(bank.rows) * bank.views)
            bank.tensors = tensors
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DamagedBankError(f"{path} is not a complete bank of features ({error})") from error
        for name, tensor in tensors.items():
            if check and sums.get(name) != _checksum(tensor, metadata["bank"]):
                raise DamagedBankError(f"{path} is damaged: the checksum of {name} differs")
        bank.place = str(path)
        return bank

    def describe(self) -> str:
        """Describe number of videos, size and storage, for a message."""
        return _description(len(self.rows), self.views, self.nbytes, self.place)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(tensor.nbytes for tensor in (self.tensors or {}).values())


def _description(videos: int, views: int, size: int, place: str) -> str:
    each = f", {views} views of each" if views > 1 else ""
    return f"{videos} videos{each}, {format_bytes(size)} in {place}"


def _check_shapes(tensors: Encoded, clips: int) -> None:
    """Raise a ValueError unless each tensor has one row for every clip."""
    if not tensors:
        raise ValueError("it contains no tensor")
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or len(tensor) != clips:
            raise ValueError(f"{name} has the shape {list(tensor.shape)}, not {clips} rows")


def _checksum(tensor: Tensor, header: str) -> int:
    """Compute the CRC-32 of the header and of the dtype, shape and bytes of a tensor."""
    checksum = zlib.crc32(f"{header} {tensor.dtype} {list(tensor.shape)}".encode())
    for part in tensor.contiguous().flatten().view(torch.uint8).split(_CHECKSUM_CHUNK):
        checksum = zlib.crc32(part.numpy(), checksum)
    return checksum


def _zeros(like: Encoded, clips: int, *, mapped: bool) -> Encoded:
    """Allocate tensors of zeros ``[clips, ...]`` with the dtypes and row shapes of ``like``.

    Raises:
        OSError: the disk is too small for a mapped file.
    """
    made: Encoded = {}
    # The system frees a deleted file when the last process that maps it ends, even by a signal.
    with tempfile.TemporaryDirectory(prefix="strm-bank-", ignore_cleanup_errors=True) as folder:
        for name, tensor in like.items():
            shape = (clips, *tensor.shape[1:])
            made[name] = (
                _mapped(Path(folder) / name, shape, tensor.dtype) if mapped else torch.zeros(shape, dtype=tensor.dtype)
            )
    return made


def _mapped(path: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Create a tensor of zeros in a new file, with disk space reserved.

    Without reserved space, a write to a mapped file kills the process (SIGBUS) when the disk is full.
    """
    size = torch.Size(shape).numel()
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
            os.posix_fallocate(file.fileno(), 0, max(size * dtype.itemsize, 1))
    return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(tuple(shape))


def _gather(value: Any) -> list[Any]:
    """Return the value of every process, ordered by rank."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
