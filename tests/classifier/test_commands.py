"""strm classify: a table for people, JSON and CSV for programs."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from strm_lightning.cli.main import main
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
    own_model = ["--backbone=test_resnet", f"--weights={place / 'weights.safetensors'}"]

    def run(*words: object, status: int | None = None, support: str = "examples", model: bool = True) -> str:
        arguments = ["classify", f"--support={place / support}", *own_model * model, *map(str, words)]
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
    assert "--json and --csv exclude each other" in run("--json", "--csv", *files, status=2)


def test_what_cannot_be_read_is_told_and_the_rest_goes_on(run, place: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    good = place / "queries" / "up.mp4"
    lines = run(broken, good, "--json", "--jobs", "2", status=1).splitlines()
    assert "broken.mp4" in json.loads(lines[0])["error"]
    assert json.loads(lines[1])["label"] == "up"
    assert "cannot be read" in run(broken, good, status=1)
    assert "cannot be read" in run(broken, "--window=1", status=1)


def test_broken_videos_are_told_before_examples_are_encoded(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], count_encoded
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    model = ["--backbone=test_resnet", f"--weights={place / 'weights.safetensors'}"]
    words = ["classify", f"--support={place / 'examples'}", *model, "--json"]
    with pytest.raises(SystemExit, match="1"):
        main([*words, str(broken), str(tmp_path / "none.mp4")])
    assert [json.loads(line)["video"][-8:] for line in capsys.readouterr().out.splitlines()] == ["oken.mp4", "none.mp4"]
    with pytest.raises(SystemExit, match="2"):
        main([*words, str(broken), str(place / "queries"), f"--explain={tmp_path / 'why.png'}"])
    assert "broken.mp4: cannot be decoded" in capsys.readouterr().err
    assert count_encoded() == 0
    with pytest.raises(SystemExit, match="1"):
        main([*words, str(place / "queries" / "up.mp4"), str(broken)])
    out, err = capsys.readouterr()
    assert ["error" in json.loads(line) for line in out.splitlines()] == [False, True]
    assert err.startswith("warning: ")
    assert "broken.mp4: cannot be decoded" in err


def test_long_encoding_shows_its_progress(
    run, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from strm_lightning.classifier import examples
    from strm_lightning.cli import classify as commands

    for module in (commands, examples):
        monkeypatch.setattr(module, "bar_options", lambda: {"delay": 1e-9, "mininterval": 0.0, "miniters": 1})
    model = ["--backbone=test_resnet", f"--weights={place / 'weights.safetensors'}"]
    main(["classify", f"--support={place / 'examples'}", *model, str(place / "queries")])
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert "Encoding examples:" in err
    assert "4/6" in err
    assert "Classifying:" in err


def test_a_full_disk_behind_the_output_is_told_in_one_line(place: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    model = ["--backbone=test_resnet", f"--weights={place / 'weights.safetensors'}"]
    words = ["classify", f"--support={place / 'examples'}", *model, str(place / "queries"), "--json"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "strm_lightning", *words]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.stderr.splitlines()[-1] == "error: standard output: cannot be written (No space left on device)"
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 2


def test_windows_of_a_long_video(run, place: Path, tmp_path: Path) -> None:
    import numpy as np

    path = write_video(tmp_path / "long.mp4", np.concatenate([moving("up", 5), moving("left", 5), moving("left", 6)]))
    objects = [json.loads(x) for x in run(path, "--json", "--window=1.2", "--stride=1.2").splitlines()]
    assert [o["label"] for o in objects] == ["up", "left", "left"]
    assert [round(o["start"], 1) for o in objects] == [0, 1.2, 2.4]
    table = run(path, "--window=1.2", "--stride=1.2").splitlines()
    assert len(table) == 2
    assert "0:00.0-0:01.2  up" in table[0]
    assert "0:01.2-0:03.5  left" in table[1]


def test_saved_examples_need_no_videos(run, place: Path, tmp_path: Path) -> None:
    saved = tmp_path / "new" / "actions.safetensors"
    query = place / "queries" / "up.mp4"
    first = run("--save-support", saved, query)
    assert run(query, support=str(saved)) == first
    run("--save-support", saved, "--threshold=5", status=2)  # nothing is written
    assert run(query, support=str(saved), model=False) == first  # the file names its model
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_weights_of_saved_examples_may_move(run, place: Path, tmp_path: Path) -> None:
    saved, query, moved = tmp_path / "actions.safetensors", place / "queries" / "up.mp4", tmp_path / "moved.safetensors"
    first = run("--save-support", saved, "--matching=patches", query)
    moved.write_bytes((place / "weights.safetensors").read_bytes())
    options = ["--backbone=test_resnet", f"--weights={moved}"]
    assert run(query, *options, support=str(saved), model=False) == first  # the matching is that of the file
    error = run(query, "--matching=energy", *options, support=str(saved), model=False, status=2)
    assert "another matching" in error


def test_saved_examples_keep_their_threshold(run, place: Path, tmp_path: Path) -> None:
    saved, query = tmp_path / "actions.safetensors", place / "queries" / "up.mp4"
    run("--save-support", saved, "--threshold=1.0")
    assert run(query, support=str(saved), model=False).split()[1] == "unknown"
    assert run(query, "--threshold=0", support=str(saved), model=False).split()[1] == "up"


def test_unknown(run, place: Path) -> None:
    assert json.loads(run(place / "queries" / "up.mp4", "--json", "--threshold=1.0"))["label"] == "unknown"
    assert json.loads(run(place / "queries" / "up.mp4", "--json", "--threshold=0.1"))["label"] == "up"


def test_mistakes_are_told_in_one_line(run, place: Path, tmp_path: Path) -> None:
    query = place / "queries" / "up.mp4"
    assert "no video to classify" in run(status=2)
    assert f"{tmp_path}: the folder contains no video" in run(tmp_path, status=2)
    assert "no such folder" in run(query, support="nowhere", status=2)
    assert "nowhere" in run("none.mp4", support="nowhere", status=2), "the folder first: it is needed for all videos"
    write_video(tmp_path / "some" / "left" / "a.mp4", moving("left"))
    assert "examples of 1 class" in run(query, support=str(tmp_path / "some"), status=2)
    (tmp_path / "some" / "right").mkdir()
    error = run(query, support=str(tmp_path / "some"), status=2)
    assert error.startswith("error: class 'right' has no video")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs=0"], "jobs is 0: give a positive number"),
        (["--threshold=1.5"], "threshold 1.5: give a probability from 0 to 1"),
        (["--temperature=0"], "temperature 0.0: give a positive number"),
        (["--window=0"], "--window 0: give a positive number of seconds"),
        (["--window=2", "--stride=-1"], "--stride -1: give a positive number of seconds"),
        (["--stride=2"], "--stride 2 needs --window"),
        (["--explain=why.doc"], r"why.doc: give a name that ends in .png"),
        (["--save_support=."], "--save_support .: is a folder"),
        (["--device=banana"], "device 'banana': cannot be used here"),
        (["--ckpt=best.ckpt"], "--ckpt excludes --backbone: a checkpoint contains backbone, weights and matching"),
    ],
)
def test_wrong_options_are_told_before_anything_is_encoded(
    run, place: Path, words: list[str], message: str, count_encoded
) -> None:
    error = run(place / "queries" / "up.mp4", *words, status=2)
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert count_encoded() == 0


def test_weights_of_another_backbone_are_told(run, place: Path, tmp_path: Path) -> None:
    query, other = place / "queries" / "up.mp4", tmp_path / "other.safetensors"
    error = run(query, "--backbone=test_vit", status=2)
    assert "weights.safetensors: not of this backbone" in error
    weights = load_file(place / "weights.safetensors")
    save_file({name: tensor[:1].clone() if tensor.ndim else tensor for name, tensor in weights.items()}, other)
    assert "other.safetensors: not of this backbone; the shapes of tensors differ" in run(
        query, f"--weights={other}", status=2
    )


def test_warnings_are_one_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil
    import warnings

    shutil.copytree(place / "examples", tmp_path / "examples")
    shutil.copy(tmp_path / "examples" / "left" / "0.mp4", tmp_path / "examples" / "up" / "same.mp4")
    model = ["--backbone=test_resnet", f"--weights={place / 'weights.safetensors'}"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as at a user's; under pytest they are errors
        main(["classify", f"--support={tmp_path / 'examples'}", *model, str(place / "queries" / "up.mp4")])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "same.mp4 (class 'up') shows the same as" in line


def test_a_reader_that_has_enough_is_no_error(place: Path) -> None:
    """As in ``strm classify … | head -0``."""
    model = ["--backbone=test_resnet", f"--weights={place / 'weights.safetensors'}"]
    words = ["classify", f"--support={place / 'examples'}", *model, str(place / "queries")]
    reading, writing = os.pipe()
    os.close(reading)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "strm_lightning", *words]
    ended = subprocess.run(command, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr


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
