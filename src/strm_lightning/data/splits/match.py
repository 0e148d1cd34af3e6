"""Match the entries of a split with the videos on disk."""

from dataclasses import dataclass, field
from pathlib import Path

from strm_lightning.data.names import Match, VideoFinder
from strm_lightning.data.sources.base import Listing
from strm_lightning.data.splits.split import Split, class_finder
from strm_lightning.data.splits.stages import STAGES, Stage
from strm_lightning.errors import InputError
from strm_lightning.messages import some_of


@dataclass(frozen=True)
class SplitMatch:
    """The entries of a split that are on disk, and those that are missing.

    Attributes:
        found: names on disk for each stage and class; a stage without classes is absent.
        missing: classes (of a split by class) or ``class/video`` entries of each stage that are not on disk.
        renamed: match of each entry that has another name on disk.
        total: number of entries of the split.
    """

    found: dict[Stage, dict[str, list[str]]]
    missing: dict[Stage, list[str]] = field(default_factory=dict)
    renamed: dict[str, Match] = field(default_factory=dict)
    total: int = 0

    def missing_message(self, split: Split, root: str | Path) -> str:
        """Describe how many entries of the split are not on disk, with examples."""
        names = [name for stage in self.missing.values() for name in stage]
        noun = "classes" if split.videos is None else "videos"
        return some_of(f"{len(names)} of {self.total} {noun} of split {split.name!r} are not under {root}", names)

    @property
    def names(self) -> list[str]:
        """Names of all videos on disk that belong to the split, ascending."""
        return sorted({name for classes in self.found.values() for videos in classes.values() for name in videos})


def match_split(listing: Listing, split: Split) -> SplitMatch:
    """Match the classes of a split, or its videos if it is by video, with a listing.

    Raises:
        InputError: the split is by class, and the listing has no class folders.
    """
    if split.videos is not None:
        return _match_videos(listing, split)
    if listing.layout == "flat":
        raise InputError(
            f"{listing.root} has no class folders, and split {split.name!r} is by class: set split or lists to a "
            "folder of list files, which contain the class of each video"
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
    finder = VideoFinder(listing.paths, [name for stage in STAGES for name in split.classes[stage]])
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
