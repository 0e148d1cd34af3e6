"""A bank of features: every video encoded once, then looked up for as many episodes as one likes."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from strm_lightning.episode import PooledMaps, TupleFeatures

Group = TypeVar("Group", PooledMaps, TupleFeatures)


class FeatureBank(Generic[Group]):
    """Features by row of the video (and stored view), held in main memory, or in a mapped file beyond a limit.

    Args:
        rows: rows of the videos that the bank is to hold.
        views: stored views of each video.
        limit_gb: gigabytes (10^9 bytes) of main memory it may take; a larger bank is a temporary file, memory-mapped.
    """

    def __init__(self, rows: Iterable[int], *, views: int = 1, limit_gb: float = 8.0) -> None:
        self.rows = torch.tensor(sorted(set(rows)), dtype=torch.long)
        self.views, self.limit_gb = views, limit_gb
        self.group: Group | None = None
        self._place = torch.full((int(self.rows.max()) + 1 if len(self.rows) else 0,), -1)
        self._place[self.rows] = torch.arange(len(self.rows))
        self._file: Any = None

    def fill(
        self,
        batches: Iterable[Sequence[Tensor]],
        encode: Callable[[Tensor], Group],
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        """Encode batches of ``(row, view) [n, 2]`` and clips ``[n, L, 3, H, W]``, without gradients."""
        with torch.no_grad():
            for keys, clips in batches:
                self.put(keys, encode(clips.to(device, non_blocking=True)))

    def put(self, keys: Int[Tensor, "n 2"], features: Group) -> None:
        """Store the features of ``n`` clips."""
        features = features.to("cpu")
        if self.group is None:
            self.group = self._allocate(features)
        places = self._place[keys[:, 0]], keys[:, 1]
        for field in fields(features):
            target, source = getattr(self.group, field.name), getattr(features, field.name)
            if source is not None:
                target[places] = source

    def get(self, rows: Int[Tensor, "*B"], views: Int[Tensor, "*B"] | None = None) -> Group:
        """Features of the videos in ``rows``, whose axes come first.

        Raises:
            KeyError: a video is not in the bank.
        """
        places = self._place[rows]
        if self.group is None or (places < 0).any():
            raise KeyError(f"{int((places < 0).sum())} of {rows.numel()} videos are not in the bank")
        return self.group[places, torch.zeros_like(places) if views is None else views]

    def share(self, own: Sequence[int], device: torch.device) -> None:
        """Give every process the features of all; ``own`` are the rows that this one has encoded for the others."""
        if not dist.is_initialized() or self.group is None:
            return
        foreign = torch.ones(len(self.rows), dtype=torch.bool)
        foreign[self._place[torch.tensor(own, dtype=torch.long)]] = False
        for field in fields(self.group):
            tensor = getattr(self.group, field.name)
            if tensor is None:
                continue
            tensor[foreign] = 0
            for chunk in tensor.split(64):  # rows are zero in all processes but one, so adding joins them
                part = chunk.to(device)
                dist.all_reduce(part)
                chunk.copy_(part)

    def describe(self) -> str:
        """How many videos, how large and where, in words."""
        where = "a temporary file" if self._file else "main memory"
        return f"{len(self.rows)} videos, {self.nbytes / 1e9:.2f} GB in {where} of each process"

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        tensors: list[Tensor | None] = []
        if self.group is not None:
            tensors = [getattr(self.group, field.name) for field in fields(self.group)]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def _allocate(self, like: Group) -> Group:
        tensors = {field.name: getattr(like, field.name) for field in fields(like)}
        shapes = {name: self._shape(tensor) for name, tensor in tensors.items() if tensor is not None}
        total = sum(torch.Size(shape).numel() * tensors[name].element_size() for name, shape in shapes.items())
        on_disk = total > self.limit_gb * 1e9
        if on_disk:
            self._file = tempfile.TemporaryDirectory(prefix="strm-bank-")
        made: dict[str, Any] = dict.fromkeys(tensors)
        for name, shape in shapes.items():
            made[name] = self._zeros(name, shape, tensors[name].dtype, on_disk=on_disk)
        return type(like)(**made)

    def _shape(self, like: Tensor) -> tuple[int, ...]:
        return (len(self.rows), self.views, *like.shape[1:])

    def _zeros(self, name: str, shape: Sequence[int], dtype: torch.dtype, *, on_disk: bool) -> Tensor:
        if not on_disk:
            return torch.zeros(shape, dtype=dtype)
        size = torch.Size(shape).numel()
        return torch.from_file(f"{self._file.name}/{name}", shared=True, size=size, dtype=dtype).view(shape)
