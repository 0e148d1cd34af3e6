"""Names of classes and videos as lists write them against names as folders have them."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import Literal, NamedTuple

from strm_lightning.data.decode.video import VIDEO_SUFFIXES

How = Literal["exact", "spelling", "youtube id", "other folder"]
_ALIKE = str.maketrans({" ": "_", "[": None, "]": None})
_YOUTUBE = re.compile(r"([\w-]{11})(_\d{6}_\d{6})?", re.ASCII)


class Match(NamedTuple):
    """A video on disk that a list's entry means, and by what it was recognised."""

    name: str
    how: How


def spelling_key(name: str) -> str:
    """What is left of a name when case, blanks, underscores, brackets and the coding of accents do not count."""
    return unicodedata.normalize("NFC", name).casefold().translate(_ALIKE)


def youtube_id(name: str) -> str | None:
    """The 11-character id of ``id`` or ``id_start_end``, the two ways to name a Kinetics video; None of others."""
    found = _YOUTUBE.fullmatch(name)
    return found[1] if found else None


def without_suffix(name: str) -> str:
    """A file name without its ending, if that is one of a video (dots occur in names, too)."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot + suffix.lower() in VIDEO_SUFFIXES else name


def is_video(name: str) -> bool:
    """Whether a file of this name is a video."""
    return without_suffix(name) != name


class VideoFinder:
    """Finds what a list calls ``class/video`` among the videos on disk.

    Looked for, first to last: the same name; another spelling (case, blanks for underscores); the same YouTube id in
    the class; and, where no folder has the class's name (flat folders, folders called ``test18``), the video's name
    or id in folders that no class of the lists claims, if only one video has it.

    Args:
        names: videos on disk, ``class/video`` or (flat) ``video``.
        list_classes: every class that the lists name.
    """

    def __init__(self, names: Iterable[str], list_classes: Iterable[str]) -> None:
        claimed = {spelling_key(name) for name in list_classes}
        self._names = set(names)
        self._by_key: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._folders = set()
        for name in sorted(self._names):
            folder, _, video = name.rpartition("/")
            folder = spelling_key(folder)
            self._folders.add(folder)
            for place in [folder] if folder in claimed else [folder, "*"]:
                self._by_key[place, spelling_key(video)].append(name)
                if (youtube := youtube_id(video)) is not None:
                    self._by_key[place, f"youtube {youtube}"].append(name)

    def find(self, class_name: str, video: str) -> Match | None:
        """The one video on disk that this entry means, or None where there is none or more than one."""
        name = f"{class_name}/{video}"
        if name in self._names:
            return Match(name, "exact")
        folder = spelling_key(class_name)
        own = folder in self._folders
        ways: list[tuple[str, How]] = [
            (spelling_key(video), "spelling"),
            (f"youtube {youtube_id(video)}", "youtube id"),
        ]
        for key, how in ways:
            found = self._by_key.get((folder if own else "*", key), ())
            if len(found) == 1:
                if own:
                    return Match(found[0], how)
                return Match(found[0], "exact" if found[0] == video else "other folder")  # flat folders have no classes
        return None
