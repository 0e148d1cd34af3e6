"""A bank of features: every video encoded once, then looked up for as many episodes as one likes."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from strm_lightning.episode import PooledMaps, TupleFeatures
from strm_lightning.errors import InputError

Group = TypeVar("Group", PooledMaps, TupleFeatures)
_MEMORY = "main memory"
_KINDS = {kind.__name__: kind for kind in (PooledMaps, TupleFeatures)}


class FeatureBank(Generic[Group]):
    """Features by row of the video (and stored view), held in main memory, or in a mapped file beyond a limit.

    Args:
        rows: rows of the videos that the bank is to hold.
        views: stored views of each video.
        limit_gb: gigabytes (10^9 bytes) of main memory it may take; a larger bank is a temporary file, memory-mapped.

    Attributes:
        group: the features, one leading row for each video and view; None before the first are put.
        place: where they are, in words.
    """

    def __init__(self, rows: Iterable[int], *, views: int = 1, limit_gb: float = 8.0) -> None:
        self.rows = torch.tensor(sorted(set(rows)), dtype=torch.long)
        self.views, self.limit_gb = views, limit_gb
        self.group: Group | None = None
        self.place = _MEMORY
        self._place_of = torch.full((int(self.rows.max()) + 1 if len(self.rows) else 0,), -1)
        self._place_of[self.rows] = torch.arange(len(self.rows))

    def fill(
        self,
        batches: Iterable[Sequence[Any]],
        encode: Callable[[Any], Group],
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
                if self.group is None:
                    tell(self.plan(features))
                self.put(keys, features)

    def plan(self, example: Group) -> str:
        """Decide how large the bank will be and where, from the features of some clips; say so in words.

        Nothing is allocated before the first `put`.

        Raises:
            ValueError: it is larger than the limit, and than the free space for temporary files.
        """
        size = len(self.rows) * self.views * sum(part.nbytes // len(part) for part in _tensors(example).values())
        if size > self.limit_gb * 1e9:
            folder = tempfile.gettempdir()
            free = shutil.disk_usage(folder).free
            if size > free:
                raise InputError(
                    f"a bank of {len(self.rows)} videos takes {size / 1e9:.1f} GB: more than model.bank_limit_gb "
                    f"{self.limit_gb:g} and than the {free / 1e9:.1f} GB free in {folder}; raise the limit, "
                    "set TMPDIR to a larger disk, or choose data.evaluation: episodes"
                )
            self.place = f"a temporary file in {folder}"
        return _words(len(self.rows), self.views, size, self.place)

    def put(self, keys: Int[Tensor, "n 2"], features: Group) -> None:
        """Store the features of ``n`` clips; the first of them `plan` the bank."""
        features = features.to("cpu")
        if self.group is None:
            self.plan(features)
            self.group = _zeros(features, len(self.rows) * self.views, mapped=self.place != _MEMORY)
        places = self._place_of[keys[:, 0]] * self.views + keys[:, 1]
        for name, source in _tensors(features).items():
            getattr(self.group, name)[places] = source

    def get(self, rows: Int[Tensor, "*B"], views: Int[Tensor, "*B"] | None = None) -> Group:
        """Features of the videos in ``rows``, whose axes come first.

        Raises:
            KeyError: a video is not in the bank.
        """
        places = self._place_of[rows]
        if self.group is None or (places < 0).any():
            raise KeyError(f"{int((places < 0).sum())} of {rows.numel()} videos are not in the bank")
        places = (places * self.views + (0 if views is None else views)).flatten()
        # Whole rows are copied, several times faster than by fancy indexing.
        found = {
            name: tensor.index_select(0, places.to(tensor.device)).unflatten(0, rows.shape)
            for name, tensor in _tensors(self.group).items()
        }
        return type(self.group)(**found)

    def move(self, device: torch.device) -> None:
        """Put the bank on a GPU where it takes no more than half of what is free there; else it stays where it is."""
        if self.group is not None and device.type == "cuda" and 2 * self.nbytes < torch.cuda.mem_get_info(device)[0]:
            self.group, self.place = self.group.to(device), f"the memory of {device}"

    def share(self, own: Sequence[int], device: torch.device) -> None:
        """Give every process the features of all; ``own`` are the rows that this one has encoded for the others."""
        if not dist.is_initialized() or self.group is None:
            return
        foreign = torch.ones(len(self.rows), dtype=torch.bool)
        foreign[self._place_of[torch.tensor(own, dtype=torch.long)]] = False
        for tensor in _tensors(self.group).values():
            tensor[foreign.repeat_interleave(self.views)] = 0
            for chunk in tensor.split(64):  # rows are zero in all processes but one, so adding joins them
                part = chunk.to(device)
                dist.all_reduce(part)
                chunk.copy_(part)

    def save(self, folder: Path, fingerprint: str) -> None:
        """Keep the bank in a folder, whole or not at all."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        tensors = _tensors(self.group)
        about = {
            "fingerprint": fingerprint,
            "kind": type(self.group).__name__,
            "rows": self.rows.tolist(),
            "views": self.views,
            "tensors": {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()},
        }
        # Whatever happens on the way, a full disk among it, nothing half written stays.
        beside: dict[str, Any] = {"prefix": f"{folder.name}.", "dir": folder.parent}
        with tempfile.TemporaryDirectory(**beside) as part:
            made = Path(part) / "bank"
            made.mkdir()
            for name, tensor in tensors.items():
                tensor.view(torch.uint8).numpy().tofile(made / name)
            (made / "bank.json").write_text(json.dumps(about), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)  # damaged, or it would have been loaded
            made.replace(folder)

    @classmethod
    def load(cls, folder: Path, fingerprint: str) -> "FeatureBank[Any] | None":
        """The bank that was kept in a folder, memory-mapped; None where there is none, another one or a damaged one."""
        try:
            about = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
            if about["fingerprint"] != fingerprint:
                return None
            kind = _KINDS[about["kind"]]
            made: dict[str, Any] = {field.name: None for field in fields(kind)}
            for name, (dtype, shape) in about["tensors"].items():
                made[name] = _mapped(folder / name, shape, getattr(torch, dtype), new=False)
        except (OSError, ValueError, KeyError):
            return None
        bank: FeatureBank[Any] = cls(about["rows"], views=about["views"])
        bank.group, bank.place = kind(**made), str(folder)
        return bank

    def describe(self) -> str:
        """How many videos, how large and where, in words."""
        return _words(len(self.rows), self.views, self.nbytes, self.place)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(tensor.nbytes for tensor in _tensors(self.group).values())


