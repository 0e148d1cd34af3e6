"""Damaged indexes, manifests and clip headers: made again, or refused in one line."""

import json
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from strm_lightning.data.cache.clipfile import ClipFile
from strm_lightning.data.cache.store import MANIFEST
from strm_lightning.data.decode.video import VideoError
from strm_lightning.data.prepare import prepare
from strm_lightning.data.sources import counts as index
from strm_lightning.data.video_sets import open_store
from strm_lightning.errors import InputError
from strm_lightning.fileio import cache_folder
from tests.data.clips import write_frames, zip_folder

WRONG: list[Any] = [None, True, -5, 10**12, 2.5, [], {}, [None]]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRM_CACHE", str(tmp_path / "own cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, count in (("v", 3), ("w", 4)):
        write_frames(tmp_path / "frames" / "a" / name, count, size=(32, 48))
    return tmp_path / "frames"


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value in a JSON document, itself included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, below in inner for found in paths_of(below, (*path, key)))]


def changed(document: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None], value: Any = None) -> Any:
    """A copy with one value replaced."""
    if not path:
        return value
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    change(inner, path[-1]) if value is _GONE else inner.__setitem__(path[-1], value)
    return copy


_GONE = object()


def mutations(document: Any) -> list[str]:
    """Each value replaced by each wrong one, or absent; and texts that are no JSON of ours."""
    texts = ["", "{", "null", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")]
    for path in paths_of(document):
        texts += [json.dumps(changed(document, path, dict.pop, value)) for value in WRONG]
        if path and isinstance(path[-1], str):
            texts.append(json.dumps(changed(document, path, lambda inner, key: inner.pop(key), _GONE)))
            texts.append(json.dumps(changed(document, path, lambda inner, key: inner.update(more=inner[key]), _GONE)))
    return texts


def test_a_damaged_index_is_made_again(root: Path) -> None:
    assert open_store(root).frame_counts.tolist() == [3, 4]
    (path,) = (cache_folder() / "index").iterdir()
    good = path.read_text()
    tried = mutations(json.loads(good))
    assert len(tried) > 60
    for text in tried:
        path.write_text(text)
        assert open_store(root).frame_counts.tolist() == [3, 4], text[:200]


def test_a_damaged_table_of_a_zip_is_made_again(root: Path, tmp_path: Path) -> None:
    archive = zip_folder(root, tmp_path / "a.zip")
    whole = open_store(archive).read(1, [0, 3])
    (path,) = (cache_folder() / "index").iterdir()
    arrays = load(path.read_bytes())
    tried = [path.read_bytes()[:n] for n in (0, 7, 8, 60, -1)]
    for key, array in arrays.items():
        tried.append(save({name: other for name, other in arrays.items() if name != key}))
        wrong = (array[:-1], array[::-1].copy(), array - 1, array.astype(np.float32), array[None])
        tried += [save(arrays | {key: other}) for other in wrong]
    for texts in (None, {}, [1, 2], [["a/v"], {}], [["a/w", "a/v"], {}], [["a/v", "a/w"], {"x": "y"}], [[1, 2], {}]):
        text = np.frombuffer(json.dumps(texts).encode(), np.uint8)
        tried += [save(arrays | {"texts": text})]
    refused = 0
    for data in tried:
        path.write_bytes(data)
        store = open_store(archive)
        assert (store.videos, store.frame_counts.tolist()) == (["a/v", "a/w"], [3, 4])
        try:
            np.testing.assert_array_equal(store.read(1, [0, 3]), whole)
        except VideoError:  # a wrong offset, length or checksum that only the image itself shows
            refused += 1
            path.unlink()
    assert refused < len(tried) / 3


def test_a_damaged_manifest_is_refused_in_a_line(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    prepare(str(root), str(out), short_side=32, jobs=1)
    good = json.loads((out / MANIFEST).read_text())
    del good["made_by"], good["stamps"]["a/w"], good["videos"]["a/w"]  # the same again
    refused, tried = 0, mutations(good)
    assert len(tried) > 80
    for text in tried:
        (out / MANIFEST).write_text(text)
        said = refusal(lambda: use(out))
        refused += bool(said)
        assert not said or (str(out) in said and "\n" not in said)
    assert refused > 0.7 * len(tried)


def use(cache: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of clips that have another size than the manifest says
        store = open_store(cache)
    store.check_supports("release", 2, 16)
    store.read(0, [0])


def refusal(read: Callable[[], object]) -> str | None:
    try:
        read()
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_damaged_clip_header_or_table_is_refused_in_a_line(kind: str, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    prepare(str(root), str(out), short_side=32, format=kind, jobs=1)
    clip = out / "a" / "v.clip"
    good = clip.read_bytes()
    store = open_store(out)
    table = len(good) - 3 * 16
    spoilt = [
        good[:place] + struct.pack("<I", value) + good[place + 4 :]
        for place in [*range(8, 32, 4), *range(table, len(good), 4)]
        for value in (0, 2, 2**20, 2**31, 2**32 - 1)
    ]
    refused = 0
    for data in spoilt:
        clip.write_bytes(data)
        for read in (lambda: store.read(0, [0, 1, 2]), lambda: check(clip)):
            said = refusal(read)
            refused += bool(said)
            assert not said or str(clip) in said
    assert refused > len(spoilt)
    clip.write_bytes(good)
    check(clip)


def check(path: Path) -> None:
    with ClipFile(path) as clip:
        for entry in range(clip.kept):
            clip.read(entry)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_cache_folder_that_cannot_be_written_is_told_once(zipped: bool, root: Path, tmp_path: Path) -> None:
    (tmp_path / "own cache").write_text("a file, so no folder can be made here")
    index._warn_once.cache_clear()
    place = zip_folder(root, tmp_path / "a.zip") if zipped else root
    with pytest.warns(UserWarning, match=r"own cache/index cannot be written \(.*set STRM_CACHE") as told:
        stores = [open_store(place) for _ in range(2)]
    assert [store.frame_counts.tolist() for store in stores] == [[3, 4]] * 2
    assert len(told) == 1


def test_temporary_files_of_killed_runs_leave_the_index_folder(root: Path) -> None:
    folder = cache_folder() / "index"
    folder.mkdir(parents=True)
    old, young = (folder / f".{name}.0123456789ab.part" for name in ("old", "young"))
    for part in (old, young):
        part.touch()
    os.utime(old, (1e9, 1e9))
    index._sweep_once.cache_clear()
    open_store(root)
    assert young.exists()
    assert not old.exists()
