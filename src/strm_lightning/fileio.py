"""The user's cache folder, and atomic writes of files."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from strm_lightning.errors import WriteError

PART_SUFFIX = ".part"  # of a temporary file of `atomic_path`: ``.NAME.ID.part``
_ID_DIGITS = 12


def cache_folder() -> Path:
    """Return the folder for cached files: ``$STRM_CACHE``, or ``strm_lightning`` in the user's cache folder."""
    if folder := os.environ.get("STRM_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "strm_lightning"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends without an error.

    Other processes see the old file or the new one, never a part of it. The data is flushed to disk before the rename,
    so this is true after a power failure too. The temporary name is unique: if two processes write the same file, the
    last one to finish wins. After an error, ``path`` is unchanged and the temporary file is deleted. If the block
    deletes the temporary file, ``path`` is unchanged.

    Args:
        path: the file to write. Its folder is created.

    Yields:
        A path in the same folder, of a file that does not exist yet.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = os.fsdecode(os.fsencode(path.name)[:180])  # file systems count bytes, at most 255
    part = path.with_name(f".{stem}.{uuid4().hex[:_ID_DIGITS]}{PART_SUFFIX}")
    try:
        yield part
        if part.exists():
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Write a file with `atomic_path`; text is encoded as UTF-8."""
    with atomic_path(path) as part:
        part.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape"))


@contextmanager
def write_errors(path: str | Path, *kinds: type[Exception]) -> Iterator[None]:
    """Convert errors of a block that only writes one file to a `WriteError`.

    Args:
        path: the file, for the message.
        *kinds: errors of the library that writes the file, in addition to `OSError`.

    Raises:
        WriteError: the block raised an `OSError` or one of ``kinds``.
    """
    errors: tuple[type[Exception], ...] = (OSError, *kinds)
    try:
        yield
    except errors as error:
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
        raise WriteError(f"{path}: cannot be written ({reason})") from error


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new temporary folder beside ``path``; rename it to ``path`` when the block ends without an error.

    After an error, the temporary folder is deleted.

    Args:
        path: the folder to write: absent or empty.

    Yields:
        An empty folder on the same file system.

    Raises:
        WriteError: the folder cannot be made, or ``path`` is not empty.
    """
    path = Path(path)
    part = path.with_name(f".{path.name[:60]}.{uuid4().hex[:_ID_DIGITS]}{PART_SUFFIX}")
    with write_errors(path):
        part.mkdir(parents=True)
    try:
        yield part
        with write_errors(path):
            if path.is_dir():
                path.rmdir()  # Windows renames to an absent folder only
            part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def sweep_parts(folder: str | Path, *, older_than_s: float = 86400.0) -> int:
    """Delete temporary files of killed processes in ``folder``, not in its subfolders.

    Args:
        folder: the folder.
        older_than_s: minimum seconds since the last change; newer files may belong to a running process.

    Returns:
        Number of deleted files.
    """
    deleted = 0
    for part in Path(folder).glob(f".*.{'[0-9a-f]' * _ID_DIGITS}{PART_SUFFIX}"):
        try:
            if time.time() - part.stat().st_mtime > older_than_s:
                part.unlink()
                deleted += 1
        except OSError:  # deleted by another process, or no permission
            continue
    return deleted
