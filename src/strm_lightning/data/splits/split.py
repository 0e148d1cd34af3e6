"""Cuts of a data set into train, val and test by class: seeded shares, named classes, official lists."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args

from strm_lightning.data.names import spelling_key
from strm_lightning.data.splits.lists import read_lists
from strm_lightning.errors import InputError

Stage = Literal["train", "val", "test"]
STAGES: tuple[Stage, ...] = get_args(Stage)
RANDOM_SHARES = {"train": 0.64, "val": 0.12, "test": 0.24}  # the shares that the field's 100-class splits have

NAMED = {"kinetics100": "video", "ssv2-full": "video", "ssv2-small": "video", "hmdb51": "class", "ucf101": "class"}

SplitOption = str | dict[str, list[str]] | dict[str, float]


@dataclass(frozen=True)
class Split:
    """Which classes, and where the split is by video which videos, belong to each stage.

    Attributes:
        name: what the user called it.
        classes: class names of each stage; a class is in one stage only.
        videos: (class, video) pairs of each stage where the split is by video, else None: all videos of the classes.
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
            raise InputError(f"split {self.name!r}: {_few(twice)} in two stages at once; classes must not overlap")
        if not stage_of:
            raise InputError(f"split {self.name!r} has no classes")


def resolve_split(split: SplitOption, *, lists: str | None, class_names: Sequence[str], seed: int) -> Split:
    """Turn what a user writes for a split into classes and, where the split is by video, videos.

    Args:
        split: ``random`` (64 % of the classes to train, 12 % to validate, 24 % to test), shares of the classes
            (``{train: 0.5, test: 0.5}``), class names (``{train: [wave, …], test: […]}``), a published split
            (``kinetics100``, ``ssv2-full``, ``ssv2-small``, ``hmdb51``, ``ucf101``), or the folder of list files
            (of TRX and STRM, ``trainlist03.txt``, or of HyRSM, ``train_few_shot.txt``).
        lists: folder of list files for a published split that picks videos (the first three).
        class_names: classes that are there.
        seed: of the shuffle for shares.

    Raises:
        ValueError: unknown split, stage or class, shares out of range, or stages that overlap.
        FileNotFoundError: no list files there.
    """
    if lists is not None and (isinstance(split, dict) or split not in NAMED):
        raise InputError(f"lists go with a split by name ({', '.join(NAMED)}); {split!r} is none")
    if not class_names and (isinstance(split, dict) or split == "random"):
        raise InputError(f"no class folders to split by {split!r}: name a folder of list files, which tell the classes")
    if isinstance(split, dict):
        _check_stages(split)
        names = {stage: value for stage, value in split.items() if isinstance(value, list)}
        shares = {stage: value for stage, value in split.items() if isinstance(value, int | float)}
        if len(names) < len(split) > len(shares):
            raise InputError(f"a split gives every stage a list of class names, or every stage a share, not {split}")
        return _by_names(names, class_names) if names else _by_shares(shares, class_names, seed)
    if split == "random":
        return _by_shares(RANDOM_SHARES, class_names, seed)
    if split in NAMED:
        return _named(split, None if lists is None else Path(lists))
    if Path(split).is_dir():
        return _by_lists(split, Path(split))
    raise InputError(f"unknown split {split!r}: neither random, {', '.join(NAMED)} nor a folder of list files")


def _by_shares(shares: Mapping[str, float], class_names: Sequence[str], seed: int) -> Split:
    """Largest remainders, and at least one class for each share above 0."""
    wanted = {stage: shares.get(stage, 0.0) for stage in STAGES}
    total = sum(wanted.values())
    if min(wanted.values()) < 0 or not 0 < total < 1 + 1e-6:
        raise InputError(f"shares of a split are 0 to 1 and add up to 1 at most, not {dict(shares)}")
    needed = [stage for stage in STAGES if wanted[stage] > 0]
    if len(class_names) < len(needed):
        raise InputError(f"{len(class_names)} classes cannot be shared among {', '.join(needed)}")
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
        near = get_close_matches(unknown[0], class_names, n=3, cutoff=0.4) or sorted(class_names)[:5]
        raise InputError(f"no videos of {_few(map(repr, unknown))}; there are {len(class_names)} classes: {_few(near)}")
    return Split(
        "classes", {stage: tuple(sorted({find(name) or "" for name in names.get(stage, ())})) for stage in STAGES}
    )


def _by_lists(name: str, folder: Path) -> Split:
    videos = {stage: _spelled_alike(pairs) for stage, pairs in read_lists(folder).items()}
    classes = {stage: tuple(sorted({pair[0] for pair in videos[stage]})) for stage in STAGES}
    return Split(name, classes, videos)


def _named(name: str, lists: Path | None) -> Split:
    """A published split; its classes come with the package, its videos (where it is by video) from list files."""
    classes = published_classes(name)
    if lists is None:
        if NAMED[name] == "video":
            raise InputError(
                f"split {name!r} picks videos, not only classes: name the folder of its list files as lists"
            )
        return Split(name, classes)
    found = _by_lists(name, lists)
    assert found.videos is not None
    official: dict[str, tuple[Stage, str]] = {}
    for stage in STAGES:
        for number, title in enumerate(classes[stage]):
            official[spelling_key(title)] = official[f"{stage}{number}"] = (stage, title)
    strangers = [
        c for stage in STAGES for c in found.classes[stage] if official.get(spelling_key(c), ("",))[0] != stage
    ]
    if strangers:
        raise InputError(f"the lists in {lists} are not of split {name!r}: they have {_few(map(repr, strangers))}")
    titles = {c: official[spelling_key(c)][1] for stage in STAGES for c in found.classes[stage]}
    videos = {stage: tuple((titles[c], video) for c, video in found.videos[stage]) for stage in STAGES}
    return Split(name, {s: tuple(sorted({c for c, _ in videos[s]})) for s in STAGES}, videos)


@cache
def published_classes(name: str) -> Mapping[Stage, tuple[str, ...]]:
    """Class names of a published split, in the order that lists number them by (``test18``)."""
    text = files("strm_lightning.data").joinpath("splits.json").read_text(encoding="utf-8")
    return {stage: tuple(names) for stage, names in json.loads(text)[name].items()}


def _spelled_alike(pairs: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Give a class that a list spells in several ways the first of them."""
    spelling: dict[str, str] = {}
    alike = {name: spelling.setdefault(spelling_key(name), name) for name in dict.fromkeys(name for name, _ in pairs)}
    return tuple((alike[name], video) for name, video in pairs)


def class_finder(class_names: Sequence[str]) -> Callable[[str], str | None]:
    """A function from a class's name, however spelled, to the one among these, or None."""
    exact = set(class_names)
    by_key = {spelling_key(name): name for name in class_names}
    return lambda name: name if name in exact else by_key.get(spelling_key(name))


def _check_stages(split: Mapping[str, object]) -> None:
    unknown = set(split) - set(STAGES)
    if unknown or not split:
        raise InputError(f"a split names some of {', '.join(STAGES)}, not {', '.join(sorted(unknown)) or 'none'}")


def _few(items: object, most: int = 5) -> str:
    listed = list(items)  # type: ignore[call-overload]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
