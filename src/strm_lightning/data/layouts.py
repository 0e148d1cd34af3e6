"""How videos lie on disk: what is under a folder, found by looking."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from strm_lightning.data.videos import VIDEO_SUFFIXES

Layout = Literal["videos"]


@dataclass(frozen=True)
class Listing:
    """What is under a root, before any of it is opened.

    Attributes:
        root: the folder.
        layout: how videos lie in it.
        files: path of each video, by name (``class/video``).
    """

    root: Path
    layout: Layout
    files: Mapping[str, Path]

    @cached_property
    def by_class(self) -> Mapping[str, list[str]]:
        """Names of the videos of each class, ascending."""
        classes: dict[str, list[str]] = {}
        for name in sorted(self.files):
            classes.setdefault(name.partition("/")[0], []).append(name)
        return classes

    @property
    def class_names(self) -> list[str]:
        """Classes, ascending."""
        return list(self.by_class)

    @property
    def summary(self) -> str:
        """What was found, in words."""
        return f"found {len(self.files)} videos in {len(self.by_class)} class folders"


def list_videos(root: str | Path, layout: Layout | Literal["auto"] = "auto") -> Listing:
    """List the videos under a folder by name, opening none.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is a file, empty or laid out otherwise.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise FileNotFoundError(f"no data at {root}: there is no such folder")
    if not root.is_dir():
        raise ValueError(f"{root} is a file; data are in a folder, {_EXPECTED}")
    files: dict[str, Path] = {}
    for folder in _entries(root):
        if folder.is_dir():
            found = [Path(entry.path) for entry in _entries(folder) if _is_video(entry)]
            stems = Counter(path.stem for path in found)
            for path in found:  # a.avi beside a.mp4: both keep their endings
                files[f"{folder.name}/{path.name if stems[path.stem] > 1 else path.stem}"] = path
    if not files:
        raise ValueError(f"no videos in class folders under {root} ({_seen(root)}); expected {_EXPECTED}")
    return Listing(root, "videos" if layout == "auto" else layout, files)


_EXPECTED = "<class>/<video>.mp4 (or avi, webm, mkv, mov)"


def _entries(folder: str | Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; without hidden files, which file managers leave everywhere."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _is_video(entry: os.DirEntry[str]) -> bool:
    return Path(entry.name).suffix.lower() in VIDEO_SUFFIXES


def _seen(root: Path) -> str:
    entries = _entries(root)
    if not entries:
        return "it is empty"
    some = ", ".join(entry.name + ("/" if entry.is_dir() else "") for entry in entries[:3])
    return f"it holds {some}{' …' if len(entries) > 3 else ''}"
