"""Match names of classes and videos in list files with names on disk."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import Literal, NamedTuple

from strm_lightning.data.decode.video import VIDEO_SUFFIXES

MatchKind = Literal["exact", "spelling", "youtube id", "other folder"]
_ALIKE = str.maketrans({" ": "_", "[": None, "]": None})
_YOUTUBE = re.compile(r"([\w-]{11})(_\d{6}_\d{6})?", re.ASCII)


class Match(NamedTuple):
    """The name on disk of an entry of a list, and how it was matched."""

    name: str
    how: MatchKind


def spelling_key(name: str) -> str:
    """Return a name without differences in case, blanks, underscores, brackets and Unicode normal form.

    Examples:
        >>> spelling_key("Playing [Guitar]") == spelling_key("playing_guitar")
        True
    """
    return unicodedata.normalize("NFC", name).casefold().translate(_ALIKE)


def youtube_id(name: str) -> str | None:
    """Return the 11-character id of ``id`` or ``id_start_end``, the two names of a Kinetics video, else None.

    Examples:
        >>> youtube_id("aBc-12_xyz0_000010_000020")
        'aBc-12_xyz0'
    """
    found = _YOUTUBE.fullmatch(name)
    return found[1] if found else None


def without_suffix(name: str) -> str:
    """Return a file name without its suffix, if that is the suffix of a video (names may contain dots)."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot + suffix.lower() in VIDEO_SUFFIXES else name


def is_video(name: str) -> bool:
    """Whether a file name has the suffix of a video."""
    return without_suffix(name) != name


class VideoFinder:
    """Find the entries ``class/video`` of lists among the videos on disk.

    The first match counts: the same name; another spelling (case, blanks for underscores); the same YouTube id in the
    class. If no folder has the name of the class (flat folders, folders called ``test18``), the name or id of the video
    is searched in all folders that are no class of the lists.

    Args:
        names: videos on disk, ``class/video``, or ``video`` in a flat folder.
        list_classes: all classes in the lists.
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
        """Return the video on disk that matches an entry, or None if there is none or more than one."""
        name = f"{class_name}/{video}"
        if name in self._names:
            return Match(name, "exact")
        folder = spelling_key(class_name)
        own = folder in self._folders
        keys: list[tuple[str, MatchKind]] = [
            (spelling_key(video), "spelling"),
            (f"youtube {youtube_id(video)}", "youtube id"),
        ]
        for key, how in keys:
            found = self._by_key.get((folder if own else "*", key), ())
            if len(found) == 1:
                if own:
                    return Match(found[0], how)
                return Match(found[0], "exact" if found[0] == video else "other folder")  # flat folders have no classes
        return None
