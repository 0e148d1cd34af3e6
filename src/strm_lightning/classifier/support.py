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
from strm_lightning.models.matching.base import Encoded, Evidence
from strm_lightning.models.matching.kernel_methods import KernelRidge
from strm_lightning.models.strm import STRM

_FLOATS_AT_ONCE = 2**24  # elements of the largest tensor of a match: 64 MB of float32
_CLIPS_AT_ONCE = 256  # support clips of a chunk
_ONE_BY_ONE, _FOLDS = 60, 20  # up to so many clips are left out one by one; more in so many folds
_LEFT_OUT = 512  # clips that are left out at most


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
    mask: Bool[Tensor, "N K"] | None  # None if no shot is absent: matching without a mask copies nothing
    prepared: Encoded  # of `STRMHead.prepare`


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
        self._changed()

    def _changed(self) -> None:
        self._chunks: list[_Chunk] | None = None
        self._left_out: tuple[Float[Tensor, "n N"], Int[Tensor, " n"]] | None = None

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
        self._changed()

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
        self._changed()

    def rename(self, label: str, name: str) -> None:
        """Rename a class; if a class of the new name exists, they are merged.

        Raises:
            InputKeyError: the class does not exist.
        """
        if label not in self.clips:
            raise InputKeyError(f"no class {label!r}; there are {', '.join(self.labels) or 'none'}")
        clips = self.clips.pop(label)
        self.clips.setdefault(name, []).extend(clips)
        self._changed()

    @property
    def shots(self) -> list[int]:
        """Number of clips of each class, in the order of `labels`."""
        return [len(self.clips[label]) for label in self.labels]

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
            found = [self.model.head.match_prepared(chunk.prepared, part, chunk.mask) for chunk in self._arranged()]
            rows.append(tuple(_join([getattr(f, head) for f in found], 1) for head in ("trm", "qc")))
        order = columns.argsort()
        trm, qc = (_join([row[head] for row in rows], 0) for head in (0, 1))
        assert trm is not None
        return MatchLogits(trm=trm[:, order], qc=None if qc is None else qc[:, order])

    @torch.no_grad()
    def leave_one_out(self) -> tuple[Float[Tensor, "n N"], Int[Tensor, " n"]]:
        """Match support clips with the support set without them.

        Clips that are the only one of their class are not used, and at most 512 clips, the first of each class. Methods
        with `Matching.leave_out` leave out several clips at a time if there are more than 60.

        Returns:
            Combined logits ``[n, N]``, and the class of each clip ``[n]``.
        """
        if self._left_out is None:
            self._left_out = self._leave_one_out()
        return self._left_out

    @torch.no_grad()
    def leave_classes_out(self) -> Float[Tensor, "n N"]:
        """Match the clips of `leave_one_out` with the support set without their class.

        Returns:
            Combined logits ``[n, N]``, with -inf for the own class of each clip.
        """
        logits, targets = self.leave_one_out()
        if self.model.head.matching.per_class:
            return logits.scatter(1, targets[:, None], -torch.inf)
        clips = self.left_out_clips()
        (chunk,) = self._arranged()
        if self.model.head.qc is None:
            folds = torch.tensor(chunk.columns)[:, None].repeat(1, max(self.shots))
            if (found := self._logits_without(chunk, folds, clips)) is not None:
                return found
        found = torch.full_like(logits, -torch.inf)
        for column in targets.unique().tolist():
            rows = targets == column
            query = _stack([self.clips[self.labels[c]][k].features for c, k in clips if c == column])
            kept = [row for row, other in enumerate(chunk.columns) if other != column]
            mask = None if chunk.mask is None else chunk.mask[kept]
            others = {name: tensor[kept] for name, tensor in chunk.features.items()}
            alone = self.model.head.match_encoded(others, query, mask).combined(self.qc_weight).float().cpu()
            part = torch.full((len(alone), len(self.labels)), -torch.inf)
            part[:, [chunk.columns[row] for row in kept]] = alone
            found[rows] = part
        return found

    def left_out_clips(self) -> list[tuple[int, int]]:
        """Return class and position of the clips of `leave_one_out`, in its order."""
        classes = [[(c, k) for k in range(shots)] if shots > 1 else [] for c, shots in enumerate(self.shots)]
        in_turn = (clip for turn in zip_longest(*classes) for clip in turn if clip is not None)
        return list(islice(in_turn, _LEFT_OUT))

    def _leave_one_out(self) -> tuple[Float[Tensor, "n N"], Int[Tensor, " n"]]:
        clips = self.left_out_clips()
        targets = torch.tensor([c for c, _ in clips], dtype=torch.long)
        if not clips:
            return torch.empty(0, len(self.labels)), targets
        found = self._leave_folds_out(clips)
        if found is not None:
            return found, targets
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

    def _leave_folds_out(self, clips: Sequence[tuple[int, int]]) -> Float[Tensor, "n N"] | None:
        """`leave_one_out` by `Matching.leave_out`, if the method supports it."""
        if self.model.head.qc is not None or self.model.head.matching.per_class:
            return None
        (chunk,) = self._arranged()
        row_of = {column: row for row, column in enumerate(chunk.columns)}
        shape = (len(chunk.columns), max(self.shots))
        folds = torch.full(shape, -1)
        for number, (c, k) in enumerate(clips):
            folds[row_of[c], k] = number if len(clips) <= _ONE_BY_ONE else (k + c) % _FOLDS
        return self._logits_without(chunk, folds, clips)

    def _logits_without(
        self, chunk: _Chunk, folds: Int[Tensor, "N K"], clips: Sequence[tuple[int, int]]
    ) -> Float[Tensor, "n N"] | None:
        row_of = {column: row for row, column in enumerate(chunk.columns)}
        found = self.model.head.matching.leave_out(chunk.prepared, folds.to(self.device), chunk.mask)
        if found is None:
            return None
        order = torch.tensor(chunk.columns).argsort()
        rows, positions = torch.tensor([(row_of[c], k) for c, k in clips]).T
        return found.float().cpu()[rows, positions][:, order]

    def _without_each(self, clips: Sequence[tuple[int, int]], query: Encoded) -> Float[Tensor, "n N"]:
        """`leave_one_out` for other methods whose logit of a class depends on the other classes."""
        (chunk,) = self._arranged()
        row_of = {column: row for row, column in enumerate(chunk.columns)}
        logits = []
        for number, (c, k) in enumerate(clips):
            shape = (len(chunk.columns), max(self.shots))
            mask = torch.ones(shape, dtype=torch.bool, device=self.device) if chunk.mask is None else chunk.mask.clone()
            mask[row_of[c], k] = False
            alone = {name: tensor[number : number + 1] for name, tensor in query.items()}
            logits.append(self.model.head.match_encoded(chunk.features, alone, mask).combined(self.qc_weight))
        order = torch.tensor(chunk.columns).argsort()
        return torch.cat(logits).float().cpu()[:, order]

    @torch.no_grad()
    def explain(self, query: Encoded) -> dict[str, dict[str, Evidence]]:
        """Return the evidence of each class for one encoded query, see `STRMHead.explain`.

        Args:
            query: features of one clip, without leading axis.
        """
        head, found = self.model.head, {}
        if head.matching.per_class:
            for label in self.labels:
                clips = {name: tensor[None] for name, tensor in self.features(label).items()}
                found[label] = head.explain(clips, query, 0)
            return found
        (chunk,) = self._arranged()
        for row, column in enumerate(chunk.columns):
            found[self.labels[column]] = head.explain(chunk.prepared, query, row, chunk.mask)
        return found

    @torch.no_grad()
    def kernels(self) -> tuple[dict[str, float], dict[str, Float[Tensor, "n N"]]]:
        """Return the share of each kernel of `KernelRidge`, and the scores of the clips of `leave_one_out` by kernel.

        A score is the mean similarity with the other clips of a class.
        """
        method = self.model.head.matching
        assert isinstance(method, KernelRidge)
        (chunk,) = self._arranged()
        order = torch.tensor(chunk.columns).argsort()
        row_of = {column: row for row, column in enumerate(chunk.columns)}
        starts = torch.tensor([0] + [self.shots[column] for column in chunk.columns]).cumsum(0)
        rows = torch.tensor([int(starts[row_of[c]]) + k for c, k in self.left_out_clips()], dtype=torch.long)
        scores = method.kernel_scores(chunk.prepared)
        weights = chunk.prepared["weights"] / chunk.prepared["weights"].sum()
        return (
            dict(zip(method.parts, weights.tolist(), strict=True)),
            {name: by_class.float().cpu()[rows][:, order] for name, by_class in scores.items()},
        )

    def _floats_per_query(self, query: Encoded) -> int:
        shots = self.shots
        clips = max(len(chunk.columns) * max(shots[column] for column in chunk.columns) for chunk in self._arranged())
        return clips * self.model.head.floats_per_pair(query)

    def chunks(self) -> list[_Chunk]:
        """Return the groups of classes that are matched together."""
        return self._arranged()

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
        present = None if mask.all() else mask.to(self.device)
        return _Chunk(columns, features, present, self.model.head.prepare(features, present))


def _stack(parts: Sequence[Encoded]) -> Encoded:
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def _join(parts: Sequence[Tensor | None], dim: int) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors, dim) if tensors else None
