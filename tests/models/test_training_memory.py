"""Chunks, checkpointing and batch norm policies: the same gradients for less memory, or another policy as asked."""

import copy

import pytest
import torch
from torch import Tensor

from strm_lightning.models import STRM, Backbone

HEAD = {"num_frames": 2, "match_dim": 8, "patch_grid": 2}


def clips(*leading: int, size: int = 48) -> Tensor:
    return torch.rand(*leading, 2, 3, size, size, generator=torch.Generator().manual_seed(1))


def step(model: STRM) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients, and the running statistics that are left, of one training step."""
    torch.manual_seed(2)  # the heads' dropout
    model.train()
    model(clips(3, 1), clips(4)).combined().square().mean().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, dict(model.named_buffers())


def pair(options: dict, other: dict, backbone: str = "test_resnet") -> tuple[STRM, STRM]:
    torch.manual_seed(0)
    first = STRM(backbone, pretrained=False, **HEAD, **options)
    second = STRM(backbone, pretrained=False, **HEAD, **other)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    return first, second


@pytest.mark.parametrize(
    ("backbone", "options", "saving"),
    [
        ("test_resnet", {"batch_norm": "frozen"}, {"chunk_frames": 3}),
        ("test_resnet", {"batch_norm": "frozen"}, {"chunk_frames": 100}),
        ("test_resnet", {}, {"checkpoint_blocks": True}),
        ("test_resnet", {"separate_calls": True}, {"checkpoint_blocks": True}),
        ("test_resnet", {"batch_norm": "frozen"}, {"chunk_frames": 5, "checkpoint_blocks": True}),
        ("test_efficientnet", {}, {"checkpoint_blocks": True}),
        ("test_convnext", {}, {"chunk_frames": 4}),
        ("test_vit", {}, {"chunk_frames": 3, "checkpoint_blocks": True}),
    ],
)
def test_saving_memory_changes_no_gradient_and_no_statistics(backbone: str, options: dict, saving: dict) -> None:
    plain, saving_model = pair(options, options | saving, backbone)
    (expected, statistics), (gradients, other) = step(plain.double()), step(saving_model.double())
    assert expected.keys() == gradients.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient)
    for name, value in statistics.items():
        if not name.endswith("num_batches_tracked"):  # counts both runs, and nothing reads it
            torch.testing.assert_close(other[name], value)


def saved_bytes(model: STRM) -> int:
    """Bytes that the graph of one step holds for its backward pass."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(clips(3, 1), clips(4)).combined().sum()
    return sum(held.values())


@pytest.mark.parametrize("saving", [{"chunk_frames": 2}, {"checkpoint_blocks": True}])
def test_less_is_held_for_the_backward_pass(saving: dict) -> None:
    plain, saving_model = pair({"batch_norm": "frozen"}, {"batch_norm": "frozen"} | saving)
    assert saved_bytes(saving_model) < 0.7 * saved_bytes(plain)


def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_scale() -> None:
    model = STRM("test_resnet", pretrained=False, batch_norm="frozen", **HEAD)
    before = copy.deepcopy(dict(model.named_buffers()))
    gradients, after = step(model)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)
    assert gradients["backbone.net.bn1.weight"].abs().sum() > 0
    trained, _ = pair({}, {})
    assert not torch.equal(step(trained)[1]["backbone.net.bn1.running_mean"], before["backbone.net.bn1.running_mean"])


def test_separate_calls_see_separate_statistics() -> None:
    """Each call normalises by its own clips: queries that change leave the support's features alone."""
    together, apart = pair({}, {"separate_calls": True})
    support, query = clips(3, 1), clips(4)
    torch.testing.assert_close(together.eval()(support, query).trm, apart.eval()(support, query).trm)
    for model in (together, apart):
        model.backbone.train()  # and the heads not, whose dropout would differ
    assert (together(support, query).trm - apart(support, query).trm).abs().max() > 1e-4
    expected = apart.match(apart.encode(support), apart.encode(query))
    torch.testing.assert_close(apart(support, query).trm, expected.trm)


def test_options_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has batch norm.*batch_norm: frozen.*checkpoint_blocks"):
        Backbone("test_resnet", pretrained=False, chunk_frames=4)
    with pytest.raises(ValueError, match="chunk_frames is 0"):
        Backbone("test_vit", pretrained=False, chunk_frames=0)
    with pytest.raises(ValueError, match="not supported by timm for backbone 'selecsls42'"):
        Backbone("selecsls42", pretrained=False, checkpoint_blocks=True)
