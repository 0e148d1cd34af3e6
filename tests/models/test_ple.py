"""The pooled form of PLE equals the mean of the equations, whatever happens to the weights between two calls."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from strm_lightning.models.enrichment.ple import PatchEnrichment

D, PP = 24, 9


def build(variant: str = "paper", dtype: torch.dtype = torch.float64) -> PatchEnrichment:
    torch.manual_seed(0)
    ple = PatchEnrichment(D, PP, variant=variant).to(dtype).eval()
    for parameter in ple.parameters():
        nn.init.normal_(parameter, std=0.3)
    return ple


def patches(frames: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, frames // 2, PP, D, generator=torch.Generator().manual_seed(1), dtype=dtype)


def check(ple: PatchEnrichment, x: Tensor | None = None, tolerance: float = 1e-10) -> None:
    x = patches() if x is None else x
    torch.testing.assert_close(ple(x, pooled=True), ple(x).mean(-2), rtol=tolerance, atol=tolerance)


def multiplications(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("frames", [2, 6])  # 18 patches: fewer than D; 54: more
def test_outputs_and_gradients_are_those_of_the_equations(variant: str, frames: int) -> None:
    ple, found = build(variant), []
    for pooled in (False, True):
        x = patches(frames).requires_grad_()
        out = ple(x, pooled=True) if pooled else ple(x).mean(-2)
        assert out.shape == (*x.shape[:-2], D)
        found.append([out, *torch.autograd.grad(out.sin().sum(), [x, *ple.parameters()])])
    for literal, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        check(ple, patches(frames))


def test_pooled_takes_about_half_of_the_multiplications() -> None:
    torch.manual_seed(0)
    ple = PatchEnrichment(256, 16)
    x = torch.randn(40, 16, 256)
    each = 40 * 16 * 256**2
    with torch.no_grad():
        ple(x, pooled=True)  # computes the products of weights
        assert multiplications(lambda: ple(x)) > 4.25 * each
        assert multiplications(lambda: ple(x, pooled=True)) < 2.6 * each  # of which 0.2 are for 16 patches of 256
    assert multiplications(lambda: ple(x, pooled=True)) < 2.6 * each + 1.5 * 256**3 + 1  # in training
    few = multiplications(lambda: ple(x[:4], pooled=True))  # the products would take longer
    assert few < multiplications(lambda: ple(x[:4])) < few + 256**3


CHANGES: dict[str, Callable[[PatchEnrichment], object]] = {
    "in place": lambda ple: ple.value.weight.mul_(1.5),
    "by .data": lambda ple: ple.query.weight.data.mul_(1.5),
    "one number by .data": lambda ple: ple.psi[0].weight.data[3, 4].add_(1e-6),
    "rows exchanged": lambda ple: ple.key.weight.data.copy_(ple.key.weight.flip(0)),
    "columns exchanged": lambda ple: ple.key.weight.data.copy_(ple.key.weight.flip(1)),
    "a bias": lambda ple: ple.key.bias.data.add_(1.0),
    "the gate": lambda ple: ple.gate.data.fill_(2.0),
    "load_state_dict": lambda ple: ple.load_state_dict({k: v.flip(0) for k, v in ple.state_dict().items()}),
    "assigned state": lambda ple: ple.load_state_dict({k: 2 * v for k, v in ple.state_dict().items()}, assign=True),
    "new parameter": lambda ple: setattr(ple.query, "weight", nn.Parameter(torch.randn(D, D).double())),
    "new layer": lambda ple: setattr(ple, "value", nn.Linear(D, D).double()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_kept_products_follow_the_weights(change: str, mode: Callable) -> None:
    ple = build("official")
    with mode():
        check(ple)
    with torch.no_grad():
        before = ple(patches(), pooled=True)
        CHANGES[change](ple)
    with mode():
        check(ple)
        if change != "a bias":  # of the keys, which softmax ignores
            assert not torch.equal(before, ple(patches(), pooled=True))


def test_kept_products_follow_an_optimiser() -> None:
    ple = build()
    optimizer = torch.optim.AdamW(ple.parameters(), lr=1e-2)
    for _ in range(3):
        with torch.no_grad():
            check(ple)
        ple(patches(), pooled=True).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        check(ple)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_products_follow_a_change_of_precision(dtype: torch.dtype) -> None:
    ple = build()
    with torch.no_grad():
        for parameter in ple.parameters():  # numbers that every precision holds
            parameter.copy_(parameter.bfloat16())
        check(ple)
        ple.to(dtype)
        assert ple(patches(dtype=dtype), pooled=True).dtype == dtype
        check(ple, patches(dtype=dtype), 1e-4 if dtype == torch.float32 else 0.1)
        check(ple.double())


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_under_autocast(mode: Callable) -> None:
    ple, x = build(dtype=torch.float32), patches(dtype=torch.float32)
    expected = ple(x).mean(-2)
    with mode():
        for enabled in (True, False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                found = ple(x, pooled=True).float()
            size = expected.square().mean().sqrt()
            assert (found - expected).square().mean().sqrt() < (0.02 if enabled else 1e-5) * size


def test_copies_have_products_of_their_own() -> None:
    ple = build()
    bare = len(pickle.dumps(ple))
    with torch.no_grad():
        check(ple)
        assert len(pickle.dumps(ple)) == bare
        other = copy.deepcopy(ple)
        other.query.weight.mul_(2)
        check(other)
        check(ple)
    assert ple.state_dict().keys() == dict(ple.named_parameters()).keys()


def test_frozen_weights_after_inference_mode_give_gradients() -> None:
    ple = build().requires_grad_(False)
    with torch.inference_mode():
        check(ple)
    x, again = patches().requires_grad_(), patches().requires_grad_()
    ple(x, pooled=True).sin().sum().backward()
    ple(again).mean(-2).sin().sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-10, atol=1e-10)


class Twice(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize("kind", ["subclass", "hook", "parametrisation"])
@pytest.mark.parametrize("name", ["query", "key", "value", "psi.0"])
def test_layers_that_are_more_than_their_weight_are_called(kind: str, name: str) -> None:
    ple = build()
    layer = ple.get_submodule(name)
    if kind == "subclass":
        layer.__class__ = Twice
    elif kind == "hook":
        layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    else:
        parametrize.register_parametrization(layer, "weight", Double())
    check(ple)
    with torch.no_grad():
        check(ple)


def test_weights_of_a_functional_call_are_used() -> None:
    ple, x = build(), patches()
    with torch.no_grad():
        check(ple)
        stacks = {name: torch.stack([weight, 2 * weight]) for name, weight in ple.named_parameters()}
        found = torch.func.vmap(lambda weights: functional_call(ple, weights, (x,), {"pooled": True}))(stacks)
        for i in range(2):
            one = {name: stack[i] for name, stack in stacks.items()}
            torch.testing.assert_close(found[i], functional_call(ple, one, (x,)).mean(-2), rtol=1e-10, atol=1e-10)


class Pooled(nn.Module):
    def __init__(self, ple: PatchEnrichment) -> None:
        super().__init__()
        self.ple = ple

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.ple(x, pooled=True)
        return pooled


def test_an_exported_graph_contains_no_products() -> None:
    ple, x = build(), patches()
    with torch.no_grad():
        check(ple)
        program = torch.export.export(Pooled(ple), (x,), strict=False)  # the default since torch 2.8
        assert not program.constants
        graph = program.module()
        torch.testing.assert_close(graph(x), ple(x).mean(-2), rtol=1e-10, atol=1e-10)
        for ours, exported in zip(ple.parameters(), graph.parameters(), strict=True):
            ours.mul_(2)
            if exported is not ours and not torch.equal(exported, ours):
                exported.mul_(2)
        torch.testing.assert_close(graph(x), ple(x).mean(-2), rtol=1e-10, atol=1e-10)
