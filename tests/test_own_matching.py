"""A user's own matching method: trained, tested from a bank, saved and loaded by its name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from strm_lightning import STRMModule
from strm_lightning.classifier import FewShotClassifier
from strm_lightning.episode import VideoFeatures
from strm_lightning.errors import InputError
from strm_lightning.models import FeatureSpec, Matching, register_matching
from strm_lightning.models.matching import base
from strm_lightning.models.matching.shots import mean_over_shots
from tests.evaluation.test_protocol import run_test
from tests.test_module import data, module, trainer
from tests.test_module import pytestmark as pytestmark


class Projected(Matching):
    """Inner product of projected mean features."""

    def __init__(self, spec: FeatureSpec, *, width: int = 4, scale: float = 1.0) -> None:
        super().__init__(spec)
        self.project = nn.Linear(spec.dim, width)
        self.scale = scale

    def encode(self, clip: VideoFeatures) -> dict[str, Tensor]:
        assert clip.frame_level is not None
        return {"clip": self.project(clip.frame_level.mean(-2))}

    def match(
        self, support: dict[str, Tensor], query: dict[str, Tensor], shot_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        scores = query["clip"] @ support["clip"].flatten(-3, -2).mT
        return {"own": self.scale * mean_over_shots(scores, support["clip"].shape[-3], shot_mask)}


class Plain(Projected):
    """The same with nothing to train."""

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__(spec)
        self.project = nn.Identity()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Matching]]:
    """A copy of the registry with the methods of this file."""
    monkeypatch.setattr(base, "_registry", dict(base._registry))
    register_matching("projected")(Projected)
    register_matching("plain")(Plain)
    return base._registry


OWN: dict[str, Any] = {"matching": "projected", "matching_options": {"width": 3, "scale": 0.5}}


def test_it_is_trained_tested_from_a_bank_and_loaded(
    actions: Path, tmp_path: Path, registry: dict[str, type[Matching]]
) -> None:
    model = module(**OWN, freeze_backbone=True, query_class=True, bank_dir=str(tmp_path / "banks"), lr=0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saver = ModelCheckpoint(tmp_path, filename="own")
    run = trainer(tmp_path, max_epochs=2, callbacks=[saver])
    run.fit(model, datamodule=data(actions))
    assert {"train/loss_projected", "train/loss_qc", "val/loss_projected"} <= run.callback_metrics.keys()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {
        f"model.head.{name}.{kind}" for name in ("projected.project", "qc.0.linear") for kind in ("weight", "bias")
    }

    found = run_test(tmp_path / "bank", model, data(actions, test_episodes=20))
    anew = run_test(tmp_path / "episodes", model, data(actions, test_episodes=20, evaluation="episodes"))
    assert found["per_episode"] == anew["per_episode"]
    loaded = STRMModule.load_from_checkpoint(tmp_path / "own.ckpt", bank_dir=str(tmp_path / "banks"))
    assert isinstance(loaded.model.head.projected, Projected)
    assert (loaded.hparams["matching"], loaded.hparams["matching_options"]) == tuple(OWN.values())
    assert loaded.model.head.matching.options == OWN["matching_options"]
    kept = set((tmp_path / "banks").iterdir())
    again = run_test(tmp_path / "again", loaded, data(actions, test_episodes=20))
    assert again["per_episode"] == found["per_episode"]
    assert set((tmp_path / "banks").iterdir()) == kept
    assert "own_classes" not in torch.load(tmp_path / "own.ckpt", weights_only=True)


def test_a_checkpoint_of_a_method_that_nobody_registered_is_refused(
    tmp_path: Path, registry: dict[str, type[Matching]]
) -> None:
    path, run = tmp_path / "own.ckpt", trainer(tmp_path)
    run.strategy.connect(module(**OWN))
    run.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["hyper_parameters"]["matching"] == "projected"
    del registry["projected"]
    for load in (STRMModule.load_from_checkpoint, FewShotClassifier.from_checkpoint):
        with pytest.raises(InputError, match=r"'projected' is not registered: .*--import FILE_OR_MODULE") as error:
            load(path)
        assert "\n" not in str(error.value)
    register_matching("projected")(Projected)
    STRMModule.load_from_checkpoint(path)


def test_a_method_without_weights_is_tested_and_not_trained(
    actions: Path, tmp_path: Path, registry: dict[str, type[Matching]]
) -> None:
    frozen = module(matching="plain", freeze_backbone=True)
    assert run_test(tmp_path, frozen, data(actions))["episodes"] == 9
    with pytest.raises(InputError, match=r"nothing to train: matching 'plain' has no weights and the backbone is fr"):
        trainer(tmp_path).fit(frozen, datamodule=data(actions))
    learns = module(matching="plain")
    run = trainer(tmp_path, max_steps=1, enable_checkpointing=False, limit_val_batches=0)
    run.fit(learns, datamodule=data(actions))
    assert run.global_step == 1


@pytest.mark.parametrize(
    "options",
    [
        {"matching": "kernel_ridge", "matching_options": {"kernels": ["lag", "energy"], "ridge": 0.2}},
        {"matching": "otam", "matching_options": {"smoothing": 0.2, "debias": True, "tuple_size": 2, "tuple_dim": 5}},
        {"matching": "chamfer", "matching_options": {"shots": "joint", "learn_scale": True}, "frame_enrichment": True},
        {"matching": "lag", "matching_options": {"proj_dim": 4, "dropout": 0.1}, "query_class": True},
    ],
    ids=lambda options: options["matching"],
)
def test_options_survive_a_checkpoint(tmp_path: Path, options: dict[str, Any]) -> None:
    path, run, model = tmp_path / "one.ckpt", trainer(tmp_path), module(**options)
    run.strategy.connect(model)
    run.save_checkpoint(path)
    loaded = STRMModule.load_from_checkpoint(path)
    assert {name: loaded.hparams[name] for name in options} == options
    assert loaded.model.head.matching.options == options["matching_options"]
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
