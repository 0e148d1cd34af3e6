"""Estimate the memory of a training step before training."""

import copy
import weakref
from dataclasses import dataclass, fields
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from strm_lightning.data.datamodule import EpisodeDataModule
from strm_lightning.messages import format_bytes
from strm_lightning.models.strm import STRM
from strm_lightning.training.module import STRMModule


@dataclass(frozen=True, kw_only=True)
class MemoryOfStep:
    """Memory of one training step in bytes.

    Attributes:
        weights: parameters and buffers.
        gradients: gradients of trainable parameters.
        optimizer: state of the optimiser.
        activations: peak of the tensors of the forward and backward pass, including pixels.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(getattr(self, f.name) for f in fields(self))

    def __str__(self) -> str:
        parts = ", ".join(f"{f.name} {getattr(self, f.name) / 1e9:.2f}" for f in fields(self))
        return f"{self.total / 1e9:.1f} GB ({parts})"


def memory_of_step(
    model: STRM,
    *,
    way: int,
    shot: int,
    queries: int,
    image_size: int,
    batch_size: int = 1,
    dtype: torch.dtype = torch.float32,
    states_per_parameter: int = 0,
) -> MemoryOfStep:
    """Measure the memory of a training step on the device ``meta``, whose tensors have no data.

    A copy of the model runs the forward and backward pass of one batch with the real shapes, chunks and recomputation
    included; the peak size of all allocated storages is the estimate. It does not include the CUDA context
    (0.3 .. 0.5 GB), workspaces of convolutions, and fragmentation.

    Args:
        model: the model to train.
        way: classes of an episode, N.
        shot: support clips of a class, K.
        queries: query clips of an episode, Q.
        image_size: height and width of a clip in pixels.
        batch_size: episodes of a step.
        dtype: type of the activations. With bf16-mixed it is ``torch.bfloat16``; autocast's copies of weights are then
            included.
        states_per_parameter: values that the optimiser stores for each parameter: 0 for plain SGD, 2 for Adam.
    """
    twin = copy.deepcopy(model).to("meta", dtype).train()
    for parameter in twin.parameters():  # allocated before the step, so that gradients are not counted twice
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    counter = _StorageCounter(twin)
    shape = (model.num_frames, 3, image_size, image_size)
    with counter:
        support = torch.empty(batch_size, way, shot, *shape, dtype=torch.uint8, device="meta")
        query = torch.empty(batch_size, queries, *shape, dtype=torch.uint8, device="meta")
        twin(support, query).combined().sum().backward()
    trainable = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    copies = sum(p.nbytes for p in twin.parameters()) if dtype != torch.float32 else 0  # autocast's
    return MemoryOfStep(
        weights=sum(t.nbytes for t in (*model.parameters(), *model.buffers())) + copies,
        gradients=trainable,
        optimizer=states_per_parameter * trainable,
        activations=counter.peak,
    )


class MemoryEstimate(L.Callback):
    """Print the estimated memory of a step before training, and the memory of the device; see `memory_of_step`.

    Add ``strm_lightning.training.memory.MemoryEstimate`` to ``trainer.callbacks``.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        module, data = cast(STRMModule, pl_module), cast(EpisodeDataModule, trainer.datamodule)  # type: ignore[attr-defined]
        if stage != "fit" or module.freeze_backbone or not trainer.is_global_zero:
            return  # the maps of a frozen backbone are stored, and the head needs little memory
        precision = str(trainer.precision)
        dtype = (
            torch.bfloat16 if precision.startswith("bf16") else torch.float16 if "16" in precision else torch.float32
        )
        estimate = memory_of_step(
            module.model,
            way=data.way,
            shot=data.shot,
            queries=data.way * data.queries["train"],
            image_size=data.transform.image_size,
            batch_size=data.batch_size,
            dtype=dtype,
            states_per_parameter=_states(module.hparams),
        )
        print(f"A training step will take about {estimate}{_device(trainer.strategy.root_device)}")


def _states(options: Any) -> int:
    return 2 if options["optimizer"] in ("adam", "adamw") else int(options["momentum"] > 0)


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    total = torch.cuda.get_device_properties(device).total_memory
    return f"; {torch.cuda.get_device_name(device)} has {format_bytes(total)}"


class _StorageCounter(TorchDispatchMode):
    """Count the bytes of the storages that operations allocate, and their peak.

    Args:
        model: its storages are not counted.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        own = (*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None))
        self.alive = {tensor.untyped_storage()._cdata: 0 for tensor in own}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive:
            return
        self.alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.alive.pop(key)
