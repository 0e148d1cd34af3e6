"""The script that draws the pictures of docs/method.md runs, and draws what the model computes."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.test_module import data, module, trainer
from tests.test_module import pytestmark as pytestmark

ROOT = Path(__file__).parents[1]
pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "draw_method.py"))


def test_the_command_draws_a_checkpoint(script: dict[str, Any], actions: Path, tmp_path: Path) -> None:
    model, episodes = module(), data(actions)
    run = trainer(tmp_path, max_steps=1)
    run.fit(model, datamodule=episodes)
    run.save_checkpoint(tmp_path / "a.ckpt")
    script["main"](["--ckpt", str(tmp_path / "a.ckpt"), "--out", str(tmp_path / "out"), "--episode", "2"])
    page = (ROOT / "docs" / "method.md").read_text()
    names = re.findall(r"\(images/method/(\w+\.png)\)", page)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    for name in names:
        with Image.open(tmp_path / "out" / name) as image:
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 50  # a picture, not a blank
        assert (ROOT / "docs" / "images" / "method" / name).is_file()


def test_the_numbers_are_those_of_the_model(script: dict[str, Any], actions: Path) -> None:
    model = module()
    example = script["Example"](model, data(actions), 1)
    episode, query = example.episode, example.query
    with torch.no_grad():
        logits = model(episode.support, episode.query)
    torch.testing.assert_close(example.logits.trm, logits.trm)
    for name, values in (("trm", logits.trm), ("qc", logits.qc)):
        assert example.evidence[name].logit == pytest.approx(values[query, example.label].item(), rel=1e-4)
    torch.testing.assert_close(example.attention.sum(-1), torch.ones(4, 16))
    # FLE adds to its input: a frame depends most on itself, and frames influence each other.
    assert example.mixing.shape == (4, 4)
    assert (example.mixing > 0).all()
    assert example.labels[example.label] in ("fall", "sink", "leap")
