"""Support set of encoded clips, matched in chunks of bounded memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import PurePath

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from strm_lightning.episode import MatchLogits
from strm_lightning.errors import InputKeyError
from strm_lightning.models.matching.base import Encoded
from strm_lightning.models.strm import STRM

_FLOATS_AT_ONCE = 2**24  # elements of the largest tensor of a match: 64 MB of float32
_CLIPS_AT_ONCE = 256  # support clips of a chunk


@dataclass
class EncodedClip:
    """An encoded clip.

    Attributes:
        name: path of the video, or the shape of an array; the end of the path if the clip is from an examples file.
        digest: first 16 hexadecimal digits of the SHA-256 of the pixels.
        thumbnail: small frames for pictures, ``[L, 3, s, s]``.
        features: tensors that the matching method reads.
        stored: whether the clip is from an examples file, which does not contain whole paths.
        duration: duration of the video in seconds; None for an array.
    """

    name: str
    digest: str
    thumbnail: UInt8[Tensor, "L 3 s s"]
    features: Encoded
    stored: bool = False
    duration: float | None = None

    def is_called(self, name: str) -> bool:
        """Whether ``name`` is the name of the clip, or for a stored clip a path that ends in its name."""
        own = PurePath(self.name).parts
        return name == self.name or (self.stored and PurePath(name).parts[-len(own) :] == own)


@dataclass(frozen=True)
class _Chunk:
    """Classes with similar numbers of clips, padded to the same number of shots."""

    columns: list[int]
    features: Encoded
    mask: Bool[Tensor, "N K"]
    full: bool  # no shot is absent: matching without a mask copies nothing


class SupportSet:
    """Encoded clips by class.

    The time of a match is linear in the number of clips, its memory is constant.

    Args:
        model: the model that encodes and matches clips.
        qc_weight: lambda, the weight of QC in the combined logits.
    """

    def __init__(self, model: STRM, qc_weight: float = 0.1) -> None:
        self.model, self.qc_weight = model, qc_weight
        self.clips: dict[str, list[EncodedClip]] = {}
        self._chunks: list[_Chunk] | None = None

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def labels(self) -> list[str]:
        """The classes in ascending order, which is the order of the columns of logits."""
        return sorted(self.clips)

    def add(self, label: str, clips: Sequence[EncodedClip]) -> None:
        """Add clips to a new or existing class."""
        self.clips.setdefault(label, []).extend(clips)
        self._chunks = None

    def remove(self, label: str, name: str | None = None) -> None:
        """Remove a class, or only its clips of the given name.

        Raises:
            InputKeyError: the class does not exist, or has no such clip.
        """
        if label not in self.clips:
            raise InputKeyError(f"no class {label!r}; there are {', '.join(self.labels) or 'none'}")
        kept = [clip for clip in self.clips[label] if name is not None and not clip.is_called(name)]
        if name is not None and len(kept) == len(self.clips[label]):
            raise InputKeyError(f"no clip {name!r} in class {label!r}")
        self.clips[label] = kept
        if not kept:
            del self.clips[label]
        self._chunks = None

    def features(self, label: str) -> Encoded:
        """Features of the clips of a class, with leading axis ``K``."""
        return _stack([clip.features for clip in self.clips[label]])

    @torch.no_grad()
    def match(self, query: Encoded) -> MatchLogits:
        """Return the logits ``[Q, N]`` of encoded queries; columns are in the order of `labels`."""
        total = len(next(iter(query.values())))
        columns = torch.tensor([column for chunk in self._arranged() for column in chunk.columns])
        rows = []
        size = max(1, _FLOATS_AT_ONCE // self._floats_per_query(query))
        for start in range(0, total, size):
            part = {name: tensor[start : start + size] for name, tensor in query.items()}
            found = [
                self.model.head.match_encoded(chunk.features, part, None if chunk.full else chunk.mask)
                for chunk in self._arranged()
            ]
            rows.append(tuple(_join([getattr(f, head) for f in found], 1) for head in ("trm", "qc")))
        order = columns.argsort()
        trm, qc = (_join([row[head] for row in rows], 0) for head in (0, 1))
        assert trm is not None
        return MatchLogits(trm=trm[:, order], qc=None if qc is None else qc[:, order])

    @torch.no_grad()
    def leave_one_out(self, limit: int = 512) -> tuple[Float[Tensor, "n N"], Int[Tensor, " n"]]:
        """Match support clips with the support set without them.

        Clips that are the only one of their class are left out.

        Args:
            limit: largest number of clips; the first ones of each class are used.

        Returns:
            Combined logits ``[n, N]``, and the class of each clip ``[n]``.
        """
        classes = [
            [(c, k) for k in range(len(self.clips[label]))] if len(self.clips[label]) > 1 else []
            for c, label in enumerate(self.labels)
        ]
        in_turn = (clip for turn in zip_longest(*classes) for clip in turn if clip is not None)
        clips = list(islice(in_turn, limit))
        targets = torch.tensor([c for c, _ in clips], dtype=torch.long)
        if not clips:
            return torch.empty(0, len(self.labels)), targets
        query = _stack([self.clips[self.labels[c]][k].features for c, k in clips])
        if not self.model.head.matching.per_class:
            return self._without_each(clips, query), targets
        by_class = [self.features(label) for label in self.labels]
        logits = self.match(query).combined(self.qc_weight).float().cpu()
        for row, (c, k) in enumerate(clips):
            others = {name: torch.cat([t[:k], t[k + 1 :]])[None] for name, t in by_class[c].items()}
            alone = {name: t[row : row + 1] for name, t in query.items()}
            found = self.model.head.match_encoded(others, alone).combined(self.qc_weight)
            logits[row, c] = found.item()
        return logits, targets

    def _without_each(self, clips: Sequence[tuple[int, int]], query: Encoded) -> Float[Tensor, "n N"]:
        """`leave_one_out` for methods whose logit of a class depends on the other classes."""
        (chunk,) = self._arranged()
        row_of = {column: row for row, column in enumerate(chunk.columns)}
        logits = []
        for number, (c, k) in enumerate(clips):
            mask = chunk.mask.clone()
            mask[row_of[c], k] = False
            alone = {name: tensor[number : number + 1] for name, tensor in query.items()}
            logits.append(self.model.head.match_encoded(chunk.features, alone, mask).combined(self.qc_weight))
        order = torch.tensor(chunk.columns).argsort()
        return torch.cat(logits).float().cpu()[:, order]

    def _floats_per_query(self, query: Encoded) -> int:
        classes = max(chunk.mask.numel() for chunk in self._arranged())
        return classes * self.model.head.floats_per_pair(query)

    def _arranged(self) -> list[_Chunk]:
        if self._chunks is None:
            labels = self.labels
            groups: list[list[int]] = [[]]
            apart = self.model.head.matching.per_class
            for column in sorted(range(len(labels)), key=lambda c: len(self.clips[labels[c]])):
                if apart and groups[-1] and (len(groups[-1]) + 1) * len(self.clips[labels[column]]) > _CLIPS_AT_ONCE:
                    groups.append([])
                groups[-1].append(column)
            self._chunks = [self._chunk(group) for group in groups]
        return self._chunks

    def _chunk(self, columns: list[int]) -> _Chunk:
        members = [self.clips[self.labels[column]] for column in columns]
        most = max(map(len, members))
        mask = torch.tensor([[k < len(clips) for k in range(most)] for clips in members])
        rows = [_stack([clips[min(k, len(clips) - 1)].features for k in range(most)]) for clips in members]
        features = _stack(rows)
        for row, clips in enumerate(members):  # views of the chunk, so that no tensor is stored twice
            for k, clip in enumerate(clips):
                clip.features = {name: tensor[row, k] for name, tensor in features.items()}
        return _Chunk(columns, features, mask.to(self.device), full=bool(mask.all()))


def _stack(parts: Sequence[Encoded]) -> Encoded:
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def _join(parts: Sequence[Tensor | None], dim: int) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors, dim) if tensors else None
