"""Synchronised batch norm for backbones of timm, whose batch norm layers may hold an activation."""

import lightning as L
from lightning.pytorch.plugins.layer_sync import LayerSync, TorchSyncBatchNorm
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class TimmSyncBatchNorm(LayerSync):
    """Convert batch norm layers as Lightning's plugin does, and keep the activation of timm's ``BatchNormAct2d``.

    Lightning's plugin makes a plain ``SyncBatchNorm`` of every layer. EfficientNet, MobileNet, RegNet and others have
    their activations inside these layers, so that they would lose them. `revert` puts the original layers back.
    """

    def __init__(self) -> None:
        self._originals: dict[str, _BatchNorm] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the batch norm layers of a model by synchronised ones that share their parameters and buffers."""
        self._originals = {
            name: module
            for name, module in model.named_modules(remove_duplicate=False)
            if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
        }
        for name, module in self._originals.items():
            _put(model, name, convert_sync_batchnorm(module))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the layers from before `apply` back, with the parameters and statistics of now."""
        for name, original in self._originals.items():
            synchronised = model.get_submodule(name)
            original._parameters, original._buffers = synchronised._parameters, synchronised._buffers
            original.momentum = synchronised.momentum  # type: ignore[assignment]  # nn.Module types attributes so
            _put(model, name, original.train(synchronised.training))
        self._originals = {}
        return model


def use_timm_sync_batchnorm(trainer: L.Trainer) -> None:
    """Let ``Trainer(sync_batchnorm=True)`` convert with `TimmSyncBatchNorm`; a user's own plugin stays.

    Call it before the strategy converts the model, for example in `LightningModule.setup`.
    """
    strategy = trainer.strategy
    if type(getattr(strategy, "_layer_sync", None)) is TorchSyncBatchNorm:
        strategy._layer_sync = TimmSyncBatchNorm()  # type: ignore[attr-defined] # Lightning has no public way


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
