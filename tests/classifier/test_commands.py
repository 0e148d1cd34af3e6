"""strm classify: a table for people, JSON and CSV for programs."""

import csv
import io
import json
from pathlib import Path

import pytest
import torch

from strm_lightning.cli import main
from strm_lightning.models import Backbone
from tests.classifier.conftest import moving, save_weights, write_video


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples, queries (one of them broken) and weights."""
    root = tmp_path_factory.mktemp("place")
    for motion in ("left", "right", "up"):
        for seed in range(2):
            write_video(root / "examples" / motion / f"{seed}.mp4", moving(motion, seed))
        write_video(root / "queries" / f"{motion}.mp4", moving(motion, 7))
    (root / "examples" / ".hidden").mkdir()
    torch.manual_seed(0)
    save_weights(Backbone("test_resnet", pretrained=False).net, root / "weights.safetensors")
    return root


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]):
    model = ["--backbone=test_resnet", f"--weights={place / 'weights.safetensors'}"]

    def run(*words: object, status: int | None = None, support: str = "examples") -> str:
        arguments = ["classify", f"--support={place / support}", *model, *map(str, words)]
        if status is None:
            main(arguments)
        else:
            with pytest.raises(SystemExit) as stop:
                main(arguments)
            assert stop.value.code == status
        out, err = capsys.readouterr()
        return out if status in (None, 1) else err

    return run


def test_a_table_for_people(run, place: Path) -> None:
    lines = run(place / "queries").splitlines()
    assert [line.split()[:2] for line in lines] == [[f"{m}.mp4", m] for m in ("left", "right", "up")]
    assert "(" in lines[0]


def test_json_and_csv_for_programs(run, place: Path) -> None:
    files = [place / "queries" / f"{motion}.mp4" for motion in ("up", "left")]
    objects = [json.loads(line) for line in run("--json", *files).splitlines()]
    assert [(o["video"], o["label"]) for o in objects] == [(str(files[0]), "up"), (str(files[1]), "left")]
    assert sum(objects[0]["probabilities"].values()) == pytest.approx(1)
    rows = list(csv.DictReader(io.StringIO(run("--csv=true", *files))))
    assert [(r["video"], r["label"]) for r in rows] == [(o["video"], o["label"]) for o in objects]
    assert float(rows[0]["probability"]) == objects[0]["probability"]
    assert "give --json or --csv" in run("--json", "--csv", *files, status=2)


def test_what_cannot_be_read_is_told_and_the_rest_goes_on(run, place: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    good = place / "queries" / "up.mp4"
    lines = run(broken, good, "--json", "--jobs", "2", status=1).splitlines()
    assert "broken.mp4" in json.loads(lines[0])["error"]
    assert json.loads(lines[1])["label"] == "up"
    assert "cannot be read" in run(broken, good, status=1)
    assert "cannot be read" in run(broken, "--window=1", status=1)


def test_windows_of_a_long_video(run, place: Path, tmp_path: Path) -> None:
    import numpy as np

    path = write_video(tmp_path / "long.mp4", np.concatenate([moving("up", 5), moving("left", 5), moving("left", 6)]))
    objects = [json.loads(x) for x in run(path, "--json", "--window=1.2", "--stride=1.2").splitlines()]
    assert [o["label"] for o in objects] == ["up", "left", "left"]
    assert [round(o["start"], 1) for o in objects] == [0, 1.2, 2.4]
    table = run(path, "--window=1.2", "--stride=1.2").splitlines()
    assert len(table) == 2
    assert "0:00-0:01  up" in table[0]
    assert "0:01-0:04  left" in table[1]


def test_saved_examples_need_no_videos(run, place: Path, tmp_path: Path) -> None:
    saved = tmp_path / "actions.safetensors"
    query = place / "queries" / "up.mp4"
    first = run("--save-support", saved, query)
    assert run(query, support=str(saved)) == first


def test_unknown(run, place: Path) -> None:
    assert json.loads(run(place / "queries" / "up.mp4", "--json", "--threshold=1.0"))["label"] == "unknown"
    assert json.loads(run(place / "queries" / "up.mp4", "--json", "--threshold=0.1"))["label"] == "up"


def test_mistakes_are_told_in_one_line(run, place: Path, tmp_path: Path) -> None:
    query = place / "queries" / "up.mp4"
    assert "no video to classify" in run(status=2)
    assert f"{tmp_path}: a folder without any video" in run(tmp_path, status=2)
    assert "no such folder" in run(query, support="nowhere", status=2)
    write_video(tmp_path / "some" / "left" / "a.mp4", moving("left"))
    assert "examples of 1 class" in run(query, support=str(tmp_path / "some"), status=2)
    (tmp_path / "some" / "right").mkdir()
    error = run(query, support=str(tmp_path / "some"), status=2)
    assert error.startswith("error: class 'right' has no video")
    assert error.count("\n") == 1


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["classify", "--help"])
    text = capsys.readouterr().out
    for option in ("videos", "--support", "--ckpt", "--threshold", "--window", "--json", "--explain", "--save_support"):
        assert option in text
    assert "example clips of each" in text


def test_the_reason_as_a_picture(run, place: Path, tmp_path: Path) -> None:
    run(place / "queries" / "up.mp4", "--explain", tmp_path / "why.png")
    assert (tmp_path / "why.png").read_bytes()[:4] == b"\x89PNG"
    assert "ends in .png" in run(place / "queries" / "up.mp4", "--explain", tmp_path / "why.doc", status=2)
