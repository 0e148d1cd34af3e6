"""Temporary folder of the files that a page uploads or offers for download."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from strm_lightning.data.decode.video import VIDEO_SUFFIXES
from strm_lightning.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: folders of killed servers are not deleted
    fcntl = None  # type: ignore[assignment]

_PREFIX = "strm-demo-"
_LOCK = ".lock"
_ENVIRONMENT = "GRADIO_TEMP_DIR"  # where gradio stores uploads
# Bytes at the start of a file of the formats in VIDEO_SUFFIXES, and their position. FFmpeg also reads formats that
# refer to other files, such as playlists, whatever the name of the file is.
_SIGNATURES = (
    (4, b"ftyp"),
    (4, b"moov"),
    (4, b"mdat"),
    (4, b"wide"),
    (4, b"free"),
    (4, b"skip"),
    (0, b"\x1a\x45\xdf\xa3"),  # Matroska, WebM
    (8, b"AVI "),
    (0, b"\x00\x00\x01\xba"),  # MPEG program stream
    (0, b"\x00\x00\x01\xb3"),  # MPEG video
)
_PACKET = 188  # bytes of a packet of an MPEG transport stream; each starts with G


@contextmanager
def upload_folder() -> Iterator[Path]:
    """Yield a temporary folder that is deleted at the end; also delete the folders of killed servers.

    A server locks a file in its folder. The operating system releases the lock when the process ends.
    """
    _sweep(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder, (Path(folder) / _LOCK).open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        os.environ[_ENVIRONMENT] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop(_ENVIRONMENT, None)


@contextmanager
def uploaded(path: object, suffixes: frozenset[str] = VIDEO_SUFFIXES) -> Iterator[Path]:
    """Yield the path of an uploaded file and delete the file at the end.

    Args:
        path: the path as the page names it.
        suffixes: suffixes that are accepted.

    Raises:
        InputError: the file was not uploaded, or is not of an accepted kind.
    """
    folder = os.environ.get(_ENVIRONMENT)
    found = Path(str(path)).resolve()
    if folder is None or Path(folder).resolve() not in found.parents or not found.is_file():
        raise InputError(f"{found.name}: was not uploaded, or was deleted; upload it again")
    try:
        if found.suffix.lower() not in suffixes:
            raise InputError(f"{found.name}: is not accepted here; give a file of {', '.join(sorted(suffixes))}")
        if suffixes is VIDEO_SUFFIXES and not _is_video(found):
            raise InputError(f"{found.name}: is no video")
        yield found
    finally:
        found.unlink(missing_ok=True)
        with suppress(OSError):  # gradio makes a folder for each file
            found.parent.rmdir()


def stored_bytes() -> int:
    """Total size of the files in the folder."""
    folder, total = os.environ.get(_ENVIRONMENT), 0
    for file in Path(folder).rglob("*") if folder else ():
        with suppress(OSError):  # deleted in the meantime
            total += file.lstat().st_size
    return total


def _is_video(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(_PACKET + 1)
    if start[:1] == b"G" == start[_PACKET:]:
        return True
    return any(start[place : place + len(sign)] == sign for place, sign in _SIGNATURES)


def _sweep(parent: Path) -> None:
    if fcntl is None:
        return
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # deleted by another process, or of another user
            stat = folder.lstat()
            if stat.st_uid != os.getuid() or folder.is_symlink():
                continue
            if not (folder / _LOCK).exists():  # just created, or of a version without locks
                if time.time() - stat.st_mtime > 86400:
                    shutil.rmtree(folder)
                continue
            with (folder / _LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while the server runs
                shutil.rmtree(folder)
