"""Shards of `strm prepare`: written side by side, completed by a last call that misses none, continued after a kill."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from strm_lightning.data import prepare as module
from strm_lightning.data.cache.shards import Shard, parse_shard
from strm_lightning.data.cache.store import MANIFEST, read_manifest
from strm_lightning.data.prepare import PrepareReport, prepare
from strm_lightning.data.video_sets import open_store
from tests.data.clips import number_of, write_video

VIDEOS = 7


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(VIDEOS):
        write_video(tmp_path / "videos" / "ab"[number % 2] / f"{number}.mp4", 3 + number, size=(32, 48))
    return tmp_path / "videos"


def run(source: Path, out: Path, shard: str | None = None, **options: Any) -> PrepareReport:
    return prepare(str(source), str(out), short_side=32, jobs=1, shard=shard, **options)


def clips(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.clip")}


def test_shards_side_by_side_make_the_cache_of_one_run(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "whole")
    out = tmp_path / "shards"
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(lambda shard: run(source, out, shard), ["1/3", "2/3", "3/3"]))
    assert [report.written for report in reports] == [3, 2, 2]
    assert "Shard 2/3" in str(reports[1])
    assert "the same command without --shard" in str(reports[1])
    with pytest.raises(ValueError, match=r"it contains no strm-cache\.json"):
        open_store(out, "cache")
    last = run(source, out)
    assert (last.written, last.present, last.failed) == (0, VIDEOS, {})
    assert clips(out) == clips(tmp_path / "whole")
    assert read_manifest(out) == read_manifest(tmp_path / "whole")
    assert not list(out.glob("strm-shard-*"))
    assert open_store(out).frame_counts.tolist() == open_store(tmp_path / "whole").frame_counts.tolist()


@pytest.mark.parametrize("late", ["read_shards", "is_cache"])
def test_a_shard_can_begin_while_another_checks_the_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    out, function, begun = tmp_path / "cache", getattr(module, late), []

    def during(root: Path) -> Any:
        found = function(root)
        if not begun:
            begun.append(True)
            run(source, out, "2/3")
        return found

    monkeypatch.setattr(module, late, during)
    assert run(source, out, "1/3").written == 3
    assert begun


def test_a_temporary_file_of_another_shard_is_no_foreign_content(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    out.mkdir()
    (out / f".{Shard(3, 2).file}.0123456789.part").write_text("{")
    assert run(source, out, "1/3").written == 3


def test_the_last_call_names_the_shards_that_are_left(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cache"
    run(source, out, "2/4")
    with monkeypatch.context() as patched:
        patched.setattr(module, "_work", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(source, out, "3/4")
    with pytest.raises(ValueError, match=r"3 shards of 4 not complete; run them again with --shard.*1/4.*3/4.*4/4"):
        run(source, out)
    for number in (1, 3, 4):
        run(source, out, f"{number}/4")
    assert run(source, out).present == VIDEOS


def test_a_killed_shard_continues_and_notices_changed_sources(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cache"
    work = module._work

    def killed(convert: Any, names: list[str], jobs: int) -> Any:
        work(convert, names[:2], jobs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_work", killed)
        with pytest.raises(KeyboardInterrupt):
            run(source, out, "1/2")
    assert len(clips(out)) == 2
    name = min(clips(out)).removesuffix(".clip")
    write_video(source / f"{name}.mp4", 20, size=(32, 48))
    report = run(source, out, "1/2")
    assert (report.present, report.written, report.refreshed) == (1, 3, 1)
    write_video(source / f"{name}.mp4", 21, size=(32, 48))  # between the shard and the last call
    run(source, out, "2/2")
    assert run(source, out).refreshed == 1
    store = open_store(out)
    row = store.videos.index(name)
    assert store.frame_counts[row] == 21
    assert [number_of(frame) for frame in store.read(row, [0, 20]).numpy()] == [0, 20]


def test_a_finished_cache_is_extended_by_shards(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    run(source, out)
    write_video(source / "c" / "new.mp4", 4, size=(32, 48))
    reports = [run(source, out, f"{number}/2") for number in (1, 2)]
    assert sum(report.written for report in reports) == 1
    with pytest.raises(ValueError, match="is incomplete"):
        open_store(out)
    assert run(source, out).present == VIDEOS + 1
    assert "c/new" in open_store(out).videos


def test_unreadable_videos_are_reported_by_their_shard_and_by_the_last_call(source: Path, tmp_path: Path) -> None:
    (source / "a" / "bad.mp4").write_bytes(b"\0" * 500)
    reports = [run(source, tmp_path / "cache", f"{number}/8") for number in range(1, 9)]
    assert [sorted(report.failed) for report in reports].count(["a/bad"]) == 1
    assert sorted(run(source, tmp_path / "cache").failed) == ["a/bad"]
    assert "a/bad" not in read_manifest(tmp_path / "cache")["videos"]


def test_shards_of_other_options_or_counts_are_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    run(source, out, "1/2")
    with pytest.raises(ValueError, match=r"has other options \(quality=90, not 50\)"):
        run(source, out, "2/2", quality=50)
    with pytest.raises(ValueError, match="has other options"):
        run(source, out, quality=50)
    with pytest.raises(ValueError, match=r"shard 2/3: .* has shards of 2; delete"):
        run(source, out, "2/3")
    (out / Shard(2, 1).file).write_text(json.dumps({"version": 1}))
    with pytest.raises(ValueError, match=r"strm-shard-1-of-2.json is damaged .* run this shard again"):
        run(source, out, "1/2")
    with pytest.raises(ValueError, match="exists and is not a frame cache"):
        run(source, source.parent, "1/2")
    assert not (out / MANIFEST).exists()


@pytest.mark.parametrize("text", ["3", "0/4", "5/4", "a/b", "1/", "/4", "-1/4", "1/4/2", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give a number and a count"):
        parse_shard(text)


def test_every_video_is_in_one_shard() -> None:
    names = [str(i) for i in range(23)]
    taken = [parse_shard(f"{number}/5").take(names) for number in range(1, 6)]
    assert sorted((name for part in taken for name in part), key=int) == names
    assert {len(part) for part in taken} == {4, 5}
