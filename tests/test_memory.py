"""The estimate of a step's memory against what a real step holds."""

from typing import Any

import pytest
import torch
from torch import Tensor

from strm_lightning.models import STRM
from strm_lightning.training.memory import MemoryOfStep, memory_of_step

EPISODE = {"way": 3, "shot": 1, "queries": 3}


def model(**options: Any) -> STRM:
    settings = {"pretrained": False, "num_frames": 4, "match_dim": 8, "patch_grid": 2, "batch_norm": "frozen"}
    return STRM("test_resnet", **settings | options)


def estimate(net: STRM, size: int = 64, **options: Any) -> MemoryOfStep:
    return memory_of_step(net, image_size=size, **EPISODE | options)


def held_for_backward(net: STRM, size: int) -> int:
    """Bytes that the graph of a real step holds when its forward pass ends: a part of the peak, measured otherwise."""
    held = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net.train()(torch.rand(3, 1, 4, 3, size, size), torch.rand(3, 4, 3, size, size)).combined().sum()
    for tensor in (*net.parameters(), *net.buffers()):
        held.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(held.values())


@pytest.mark.parametrize("size", [32, 96])
def test_the_peak_is_what_a_real_step_holds_and_a_little_more(size: int) -> None:
    net = model()
    measured = held_for_backward(net, size)
    assert measured < estimate(net, size).activations < 1.5 * measured


def test_parts_of_the_sum() -> None:
    net = model()
    parameters = sum(p.nbytes for p in net.parameters())
    found = estimate(net, states_per_parameter=2)
    assert (found.gradients, found.optimizer) == (parameters, 2 * parameters)
    assert found.total == found.weights + found.gradients + found.optimizer + found.activations
    assert f"{found.total / 1e9:.1f} GB (weights" in str(found)
    assert all(p.device.type == "cpu" and p.grad is None for p in net.parameters())


def test_what_saves_memory_is_seen() -> None:
    plain = estimate(model()).activations
    assert estimate(model(chunk_frames=3)).activations < 0.6 * plain
    assert estimate(model(checkpoint_blocks=True)).activations < 0.9 * plain
    assert estimate(model(), dtype=torch.bfloat16).activations < 0.6 * plain
    assert 1.9 * plain < estimate(model(), batch_size=2).activations < 2.1 * plain
