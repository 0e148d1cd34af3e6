"""Read the list files of published splits, in the format of TRX and STRM or of HyRSM."""

import re
from collections import defaultdict
from pathlib import Path

from strm_lightning.data.names import without_suffix
from strm_lightning.data.splits.stages import Stage
from strm_lightning.errors import InputError, MissingFileError

_FILE = re.compile(r"(train|val|test)(?:list\d*|_few_shot)\.txt")


def read_lists(folder: Path) -> dict[Stage, tuple[tuple[str, str], ...]]:
    """Read the (class, video) pairs of each stage from the list files in a folder.

    TRX and STRM write ``class/video`` in ``trainlist03.txt``. HyRSM writes ``train0//folder/class/video.mp4`` or
    ``train0/video`` in ``train_few_shot.txt``; the class is the name of the folder if the lines have one, else
    ``train0``. Byte-order marks, CRLF, blank lines and repeated lines are ignored.

    Args:
        folder: folder of the list files; a stage without a file has no pairs.

    Raises:
        MissingFileError: the folder does not exist or contains no list files.
        InputError: a stage has several lists, a line has no class, or a list is empty.
    """
    if not folder.is_dir():
        raise MissingFileError(f"folder of list files {folder} does not exist")
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if found := _FILE.fullmatch(path.name):
            files[found[1]].append(path)
    if not files:
        raise MissingFileError(f"{folder} contains no list files (such as trainlist03.txt or train_few_shot.txt)")
    for stage, paths in files.items():
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise InputError(f"{folder} contains several lists for {stage} ({names}); keep one of them in a folder")
    lines = {stage: _read_list(paths[0]) for stage, paths in files.items()}
    named = _folders_name_classes([line for stage in lines.values() for line in stage])
    pairs = {
        stage: tuple(dict.fromkeys((line[-2] if named else line[0], without_suffix(line[-1])) for line in listed))
        for stage, listed in lines.items()
    }
    return {"train": pairs.get("train", ()), "val": pairs.get("val", ()), "test": pairs.get("test", ())}


def _read_list(path: Path) -> list[list[str]]:
    lines = []
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    for number, line in enumerate(text.split("\n"), start=1):
        parts = [part for part in line.strip().split("/") if part]
        if len(parts) == 1:
            raise InputError(f"{path}, line {number}: {line.strip()!r} has no class; expected class/video")
        if parts:
            lines.append(parts)
    if not lines:
        raise InputError(f"{path} is empty")
    return lines


def _folders_name_classes(lines: list[list[str]]) -> bool:
    """Whether prefixes such as ``train0`` and folder names correspond one to one."""
    if any(len(parts) < 3 for parts in lines):
        return False
    pairs = {(parts[0], parts[-2]) for parts in lines}
    return len(pairs) == len({first for first, _ in pairs}) == len({folder for _, folder in pairs})
