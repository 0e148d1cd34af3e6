"""How much memory a training step will take, said before it is taken."""

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
from strm_lightning.models.strm import STRM
from strm_lightning.training.module import STRMModule


@dataclass(frozen=True, kw_only=True)
class MemoryOfStep:
    """Bytes that one training step takes on a device.

    Attributes:
        weights: parameters and buffers.
        gradients: gradients of what learns.
        optimizer: the optimiser's state.
        activations: the most that the forward and backward pass hold at once, pixels included.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
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
    """Measure a training step without computing it, on tensors that have shapes and no contents (device ``meta``).

    A copy of the model goes through the forward and backward pass of one episode of the real shapes, chunks and
    recomputation included, while every storage that comes and goes is counted; the most that is held at once is the
    estimate. What a GPU adds is left out: the context (0.3 .. 0.5 GB), workspaces of convolutions, fragmentation.

    Args:
        model: what will be trained.
        way: classes of an episode, N.
        shot: support clips of a class, K.
        queries: query clips of an episode, Q.
        image_size: height and width of a clip in pixels.
        batch_size: episodes of a step.
        dtype: of the activations; under bf16-mixed ``torch.bfloat16``, and weights are then counted once more in it.
        states_per_parameter: numbers that the optimiser keeps for each parameter: 0 for plain SGD, 2 for Adam.
    """
    twin = copy.deepcopy(model).to("meta", dtype).train()
    for parameter in twin.parameters():  # held from step to step, so not counted among what comes and goes
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    counter = _Storages(twin)
    shape = (model.head.num_frames, 3, image_size, image_size)
    with counter:
        support = torch.empty(batch_size, way, shot, *shape, dtype=torch.uint8, device="meta")
        query = torch.empty(batch_size, queries, *shape, dtype=torch.uint8, device="meta")
        twin(support, query).combined().sum().backward()
    learned = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    copies = sum(p.nbytes for p in twin.parameters()) if dtype != torch.float32 else 0  # autocast's
    return MemoryOfStep(
        weights=sum(t.nbytes for t in (*model.parameters(), *model.buffers())) + copies,
        gradients=learned,
        optimizer=states_per_parameter * learned,
        activations=counter.peak,
    )


class MemoryEstimate(L.Callback):
    """Say before a training run how much memory a step will take, next to what the device has.

    Put ``strm_lightning.training.memory.MemoryEstimate`` among ``trainer.callbacks``. Computed by `memory_of_step`.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        module, data = cast(STRMModule, pl_module), cast(EpisodeDataModule, trainer.datamodule)  # type: ignore[attr-defined]
        if stage != "fit" or module.freeze_backbone or not trainer.is_global_zero:
            return  # maps of a frozen backbone are stored, and the heads take little
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
    return f"; {torch.cuda.get_device_name(device)} has {total / 1e9:.1f} GB"


class _Storages(TorchDispatchMode):
    """Count the bytes of all storages that operations make, while they live.

    Args:
        model: its own storages are not counted.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        held = (*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None))
        self.alive = {tensor.untyped_storage()._cdata: 0 for tensor in held}
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
