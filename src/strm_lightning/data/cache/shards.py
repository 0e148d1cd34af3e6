"""Shards of a frame cache: parts that processes on several machines write without waiting for each other.

Each shard has a file ``strm-shard-3-of-16.json`` in the folder of the cache until the manifest is written.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from strm_lightning.data.cache.store import CacheOptions
from strm_lightning.errors import InputError
from strm_lightning.fileio import write_atomically
from strm_lightning.messages import count_of, some_of

_VERSION = 1
_FILE = re.compile(r"strm-shard-(\d+)-of-(\d+)\.json")


@dataclass(frozen=True, order=True)
class Shard:
    """Shard ``number`` of ``count``, from 1; it has every ``count``-th video."""

    count: int
    number: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"strm-shard-{self.number}-of-{self.count}.json"

    def take(self, names: list[str]) -> list[str]:
        """Return the names of this shard."""
        return names[self.number - 1 :: self.count]


def parse_shard(text: str) -> Shard:
    """Parse ``3/16``.

    Raises:
        InputError: it is not of this form, or the number is not from 1 to the count.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(f"shard {text!r}: give a number and a count, from 1/16 to 16/16 for 16 shards")
    return Shard(int(count), int(number))


def read_shards(root: Path) -> dict[Shard, dict[str, Any]]:
    """Read the files of all shards in the folder of a cache; empty if the folder does not exist.

    Raises:
        InputError: a file is damaged, or the shards are of different counts.
    """
    found = {}
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if match := _FILE.fullmatch(path.name):
            found[Shard(int(match[2]), int(match[1]))] = _read(path)
    if len({shard.count for shard in found}) > 1:
        raise InputError(
            f"{root} has shards of different counts ({', '.join(map(str, sorted(found)))}): delete the "
            f"strm-shard files of one count"
        )
    return found


def write_shard(
    root: Path, shard: Shard, options: CacheOptions, *, source: Path, stamps: Mapping[str, str], complete: bool
) -> None:
    """Write the file of a shard; the arguments are those of `write_manifest`."""
    record = {
        "version": _VERSION,
        "options": asdict(options),
        "source": str(source),
        "stamps": dict(stamps),
        "complete": complete,
    }
    write_atomically(root / shard.file, json.dumps(record, sort_keys=True))


def check_all_complete(root: Path, found: Mapping[Shard, Mapping[str, Any]]) -> None:
    """Check that all shards of a cache have been written.

    Raises:
        InputError: shards have not been started, or not been completed.
    """
    count = next(iter(found)).count
    every = [Shard(count, number) for number in range(1, count + 1)]
    if left := [str(shard) for shard in every if shard not in found or not found[shard]["complete"]]:
        raise InputError(
            some_of(f"{root}: {count_of(left, 'shard')} of {count} not complete; run them again with --shard", left)
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        whole = record["version"] == _VERSION and type(record["complete"]) is bool
        whole &= isinstance(record["options"], dict) and isinstance(record["source"], str)
        whole &= all(isinstance(stamp, str) for stamp in record["stamps"].values())
        if not whole:
            raise ValueError("unknown content")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it and run this shard again") from error
    return dict(record)
