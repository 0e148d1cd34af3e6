"""Detect the layout of a root and list its videos."""

from pathlib import Path

from strm_lightning.data.cache.store import is_cache, list_cache
from strm_lightning.data.names import is_video
from strm_lightning.data.sources.base import Layout, LayoutOption, Listing
from strm_lightning.data.sources.frame_folders import FrameFolderListing, is_image, list_frame_folders
from strm_lightning.data.sources.video_files import FileListing, FlatListing, entries, is_folder, list_files, list_flat
from strm_lightning.data.sources.zip import list_zip
from strm_lightning.errors import InputError, MissingFileError
from strm_lightning.messages import some_of

EXPECTED = {
    "videos": "<class>/<video>.mp4 (or avi, webm, mkv, mov)",
    "frames": "<class>/<video>/00000001.jpg",
    "zip": "one zip of <class>/<video>/00000001.jpg",
    "cache": "a frame cache written by `strm prepare`",
    "flat": "<video>.webm, with list files of the classes",
}


def list_videos(root: str | Path, layout: LayoutOption = "auto") -> Listing:
    """List the videos under a root without opening them.

    Args:
        root: folder or zip.
        layout: layout of the videos; ``auto`` detects it.

    Raises:
        MissingFileError: the root does not exist.
        InputError: the root is empty, damaged or of another layout.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise MissingFileError(f"no data at {root}: no such folder")
    found = _detect(root) if layout == "auto" else layout
    if found is None:
        raise InputError(f"no videos under {root} ({_contents(root)}); expected {' or '.join(EXPECTED.values())}")
    if root.is_dir() and found == "zip":
        root = _only_zip(root) or root
    if root.is_dir() == (found == "zip"):
        kind = "folder" if root.is_dir() else "file"
        raise InputError(f"{root} is a {kind}; layout {found!r} is {EXPECTED[found]}")
    listing = _list(root, found)
    if not listing.paths:
        raise InputError(f"no videos under {root} ({_contents(root)}); layout {found!r} is {EXPECTED[found]}")
    return listing


def _list(root: Path, layout: Layout) -> Listing:
    if layout == "zip":
        return list_zip(root)
    if layout == "cache":
        return list_cache(root)
    if layout == "frames":
        return FrameFolderListing(root, list_frame_folders(root))
    if layout == "flat":
        return FlatListing(root, list_flat(root))
    return FileListing(root, list_files(root))


def _detect(root: Path) -> Layout | None:
    """Detect the layout from the first matching entry."""
    if root.is_file():
        return "zip" if root.suffix.lower() == ".zip" else None
    if is_cache(root):
        return "cache"
    inside = entries(root)
    for folder in filter(is_folder, inside):
        for inner in entries(folder):
            names = [entry.name for entry in entries(inner)] if is_folder(inner) else [inner.name]
            if any(map(is_video, names)):
                return "videos"
            if is_folder(inner) and any(map(is_image, names)):
                return "frames"
    if any(is_video(entry.name) for entry in inside):
        return "flat"
    return "zip" if _only_zip(root) else None


def _only_zip(root: Path) -> Path | None:
    zips = [Path(entry.path) for entry in entries(root) if entry.name.lower().endswith(".zip")]
    return zips[0] if len(zips) == 1 else None


def _contents(root: Path) -> str:
    if root.is_file():
        return "a file"
    inside = entries(root)
    if not inside:
        return "it is empty"
    return some_of("it contains", (entry.name + ("/" if is_folder(entry) else "") for entry in inside))
