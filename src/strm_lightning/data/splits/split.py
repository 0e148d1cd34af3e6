"""Splits of a data set into train, val and test by class: seeded shares, class names, or list files."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from strm_lightning.data.names import spelling_key
from strm_lightning.data.splits.lists import read_lists
from strm_lightning.data.splits.stages import STAGES, Stage
from strm_lightning.errors import InputError
from strm_lightning.messages import count_of, did_you_mean, some_of

RANDOM_SHARES = {"train": 0.64, "val": 0.12, "test": 0.24}  # as in the published splits of 100 classes

NAMED = {"kinetics100": "video", "ssv2-full": "video", "ssv2-small": "video", "hmdb51": "class", "ucf101": "class"}

SplitOption = str | dict[str, list[str]] | dict[str, float]


@dataclass(frozen=True)
class Split:
    """The classes, and optionally the videos, of each stage.

    Attributes:
        name: ``random``, ``classes``, or the name or folder that the user gave.
        classes: class names of each stage; a class belongs to one stage only.
        videos: (class, video) pairs of each stage, or None for all videos of the classes.

    Raises:
        InputError: stages overlap, or there are no classes.
    """

    name: str
    classes: Mapping[Stage, tuple[str, ...]]
    videos: Mapping[Stage, tuple[tuple[str, str], ...]] | None = None

    def __post_init__(self) -> None:
        stage_of: dict[str, Stage] = {}
        twice = []
        for stage in STAGES:
            for name in self.classes[stage]:
                first = stage_of.setdefault(spelling_key(name), stage)
                if first != stage:
                    twice.append(f"{name!r} ({first} and {stage})")
        if twice:
            raise InputError(some_of(f"split {self.name!r} has classes in two stages", twice))
        if not stage_of:
            raise InputError(f"split {self.name!r} has no classes")


def resolve_split(split: SplitOption, *, lists: str | None, class_names: Sequence[str], seed: int) -> Split:
    """Return the classes (and videos) of a split option.

    Args:
        split: ``random`` (64 % of the classes to train, 12 % to validate, 24 % to test), shares of the classes
            (``{train: 0.5, test: 0.5}``), class names (``{train: [wave, …], test: […]}``), a published split
            (``kinetics100``, ``ssv2-full``, ``ssv2-small``, ``hmdb51``, ``ucf101``), or the folder of list files
            (of TRX and STRM, ``trainlist03.txt``, or of HyRSM, ``train_few_shot.txt``).
        lists: folder of list files for a published split that picks videos (the first three).
        class_names: classes on disk.
        seed: seed of the shuffle for shares.

    Raises:
        InputError: the split, a stage or a class is unknown, shares are out of range, or stages overlap.
        MissingFileError: there are no list files.
    """
    if lists is not None and (isinstance(split, dict) or split not in NAMED):
        raise InputError(f"lists need a published split ({', '.join(NAMED)}), not {split!r}")
    if not class_names and (isinstance(split, dict) or split == "random"):
        raise InputError(
            f"split {split!r} needs class folders: set split to a folder of list files, which contain the classes"
        )
    if isinstance(split, dict):
        _check_stages(split)
        names = {stage: value for stage, value in split.items() if isinstance(value, list)}
        shares = {stage: value for stage, value in split.items() if isinstance(value, int | float)}
        if len(names) < len(split) > len(shares):
            raise InputError(f"a split maps every stage to class names or every stage to a share, not {split}")
        return _by_names(names, class_names) if names else _by_shares(shares, class_names, seed)
    if split == "random":
        return _by_shares(RANDOM_SHARES, class_names, seed)
    if split in NAMED:
        return _named(split, None if lists is None else Path(lists))
    if Path(split).is_dir():
        return _by_lists(split, Path(split))
    hint = did_you_mean(split, ("random", *NAMED))
    raise InputError(f"unknown split {split!r}: {hint}choose random, {', '.join(NAMED)} or a folder of list files")


def _by_shares(shares: Mapping[str, float], class_names: Sequence[str], seed: int) -> Split:
    """Split by the largest remainder method, with at least one class for each share above 0."""
    wanted = {stage: shares.get(stage, 0.0) for stage in STAGES}
    total = sum(wanted.values())
    if min(wanted.values()) < 0 or not 0 < total < 1 + 1e-6:
        raise InputError(f"shares of a split must be between 0 and 1 and sum to at most 1, not {dict(shares)}")
    needed = [stage for stage in STAGES if wanted[stage] > 0]
    if len(class_names) < len(needed):
        raise InputError(f"{count_of(class_names, 'class')} cannot be split into {', '.join(needed)}")
    exact = {stage: wanted[stage] * len(class_names) for stage in needed}
    counts = {stage: max(1, int(exact[stage] + 1e-9)) for stage in needed}
    while sum(counts.values()) < round(total * len(class_names)):
        counts[max(needed, key=lambda stage: exact[stage] - counts[stage])] += 1
    while sum(counts.values()) > len(class_names):
        counts[max(needed, key=lambda stage: counts[stage])] -= 1
    order = sorted(class_names)
    random.Random(f"{seed}/split").shuffle(order)
    classes: dict[Stage, tuple[str, ...]] = {}
    for stage in STAGES:
        taken, order = order[: counts.get(stage, 0)], order[counts.get(stage, 0) :]
        classes[stage] = tuple(sorted(taken))
    return Split("random", classes)


def _by_names(names: Mapping[str, Sequence[str]], class_names: Sequence[str]) -> Split:
    find = class_finder(class_names)
    unknown = [name for chosen in names.values() for name in chosen if find(name) is None]
    if unknown:
        there = some_of(f"there are {len(class_names)} classes", class_names)
        raise InputError(
            f"{some_of('unknown classes', map(repr, unknown))}; {did_you_mean(unknown[0], class_names)}{there}"
        )
    return Split(
        "classes", {stage: tuple(sorted({find(name) or "" for name in names.get(stage, ())})) for stage in STAGES}
    )


def _by_lists(name: str, folder: Path) -> Split:
    videos = {stage: _spelled_alike(pairs) for stage, pairs in read_lists(folder).items()}
    classes = {stage: tuple(sorted({pair[0] for pair in videos[stage]})) for stage in STAGES}
    return Split(name, classes, videos)


def _named(name: str, lists: Path | None) -> Split:
    """Return a published split: classes from the package, videos (of a split by video) from list files."""
    classes = published_classes(name)
    if lists is None:
        if NAMED[name] == "video":
            raise InputError(f"split {name!r} is by video: set lists to the folder of its list files")
        return Split(name, classes)
    found = _by_lists(name, lists)
    assert found.videos is not None
    official: dict[str, tuple[Stage, str]] = {}
    for stage in STAGES:
        for number, title in enumerate(classes[stage]):
            official[spelling_key(title)] = official[f"{stage}{number}"] = (stage, title)
    other = [c for stage in STAGES for c in found.classes[stage] if official.get(spelling_key(c), ("",))[0] != stage]
    if other:
        raise InputError(some_of(f"the lists in {lists} contain classes not in split {name!r}", map(repr, other)))
    titles = {c: official[spelling_key(c)][1] for stage in STAGES for c in found.classes[stage]}
    videos = {stage: tuple((titles[c], video) for c, video in found.videos[stage]) for stage in STAGES}
    return Split(name, {s: tuple(sorted({c for c, _ in videos[s]})) for s in STAGES}, videos)


@cache
def published_classes(name: str) -> Mapping[Stage, tuple[str, ...]]:
    """Return the class names of a published split, in the order of the numbers in list files (``test18``)."""
    text = files("strm_lightning.data.splits").joinpath("splits.json").read_text(encoding="utf-8")
    return {stage: tuple(names) for stage, names in json.loads(text)[name].items()}


def _spelled_alike(pairs: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Use the first spelling of each class in all pairs."""
    spelling: dict[str, str] = {}
    alike = {name: spelling.setdefault(spelling_key(name), name) for name in dict.fromkeys(name for name, _ in pairs)}
    return tuple((alike[name], video) for name, video in pairs)


def class_finder(class_names: Sequence[str]) -> Callable[[str], str | None]:
    """Return a function that maps a class name, in any spelling, to the one in ``class_names``, or None."""
    exact = set(class_names)
    by_key = {spelling_key(name): name for name in class_names}
    return lambda name: name if name in exact else by_key.get(spelling_key(name))


def _check_stages(split: Mapping[str, object]) -> None:
    unknown = set(split) - set(STAGES)
    if unknown or not split:
        raise InputError(f"the stages of a split are {', '.join(STAGES)}, not {', '.join(sorted(unknown)) or 'none'}")