def _words(videos: int, views: int, size: int, place: str) -> str:
    each = f", {views} views of each" if views > 1 else ""
    return f"{videos} videos{each}, {f'{size / 1e9:.1f} GB' if size >= 1e9 else f'{size / 1e6:.1f} MB'} in {place}"


def _tensors(group: PooledMaps | TupleFeatures | None) -> dict[str, Tensor]:
    return {} if group is None else {name: tensor for name, tensor in vars(group).items() if tensor is not None}


def _zeros(like: Any, clips: int, *, mapped: bool) -> Any:
    """Room for the features of so many clips, each as large as one of these."""
    made: dict[str, Any] = dict.fromkeys(vars(like))
    # A mapped file lives on without a name: it goes with the last process that maps it, even one that is killed.
    with tempfile.TemporaryDirectory(prefix="strm-bank-", ignore_cleanup_errors=True) as folder:
        for name, tensor in _tensors(like).items():
            shape = (clips, *tensor.shape[1:])
            made[name] = (
                _mapped(Path(folder) / name, shape, tensor.dtype, new=True)
                if mapped
                else torch.zeros(shape, dtype=tensor.dtype)
            )
    return type(like)(**made)


def _mapped(path: Path, shape: Sequence[int], dtype: torch.dtype, *, new: bool) -> Tensor:
    size = torch.Size(shape).numel()
    if not new and path.stat().st_size != size * dtype.itemsize:
        raise InputError(f"{path} is damaged")
    return torch.from_file(str(path), shared=new, size=size, dtype=dtype).view(tuple(shape))
