"""Official list files of the field, in both formats in use."""

import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from strm_lightning.data.names import without_suffix
from strm_lightning.errors import InputError, MissingFileError

if TYPE_CHECKING:
    from strm_lightning.data.splits.split import Stage

_FILE = re.compile(r"(train|val|test)(?:list\d*|_few_shot)\.txt")


def read_lists(folder: Path) -> "dict[Stage, tuple[tuple[str, str], ...]]":
    """Read the (class, video) pairs of each stage from a folder's list files; a stage without a file has none.

    TRX and STRM write ``class/video`` in ``trainlist03.txt``. HyRSM writes ``train0//folder/class/video.mp4`` or
    ``train0/video`` in ``train_few_shot.txt``; a class is called as its folder there, or else ``train0``.
    Byte-order marks, CRLF and blank lines make no difference; a line that occurs twice counts once.

    Raises:
        FileNotFoundError: no folder, or no list files in it.
        ValueError: several lists for one stage, a line that names no class, or an empty list.
    """
    if not folder.is_dir():
        raise MissingFileError(f"no folder of list files at {folder}")
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if found := _FILE.fullmatch(path.name):
            files[found[1]].append(path)
    if not files:
        raise MissingFileError(f"{folder} holds no list files (trainlist03.txt … or train_few_shot.txt …)")
    for stage, paths in files.items():
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise InputError(f"{folder} holds several lists for {stage} ({names}); keep one of them in a folder")
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
            raise InputError(f"{path}, line {number}: {line.strip()!r} names no class; expected class/video")
        if parts:
            lines.append(parts)
    if not lines:
        raise InputError(f"{path} is empty")
    return lines


def _folders_name_classes(lines: list[list[str]]) -> bool:
    """Whether every ``train0`` stands for one folder and every folder for one ``train0``."""
    if any(len(parts) < 3 for parts in lines):
        return False
    pairs = {(parts[0], parts[-2]) for parts in lines}
    return len(pairs) == len({first for first, _ in pairs}) == len({folder for _, folder in pairs})
