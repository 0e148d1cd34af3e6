"""Synchronised batch norm for timm models, whose batch norm layers may contain an activation."""

import lightning as L
from lightning.pytorch.plugins.layer_sync import LayerSync, TorchSyncBatchNorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class TimmSyncBatchNorm(LayerSync):
    """Convert batch norm layers and keep the activation of timm's ``BatchNormAct2d``.

    Lightning's plugin replaces every layer by a plain ``SyncBatchNorm``, which removes the activations of EfficientNet,
    MobileNet, RegNet and others, because they are part of these layers.
    """

    def __init__(self) -> None:
        self._originals: dict[str, _BatchNorm] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace batch norm layers by synchronised ones that share their parameters and buffers."""
        from timm.layers import convert_sync_batchnorm  # timm takes long to import

        self._originals = {
            name: module
            for name, module in model.named_modules(remove_duplicate=False)
            if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
        }
        for name, module in self._originals.items():
            _set_module(model, name, convert_sync_batchnorm(module))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Restore the layers from before `apply`, with the current parameters and statistics."""
        for name, original in self._originals.items():
            synchronised = model.get_submodule(name)
            original._parameters, original._buffers = synchronised._parameters, synchronised._buffers
            original.momentum = synchronised.momentum  # type: ignore[assignment]  # nn.Module's attributes are untyped
            _set_module(model, name, original.train(synchronised.training))
        self._originals = {}
        return model


def use_timm_sync_batchnorm(trainer: L.Trainer) -> None:
    """Make ``Trainer(sync_batchnorm=True)`` use `TimmSyncBatchNorm`, unless the user set another plugin.

    Call it before the strategy converts the model, for example in `LightningModule.setup`.
    """
    strategy = trainer.strategy
    if type(getattr(strategy, "_layer_sync", None)) is TorchSyncBatchNorm:
        strategy._layer_sync = TimmSyncBatchNorm()  # type: ignore[attr-defined] # Lightning has no public attribute


def _set_module(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
