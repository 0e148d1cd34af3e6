"""The examples of docs/extend.md, run in the order of the page."""

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from strm_lightning.cli.main import main
from strm_lightning.models import STRM
from strm_lightning.models.backbones import base as backbones
from strm_lightning.models.matching import base
from tests.test_module import pytestmark as pytestmark

PAGE = Path(__file__).parents[1] / "docs" / "extend.md"
SECTIONS = (
    "A backbone",
    "A video backbone",
    "A matching method",
    "An enrichment",
    "A split",
    "A reader",
    "A logger picture",
)


class Block(NamedTuple):
    """A code block: its section, its file name (or "") and its language."""

    section: str
    file: str
    language: str
    code: str


def blocks() -> list[Block]:
    found = []
    for part in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE):
        section = part.partition("\n")[0]
        for file, language, code in re.findall(
            r"(?:^`([\w.]+)`:\n\n)?^```(\w+)\n(.*?)^```$", part, re.MULTILINE | re.DOTALL
        ):
            found.append(Block(section, file, language, code))
    return found


@pytest.fixture
def folder(actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the page describes, as working directory; what examples register is forgotten afterwards."""
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's use of it
    monkeypatch.setattr(base, "_registry", dict(base._registry))
    monkeypatch.setattr(backbones, "_BACKBONES", dict(backbones._BACKBONES))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "actions").symlink_to(actions)
    return tmp_path


def run(section: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the files of a section and of the introduction, and run its other blocks."""
    before = set(sys.modules)
    for number, block in enumerate(b for b in blocks() if b.section in ("# Extend", section)):
        if block.file:
            (folder / block.file).write_text(block.code)
        elif block.language == "bash":
            for line in block.code.splitlines():
                command, *arguments = shlex.split(line)
                assert command == "strm"
                monkeypatch.setattr("sys.argv", ["strm", *arguments])
                main()
        else:
            script = folder / f"example_{number}.py"
            script.write_text(block.code)
            monkeypatch.setattr("sys.argv", [str(script)])
            runpy.run_path(str(script), run_name="__main__")
    for name in set(sys.modules) - before & {"small_net", "video_mae", "my_method"}:
        del sys.modules[name]


def test_every_section_has_an_example() -> None:
    found = [block.section for block in blocks()]
    assert [section for section in dict.fromkeys(found) if section != "# Extend"] == list(SECTIONS)
    assert len(found) == PAGE.read_text().count("```") / 2


def test_a_backbone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("A backbone", folder, monkeypatch)
    (best,) = folder.glob("runs/*/checkpoints/best.ckpt")
    checkpoint = torch.load(best, weights_only=True)
    assert checkpoint["hyper_parameters"]["backbone"] == "small_net"
    assert checkpoint["state_dict"]["model.backbone.net.layers.0.weight"].shape == (16, 3, 3, 3)
    assert "own_classes" not in checkpoint


def test_a_video_backbone(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="the extra `dev` is not installed")
    run("A video backbone", folder, monkeypatch)
    (best,) = folder.glob("runs/*/checkpoints/best.ckpt")
    checkpoint = torch.load(best, weights_only=True)
    assert checkpoint["hyper_parameters"]["backbone"] == "video_mae"
    assert "own_classes" not in checkpoint
    assert checkpoint["state_dict"]["model.head.trm.0.key.weight"].shape[-1] == 2 * 32  # D of the configuration
    assert "actions/up/0.mp4" in capsys.readouterr().out
    model = STRM("video_mae", num_frames=8, num_segments=2, match_dim=8).eval()
    assert model.head.num_frames == 4  # two time steps for each segment
    with torch.no_grad():
        maps, clip = model.backbone(torch.rand(8, 3, 64, 64)), torch.rand(8, 3, 64, 64)
        assert maps.shape == (4, 32, 4, 4)
        other = model.backbone(torch.cat([clip[:4], torch.rand(4, 3, 64, 64)]))
        torch.testing.assert_close(other[:2], model.backbone(clip)[:2])  # the first segment does not see the second
    with pytest.raises(ValueError, match="takes segments of 4 frames, not 8"):
        STRM("video_mae", num_frames=8)
    with pytest.raises(ValueError, match="takes 64 pixels, not 32"):
        model.backbone.check_size(32)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_matching_method(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("A matching method", folder, monkeypatch)
    assert (folder / "why.png").stat().st_size > 10_000
    options = yaml.safe_load((folder / "runs/version_0/fit.yaml").read_text())["model"]["matching_options"]
    assert options == {"width": 32, "center": True}
    out = capsys.readouterr().out
    assert str(options) in out  # of the loaded checkpoint
    assert "3-shot" in out


def test_the_example_of_a_matching_method_is_right(folder: Path) -> None:
    (code,) = [block.code for block in blocks() if block.file == "my_method.py"]
    (folder / "my_method.py").write_text(code)
    method = runpy.run_path(str(folder / "my_method.py"))["StepCosine"](base.FeatureSpec(8, 4, 16), width=5)
    torch.manual_seed(0)
    steps = {name: torch.nn.functional.normalize(torch.randn(*n, 4, 5), dim=-1) for name, n in SHAPES.items()}
    support, query = ({"steps": steps[name]} for name in ("support", "query"))
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    for shot_mask in (None, mask):
        logits = method.match(support, query, shot_mask)["step_cosine"]
        for label in range(3):
            evidence = method.explain(support, {"steps": steps["query"][1]}, label, shot_mask)["step_cosine"]
            assert evidence.logit == pytest.approx(logits[1, label].item(), rel=1e-5)
            clips = support["steps"][label] if shot_mask is None else support["steps"][label][shot_mask[label]]
            scores = method.clip_scores({"steps": clips}, query)
            torch.testing.assert_close(scores.mean(-1), logits[:, label])


SHAPES = {"support": (3, 2), "query": (6,)}


@pytest.mark.parametrize(
    ("section", "printed", "file"),
    [
        ("An enrichment", "", "smooth.ckpt"),
        ("A split", "('fall', 'leap', 'sink') [6, 6, 6]\n('fall', 'leap', 'sink') [5, 5, 5]", "lists/vallist01.txt"),
        ("A reader", "test/accuracy", "arrays/a/0.npy"),
        ("A logger picture", "['confusion-0.png', 'per-class-0.png']", "pictures/version_0/test/confusion-0.png"),
    ],
)
def test_the_example_runs(
    section: str, printed: str, file: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run(section, folder, monkeypatch)
    assert printed in capsys.readouterr().out
    assert (folder / file).stat().st_size > 0
