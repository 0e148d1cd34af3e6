"""The benchmarks run at toy size, and both sides that they compare give the same."""

from pathlib import Path

import pytest

from experiments.benchmarks import decode, gpu, heads, start
from tests.data.clips import write_video


def test_decode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decode.main(["--rounds", "1", "--seconds", "0.5"])
    decode.main([str(write_video(tmp_path / "own.mp4", 9)), "--rounds", "1"])
    printed = capsys.readouterr().out
    for name in ("generated.mp4", "generated.mkv", "generated.webm", "generated.avi", "own.mp4", "over 4 files"):
        assert name in printed


@pytest.mark.parametrize("part", heads.PARTS)
def test_heads(part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(heads, "D", 16)
    monkeypatch.setattr(heads, "d", 8)
    heads.compare(part, 1)  # raises if the two sides differ
    assert capsys.readouterr().out.count("x faster") == 2


def test_gpu_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {
        "image_size": 32, "match_dim": 8, "way": 2, "shot": 1, "queries": 1, "steps": 1, "episodes": 2, "batch": 2,
        "workers": 0,
    }  # fmt: skip
    options = [f"--{name}={value}" for name, value in sizes.items()]
    gpu.main(["--device=cpu", "--backbone=test_resnet", "--no_compile", *options])
    printed = capsys.readouterr().out
    for first in ("| float32 |", "| bfloat16 |", "| loader |", "| bank, float32 |", "| bank, bfloat16 |"):
        assert f"\n{first}" in printed


def test_start(capsys: pytest.CaptureFixture[str]) -> None:
    start.main([str(Path(__file__).parents[1]), "--rounds", "1", "--match", "import strm_lightning"])
    assert "| `import strm_lightning` |" in capsys.readouterr().out
