"""Synchronised batch norm keeps the activations inside timm's batch norm layers."""

import copy

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from strm_lightning.models import Backbone
from strm_lightning.training.module import STRMModule
from strm_lightning.training.sync_batchnorm import TimmSyncBatchNorm

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
        assert norms
        assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
        assert [n for n, _ in converted.named_parameters()] == [n for n, _ in backbone.named_parameters()]
        torch.testing.assert_close(converted(clips), expected)
        norms[0].running_mean.add_(1.0)
        sync.revert(nn.ModuleList([backbone]))
        state[next(n for n in state if n.endswith("running_mean"))] += 1.0
        assert [type(module) for module in backbone.modules()] == kinds
        torch.testing.assert_close(backbone.state_dict(), state)
        assert not backbone.train()(clips).isnan().any()


@pytest.mark.parametrize("plugin", [None, TorchSyncBatchNorm, "own"])
def test_any_trainer_of_the_module_converts_so(plugin: object) -> None:
    """`Trainer(sync_batchnorm=True)` alone, without the command line; a user's own plugin stays.

    A whole fit needs GPUs: torch refuses synchronised layers on a CPU.
    """

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
