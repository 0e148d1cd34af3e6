"""A split held against what is on disk."""

from dataclasses import dataclass, field
from pathlib import Path

from strm_lightning.data.names import Match, VideoFinder
from strm_lightning.data.sources.base import Listing, some_of
from strm_lightning.data.splits.split import STAGES, Split, Stage, class_finder
from strm_lightning.errors import InputError


@dataclass(frozen=True)
class SplitMatch:
    """Which of a split's entries are on disk.

    Attributes:
        found: names on disk for each stage and class; a stage without classes is absent.
        missing: classes (of a split by class) or ``class/video`` entries that are not on disk, for each stage.
        renamed: entries that are on disk under another name.
        total: entries of the split.
    """

    found: dict[Stage, dict[str, list[str]]]
    missing: dict[Stage, list[str]] = field(default_factory=dict)
    renamed: dict[str, Match] = field(default_factory=dict)
    total: int = 0

    def lacking(self, split: Split, root: str | Path) -> str:
        """How many of the split's entries are not on disk, and some of them, in words."""
        names = [name for stage in self.missing.values() for name in stage]
        what = "classes" if split.videos is None else "videos"
        return some_of(f"{len(names)} of {self.total} {what} of split {split.name!r} are not under {root}", names)

    @property
    def names(self) -> list[str]:
        """Every video on disk that the split wants, ascending."""
        return sorted({name for classes in self.found.values() for videos in classes.values() for name in videos})


def match_split(listing: Listing, split: Split) -> SplitMatch:
    """Look for a split's classes, or its videos where it is by video, among what is on disk.

    Raises:
        ValueError: the split is by class, and videos lie flat, without classes.
    """
    if split.videos is not None:
        return _match_videos(listing, split)
    if listing.layout == "flat":
        raise InputError(
            f"{listing.root} has no class folders, and split {split.name!r} is by class: name list files that tell the "
            "class of each video, as split or as lists"
        )
    find = class_finder(listing.class_names)
    match = SplitMatch(found={}, total=sum(map(len, split.classes.values())))
    for stage in STAGES:
        for name in split.classes[stage]:
            folder = find(name)
            match.found.setdefault(stage, {})[name] = listing.by_class[folder] if folder else []
            if folder is None:
                match.missing.setdefault(stage, []).append(name)
            elif folder != name:
                match.renamed[name] = Match(folder, "spelling")
    return match


def _match_videos(listing: Listing, split: Split) -> SplitMatch:
    assert split.videos is not None
    finder = VideoFinder(listing.places, [name for stage in STAGES for name in split.classes[stage]])
    match = SplitMatch(found={}, total=sum(map(len, split.videos.values())))
    for stage in STAGES:
        for name, video in split.videos[stage]:
            on_disk = finder.find(name, video)
            videos = match.found.setdefault(stage, {}).setdefault(name, [])
            if on_disk is None:
                match.missing.setdefault(stage, []).append(f"{name}/{video}")
                continue
            videos.append(on_disk.name)
            if on_disk.how != "exact":
                match.renamed[f"{name}/{video}"] = on_disk
    return match
