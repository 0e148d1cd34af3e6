"""Progress of long commands: a bar for what takes long, and no row, note or error on the line of a bar."""

import io
import warnings
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from strm_lightning.classifier import FewShotClassifier, examples
from strm_lightning.cli.main import main
from strm_lightning.models import Backbone
from tests.classifier.conftest import FPS, moving, save_weights, write_examples, write_video
from tests.classifier.test_events import long_video


class Terminal(io.StringIO):
    """A terminal: output and errors in the order in which they are written."""

    def isatty(self) -> bool:
        return True

    def __enter__(self) -> "Terminal":
        self.streams = ExitStack()
        self.streams.enter_context(redirect_stdout(self))
        self.streams.enter_context(redirect_stderr(self))
        return self

    def __exit__(self, *_: object) -> None:
        self.streams.close()

    @property
    def lines(self) -> list[str]:
        """What stands on the screen."""
        found = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for part in line.split("\r"):  # each part is written over the one before
                shown = part + shown[len(part) :]
            found.append(shown.rstrip())
        return found


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    from strm_lightning.classifier import progress
    from strm_lightning.cli import classify as commands

    screen = Terminal()
    for module in (commands, examples, progress):
        monkeypatch.setattr(module, "bar_options", lambda: {"mininterval": 0.0, "miniters": 1, "ncols": 70})
    return screen


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    write_examples(root / "examples")
    write_video(root / "long.mp4", long_video()[0], FPS)
    write_video(root / "short.mp4", moving("up", 8), FPS)
    torch.manual_seed(0)
    save_weights(Backbone("test_resnet", pretrained=False).net, root / "weights.safetensors")
    return root


def classify(place: Path, *words: str) -> None:
    model = ["--backbone=test_resnet", f"--weights={place / 'weights.safetensors'}"]
    main(["classify", f"--support={place / 'examples'}", *model, *words])


@pytest.mark.parametrize("option", ["--events", "--window=1.5"])
def test_a_long_video_shows_its_progress(place: Path, option: str, terminal: Terminal) -> None:
    with terminal:
        classify(place, option, str(place / "long.mp4"))
    raw = terminal.getvalue()
    assert "Encoding examples:" in raw
    assert "long.mp4:" in raw
    assert "12/25 s" in raw
    rows = [line for line in terminal.lines if "0:" in line and "%|" not in line]
    assert len(rows) > 3
    assert [r for r in rows if not (r.startswith(str(place / "long.mp4")) and r.endswith(")"))] == []


def test_warnings_are_on_lines_of_their_own(place: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    real = FewShotClassifier.predict_encoded

    def warns(self: FewShotClassifier, clip: Any) -> Any:
        warnings.warn(f"about {Path(clip.name).name}", UserWarning, stacklevel=1)
        return real(self, clip)

    monkeypatch.setattr(FewShotClassifier, "predict_encoded", warns)
    with terminal, warnings.catch_warnings():
        warnings.simplefilter("always")
        classify(place, str(place / "short.mp4"), str(place / "long.mp4"), str(place / "examples" / "left" / "0.mp4"))
        classify(place, "--window=2", str(place / "long.mp4"))
    for name in ("short.mp4", "0.mp4", "long.mp4"):
        assert f"warning: about {name}" in terminal.lines


def test_an_error_is_on_a_line_of_its_own(place: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: FewShotClassifier, clip: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(FewShotClassifier, "predict_encoded", fails)
    with terminal, pytest.raises(SystemExit, match="130"):
        classify(place, "--window=2", str(place / "long.mp4"))
    assert "interrupted" in terminal.lines


def test_predictions_show_no_progress_unless_asked(fitted: FewShotClassifier, capsys: Any) -> None:
    video, _ = long_video()
    list(fitted.predict_events(video, fps=FPS))
    list(fitted.predict_windows(video, fps=FPS))
    assert capsys.readouterr().err == ""


def test_an_array_shows_the_seconds_that_are_read(fitted: FewShotClassifier, terminal: Terminal) -> None:
    with terminal:
        list(fitted.predict_events(long_video()[0], fps=FPS, progress=True))
    assert "12/25 s" in terminal.getvalue()
