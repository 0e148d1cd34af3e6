"""Controls: reversed queries and static clips, from a bank and from the clips of each episode."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from strm_lightning.episode import PooledMaps
from strm_lightning.evaluation.controls import (
    control_features,
    reversed_clips,
    reversed_maps,
    static_clips,
    static_maps,
)
from strm_lightning.evaluation.results_file import load_results
from strm_lightning.models.strm import STRM
from tests.test_module import data, module, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


def run_test(folder: Path, model: L.LightningModule, episodes: L.LightningDataModule) -> dict[str, Any]:
    trainer(folder).test(model, datamodule=episodes, verbose=False)
    return load_results(folder)


def test_changed_maps_are_those_of_changed_clips() -> None:
    model = STRM("test_resnet", pretrained=False, num_frames=4, matching="otam").eval()
    clips = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        found, backwards = control_features(model, clips), model.encode(reversed_clips(clips))
    torch.testing.assert_close(found["reversed"].frame_level, backwards.frame_level)
    still = found["static"].frame_level
    torch.testing.assert_close(still, found["own"].frame_level.mean(-2, keepdim=True).expand_as(still))


def test_a_video_backbone_encodes_the_changed_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    model = STRM("test_resnet", pretrained=False, num_frames=4, matching="otam").eval()
    monkeypatch.setattr("strm_lightning.evaluation.controls.frame_wise", lambda model: False)
    clips = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        found, still = control_features(model, clips), model.encode(static_clips(clips))
    torch.testing.assert_close(found["static"].frame_level, still.frame_level)
    own = found["own"].frame_level.mean(-2, keepdim=True).expand_as(still.frame_level)
    assert not torch.allclose(still.frame_level, own)  # the mean of the maps is not the map of the mean frame


def test_a_reversed_and_a_static_clip() -> None:
    maps = PooledMaps(grid=torch.randn(2, 4, 9, 5), mean=torch.randn(2, 4, 5))
    twice = reversed_maps(reversed_maps(maps))
    torch.testing.assert_close((twice.grid, twice.mean), (maps.grid, maps.mean), rtol=0, atol=0)
    assert torch.equal(reversed_maps(maps).mean[:, 0], maps.mean[:, -1])
    assert torch.equal(reversed_maps(maps).grid[:, 0], maps.grid[:, -1])
    still = static_maps(maps)
    torch.testing.assert_close(still.grid[:, 3], maps.grid.mean(1))
    torch.testing.assert_close(still.mean[:, 0], maps.mean.mean(1))
    pixels = torch.tensor([10, 20], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    assert torch.equal(static_clips(pixels), torch.full_like(pixels, 15))


@pytest.mark.parametrize("options", [{}, {"freeze_backbone": True, "bank_dir": "banks"}, {"matching": "otam"}])
def test_the_bank_gives_the_controls_of_encoding_each_episode_anew(
    actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = {}
    for evaluation in ("bank", "episodes"):
        episodes = data(actions, evaluation=evaluation, way=3, shot=2, test_episodes=12)
        found[evaluation] = run_test(tmp_path / evaluation, module(controls=True, **options), episodes)
    assert found["bank"]["controls"] == found["episodes"]["controls"]
    assert list(found["bank"]["controls"]) == ["reversed", "static"]
    without = run_test(tmp_path / "off", module(**options), data(actions, way=3, shot=2, test_episodes=12))
    assert without["controls"] == {}
    assert without["per_episode"] == found["bank"]["per_episode"]


def test_every_setting_has_its_controls(actions: Path, tmp_path: Path) -> None:
    episodes = data(actions, way=3, shot=3, test_episodes=60, image_size=96, test_shots=[1, 3])
    options = {"matching": "patches", "center_clip": True, "patch_grid": 4}
    found = run_test(tmp_path, module(controls=True, **options), episodes)
    static = found["controls"]["static"]
    assert static["difference"] == pytest.approx(static["accuracy"] - found["accuracy"])
    assert {"episodes", "clips", "classes"} == static["difference_intervals"].keys()
    assert [row["controls"].keys() for row in found["sweep"]] == [{"reversed", "static"}] * 2
    assert found["sweep"][1]["controls"]["static"]["accuracy"] == static["accuracy"]


def test_controls_are_not_an_option_of_a_checkpoint() -> None:
    assert "controls" not in module(controls=True).hparams


def test_results_contain_the_clips_of_each_episode(actions: Path, tmp_path: Path) -> None:
    episodes = data(actions, way=2, shot=2, test_episodes=30)
    found = run_test(tmp_path, module(), episodes)
    names, drawn = found["videos"], episodes.generator("test").draw(0, 3)[0]
    store = episodes.videos["test"].store
    assert [names[clip] for clip in np.ravel(found["per_episode"]["support"][3])] == [
        store.videos[row] for row in drawn.support_ids.flatten()
    ]
    assert [names[clip] for clip in found["per_episode"]["query"][3]] == [store.videos[row] for row in drawn.query_ids]
    assert found["per_episode"]["classes"][3] == drawn.class_ids.tolist()
    assert found["intervals"]["episodes"]["ci95"] == found["ci95"]
    assert found["intervals"]["clips"]["number"] == len(names) == 18


def test_the_card_marks_transductive_methods(actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = []
    for per_query in (True, False):
        model = module()
        monkeypatch.setattr(type(model.model.head.matching), "per_query", per_query)
        marks.append(run_test(tmp_path, model, data(actions, test_episodes=2))["card"]["model"]["transductive"])
    assert marks == [False, True]
