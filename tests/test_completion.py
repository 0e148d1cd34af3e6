"""The shell completes commands, options and choices with the script of ``strm completion``."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from strm_lightning.cli.main import COMMANDS, TRAINING
from tests.test_cli import said

pytest.importorskip("shtab", reason="the extra `completion` is not installed")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "strm"
    capture = pytest.MonkeyPatch()
    capture.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's use of it
    from strm_lightning.cli.completion import completion

    with path.open("w") as file, capture.context() as patch:
        patch.setattr("sys.stdout", file)
        completion("bash")
    capture.undo()
    return path


def completions(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word of a command line."""
    line = " ".join(map(shlex.quote, words))
    code = (
        f'. {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_strm; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["/bin/bash", "-c", code], capture_output=True, text=True, check=True, cwd=script.parent)
    return done.stdout.split()


def test_commands(script: Path) -> None:
    assert completions(script, "strm", "") == [*TRAINING, *COMMANDS]
    assert completions(script, "strm", "co") == ["convert", "compare", "completion"]


def test_options_of_a_command(script: Path) -> None:
    assert completions(script, "strm", "fit", "--model.matching_") == ["--model.matching_options"]
    assert completions(script, "strm", "classify", "--save") == ["--save_support"]
    assert completions(script, "strm", "fit", "--save") == []


def test_choices_and_files(script: Path) -> None:
    assert completions(script, "strm", "fit", "--model.matching", "ot") == ["otam"]
    assert completions(script, "strm", "fit", "--model.freeze_backbone", "") == ["true", "false"]
    assert completions(script, "strm", "prepare", "--format", "j") == ["jpeg"]
    (script.parent / "mine.yaml").write_text("{}")
    assert completions(script, "strm", "fit", "--config", "mi") == ["mine.yaml"]


def test_without_shtab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    _, err, status = said(monkeypatch, capsys, "completion", "zsh")
    assert status == 2
    assert err == 'error: strm completion needs shtab: in a checkout, run pip install ".[completion]"\n'
