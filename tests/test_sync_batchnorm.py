"""Synchronised batch norm keeps the activations inside timm's batch norm layers."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from strm_lightning.models import Backbone
from strm_lightning.module import STRMModule
from strm_lightning.sync_batchnorm import TimmSyncBatchNorm

BACKBONES = [
    "resnet18.tv_in1k",
    "tf_efficientnet_lite0.in1k",
    "mobilenetv3_small_050.lamb_in1k",
    "regnetx_002.pycls_in1k",
]


@pytest.mark.parametrize("name", BACKBONES)
def test_a_converted_backbone_gives_the_same_maps(name: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone(name, pretrained=False).eval()
    for norm in backbone._batch_norms():  # away from the trivial start
        nn.init.normal_(norm.bias, std=0.5)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    clips, kinds = torch.rand(2, 3, 64, 64), [type(module) for module in backbone.modules()]
    state = copy.deepcopy(backbone.state_dict())
    with torch.no_grad():
        expected = backbone(clips)
        sync = TimmSyncBatchNorm()
        converted = sync.apply(nn.ModuleList([backbone]))[0]
        norms = converted._batch_norms()
        assert norms and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
        assert [n for n, _ in converted.named_parameters()] == [n for n, _ in backbone.named_parameters()]
        torch.testing.assert_close(converted(clips), expected)
        norms[0].running_mean.add_(1.0)
        sync.revert(nn.ModuleList([backbone]))
        state[next(n for n in state if n.endswith("running_mean"))] += 1.0
        assert [type(module) for module in backbone.modules()] == kinds
        torch.testing.assert_close(backbone.state_dict(), state)
        assert not backbone.train()(clips).isnan().any()


PROCESSES = """
import sys
import lightning as L
import torch
from strm_lightning import EpisodeDataModule, STRMModule

root, name, sync = sys.argv[1:]


class Checked(STRMModule):
    def on_fit_start(self):
        kinds = {type(norm).__name__ for norm in self.model.backbone._batch_norms()}
        assert ("SyncBatchNormAct" in kinds) == (sync == "True"), kinds
        super().on_fit_start()


split = {"train": ["left", "right", "up", "down"], "test": ["fall", "sink", "leap"]}
data = EpisodeDataModule(root, split, way=2, shot=1, query_per_class=1, num_frames=4, image_size=32, train_episodes=2,
                         num_workers=0)
torch.manual_seed(0)
# Frozen: torch has no synchronised statistics on a CPU. All else is as in a run on several devices.
module = Checked(name, pretrained=False, num_frames=4, match_dim=8, batch_norm="frozen")
trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", sync_batchnorm=sync == "True", max_epochs=1,
                    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(module, datamodule=data)
assert not any("Sync" in type(m).__name__ for m in module.modules())
if trainer.is_global_zero:
    print("loss", trainer.callback_metrics["train/loss"].item())
"""


def test_two_processes_train_alike_with_and_without(actions: Path, tmp_path: Path) -> None:
    (script := tmp_path / "train.py").write_text(PROCESSES)  # Lightning starts the second process from a file
    losses = []
    for sync in (True, False):
        command = [sys.executable, str(script), str(actions), "test_efficientnet", str(sync)]
        environment = os.environ | {"PYTHONPATH": "src"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        losses.append(float(done.stdout.split("loss")[-1]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("plugin", [None, TorchSyncBatchNorm, "own"])
def test_any_trainer_of_the_module_converts_so(plugin: object) -> None:
    """`Trainer(sync_batchnorm=True)` alone, without the command line; a user's own plugin stays."""

    class Own(TorchSyncBatchNorm):
        pass

    plugins = [] if plugin is None else [Own() if plugin == "own" else plugin()]
    trainer = L.Trainer(
        accelerator="cpu", devices=1, strategy=DDPStrategy(), sync_batchnorm=True, plugins=plugins,
        logger=False, enable_checkpointing=False,
    )  # fmt: skip
    module = STRMModule("resnet18.tv_in1k", pretrained=False, num_frames=4, match_dim=8)
    module.trainer = trainer
    module.setup("fit")
    assert type(trainer.strategy._layer_sync) is (Own if plugin == "own" else TimmSyncBatchNorm)
