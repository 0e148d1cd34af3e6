"""Ridge, descriptions of clips, and weighted kernel ridge against the literal equations and degenerate input."""

import pytest
import torch
from torch import Tensor

from strm_lightning.errors import InputError
from strm_lightning.models.matching import kernels
from strm_lightning.models.matching.precision import inner_products
from strm_lightning.models.matching.shots import mean_over_shots
from tests import reference

MASK = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])
DESCRIPTIONS = ("unit_patches", "energy", "motionmap", "meanpatch")


def vectors(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return kernels.unit(torch.randn(*shape, generator=generator, dtype=torch.float64))


def grids(*leading: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*leading, 4, 3, 5, generator=generator, dtype=torch.float64)


def similarities(clips: Tensor, queries: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Support and query kernels of three descriptions, and one that is not positive definite."""
    own, cross = [], []
    for describe in (kernels.energy, kernels.motionmap, kernels.meanpatch):
        a, b = describe(clips), describe(queries)
        own.append(inner_products(a, a))
        cross.append(inner_products(a, b))
    return [*own, -own[0]], [*cross, -cross[0]]


@pytest.mark.parametrize("rho", [1.0, 0.1, 7.5])
@pytest.mark.parametrize(("way", "shot", "dim"), [(3, 2, 9), (1, 1, 4), (5, 4, 3)])
def test_ridge_is_the_closed_form(way: int, shot: int, dim: int, rho: float) -> None:
    support, query = vectors(way, shot, dim), vectors(6, dim, seed=1)
    literal = reference.ridge(list(support), query, rho)
    torch.testing.assert_close(kernels.ridge(support, query, rho), literal, rtol=1e-9, atol=1e-10)


def test_ridge_gradient_also_in_rows_and_queries() -> None:
    inputs = (vectors(2, 2, 3).requires_grad_(), vectors(2, 3, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(kernels.ridge, inputs)


@pytest.mark.parametrize("rho", [1.0, 0.0])
@pytest.mark.parametrize("content", [torch.nan, torch.inf, 3.0])
def test_ridge_without_absent_clips(rho: float, content: float) -> None:
    support, query = vectors(3, 3, 12), vectors(4, 12, seed=1)
    filled = torch.where(MASK[..., None], support, content).requires_grad_()
    logits = kernels.ridge(filled, query, rho, MASK)
    literal = reference.ridge([clips[keep] for clips, keep in zip(support, MASK, strict=True)], query, rho)
    torch.testing.assert_close(logits, literal, rtol=1e-9, atol=1e-10)
    (gradient,) = torch.autograd.grad(logits.square().sum(), filled)
    assert gradient.isfinite().all()
    assert not gradient[~MASK].any()
    assert gradient[MASK].any(-1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ridge_with_equal_clips_and_zero_clips(dtype: torch.dtype) -> None:
    clip = vectors(1, 1, 6).expand(3, 4, 6).to(dtype).clone()
    clip[0, 0] = 0
    clip.requires_grad_()
    logits = kernels.ridge(clip, clip[:, 0], 0.01)
    assert logits.isfinite().all()
    assert logits.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.autograd.grad(logits.square().sum(), clip)[0].isfinite().all()


def test_ridge_under_autocast_is_computed_in_float32() -> None:
    support, query = vectors(3, 2, 9).float(), vectors(4, 9, seed=1).float()
    exact = kernels.ridge(support, query)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(kernels.ridge(support, query), exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rho", [0.0, 1e-18])
def test_ridge_refuses_a_singular_system(dtype: torch.dtype, rho: float) -> None:
    duplicates = vectors(2, 1, 6).expand(2, 2, 6).to(dtype)
    dependent = vectors(3, 3, 4).to(dtype)  # nine clips in four dimensions
    for clips in (duplicates, dependent):
        with pytest.raises(InputError, match=f"rho is {rho}: .* singular; give a larger rho"):
            kernels.ridge(clips, clips[:, 0], rho)
    independent = vectors(2, 2, 9).to(dtype)
    assert kernels.ridge(independent, independent[:, 0], rho).argmax(-1).tolist() == [0, 1]


def test_ridge_refuses_bad_options() -> None:
    support, query = vectors(3, 3, 4), vectors(4, 4)
    for rho in (-1.0, float("nan")):
        with pytest.raises(InputError, match=f"rho is {rho}"):
            kernels.ridge(support, query, rho)
    with pytest.raises(InputError, match=r"needs booleans \[\.\.\., 3, 3\]"):
        kernels.ridge(support, query, 1.0, MASK[:2])


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_descriptions(name: str) -> None:
    grid = grids(2, 3)
    ours = getattr(kernels, name)(grid)
    literal = torch.stack([reference.descriptions(clip)[name] for clip in grid.flatten(0, 1)]).unflatten(0, (2, 3))
    torch.testing.assert_close(ours.flatten(2), literal.flatten(2), rtol=1e-10, atol=1e-12)
    half = getattr(kernels, name)(grid.bfloat16())
    assert half.dtype == torch.float32


@pytest.mark.parametrize("name", DESCRIPTIONS)
@pytest.mark.parametrize("clip", [torch.zeros(4, 3, 5), torch.ones(4, 3, 5), torch.eye(4)[:, :1, None].expand(4, 3, 5)])
def test_descriptions_of_degenerate_clips_are_finite(name: str, clip: Tensor) -> None:
    clip = clip.double().clone().requires_grad_()
    described = getattr(kernels, name)(clip)
    assert described.isfinite().all()
    assert described.norm() < 1 + 1e-9
    assert torch.autograd.grad(described.square().sum() + described.sum(), clip)[0].isfinite().all()


def test_what_descriptions_see() -> None:
    grid = grids()
    order, still = grid.flip(0), grid + 1
    for name, sees_order, sees_background in (
        ("unit_patches", True, False),
        ("energy", True, False),
        ("motionmap", False, False),
        ("meanpatch", False, True),
    ):
        describe = getattr(kernels, name)
        assert torch.allclose(describe(order), describe(grid)) != sees_order
        assert torch.allclose(describe(still), describe(grid)) != sees_background


@pytest.mark.parametrize(("way", "shot"), [(3, 3), (2, 5), (4, 1)])
def test_weighted_kernel_ridge_is_the_literal_one(way: int, shot: int) -> None:
    own, cross = similarities(grids(way * shot), grids(5, seed=1))
    labels = [c for c in range(way) for _ in range(shot)]
    literal = reference.weighted_kernel_ridge(own, cross, labels)
    ours = kernels.weighted_kernel_ridge(own[:3], cross[:3], way)
    torch.testing.assert_close(ours, reference.weighted_kernel_ridge(own[:3], cross[:3], labels), rtol=1e-8, atol=1e-9)
    if shot > 1:  # with one clip a class, all weights are equal and the negative kernel cancels another
        assert literal.shape == ours.shape


def test_weighted_kernel_ridge_cuts_negative_eigenvalues() -> None:
    generator = torch.Generator().manual_seed(0)
    own, cross = ([torch.randn(n, 9, generator=generator, dtype=torch.float64)] for n in (9, 5))
    own = [own[0] + own[0].T + 3 * torch.eye(9)]
    assert torch.linalg.eigvalsh(kernels.center_kernels(own[0], torch.ones(9).bool())[0])[0] < -0.1
    labels = [c for c in range(3) for _ in range(3)]
    ours, literal = kernels.weighted_kernel_ridge(own, cross, 3), reference.weighted_kernel_ridge(own, cross, labels)
    torch.testing.assert_close(ours, literal, rtol=1e-8, atol=1e-9)


def test_weighted_kernel_ridge_without_absent_clips_and_with_leading_axes() -> None:
    own, cross = similarities(grids(2, 9), grids(2, 5, seed=1))
    present = MASK.flatten()
    labels = [c for c in range(3) for _ in range(3)]
    left = [label for label, keep in zip(labels, present, strict=True) if keep]
    mask = MASK.expand(2, 3, 3)
    both = present & present[:, None]
    filled = [torch.where(both, k, torch.nan) for k in own], [torch.where(present, k, torch.inf) for k in cross]
    filled = [k.requires_grad_() for k in filled[0][:3]], [k.requires_grad_() for k in filled[1][:3]]
    logits = kernels.weighted_kernel_ridge(*filled, 3, mask)
    for b in range(2):
        literal = reference.weighted_kernel_ridge(
            [k[b][present][:, present] for k in own[:3]], [k[b][:, present] for k in cross[:3]], left
        )
        torch.testing.assert_close(logits[b], literal, rtol=1e-8, atol=1e-9)
    for gradient in torch.autograd.grad(logits.square().sum(), [*filled[0], *filled[1]]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", ["all clips equal", "all zero", "clips of a class equal", "one clip", "one class"])
def test_weighted_kernel_ridge_of_degenerate_support(case: str, dtype: torch.dtype) -> None:
    way, shot = {"one clip": (1, 1), "one class": (1, 3)}.get(case, (3, 3))
    clips = grids(way, shot)
    if case == "all clips equal":
        clips = clips[:1, :1].expand_as(clips)
    elif case == "all zero":
        clips = torch.zeros_like(clips)
    elif case == "clips of a class equal":
        clips = clips[:, :1].expand_as(clips)
    clips = clips.flatten(0, 1).to(dtype).clone().requires_grad_()
    own, cross = similarities(clips, grids(4, seed=1).to(dtype))
    logits = kernels.weighted_kernel_ridge(own[:3], cross[:3], way)
    assert logits.isfinite().all()
    assert torch.autograd.grad(logits.square().sum(), clips)[0].isfinite().all()
    if case in ("all clips equal", "all zero", "one clip"):
        assert not logits.any()
    if case == "clips of a class equal":
        cross = similarities(clips, clips[::3])[1]
        assert kernels.weighted_kernel_ridge(own[:3], cross[:3], way).argmax(-1).tolist() == [0, 1, 2]


def test_a_kernel_that_separates_the_classes_weighs_more() -> None:
    present = torch.ones(6, dtype=torch.bool)
    label = torch.arange(6) // 2
    noise = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double()
    noise = noise + noise.T
    good = (label == label[:, None]).double() + 0.1 * noise
    weights = kernels.kernel_weights(torch.stack([good, noise, -good]), label, present)
    assert weights[0] > 10 * weights[1]
    assert weights[2] == 0.001


def test_weighted_kernel_ridge_refuses_bad_options() -> None:
    own, cross = similarities(grids(9), grids(5, seed=1))
    with pytest.raises(InputError, match="4 support kernels and 3 query kernels"):
        kernels.weighted_kernel_ridge(own, cross[:3], 3)
    with pytest.raises(InputError, match="0 support kernels"):
        kernels.weighted_kernel_ridge([], [], 3)
    with pytest.raises(InputError, match=r"ridge is 0\.0"):
        kernels.weighted_kernel_ridge(own, cross, 3, ridge=0.0)
    with pytest.raises(InputError, match=r"needs booleans \[\.\.\., 3, 3\]"):
        kernels.weighted_kernel_ridge(own, cross, 3, MASK[:, :2])


def test_z_sum() -> None:
    lag, other = vectors(2, 4, 5), 100 * vectors(2, 4, 5, seed=1) - 30
    expected = sum((x - x.mean(-1, keepdim=True)) / x.std(-1, correction=0, keepdim=True) for x in (lag, other))
    torch.testing.assert_close(kernels.z_sum(lag, other), expected)
    torch.testing.assert_close(kernels.z_sum(lag, 7 * other + 2), expected)
    equal = torch.full((2, 4, 5), 0.1, dtype=torch.float64, requires_grad=True)
    total = kernels.z_sum(lag, equal)
    torch.testing.assert_close(total, kernels.z_sum(lag))
    assert torch.autograd.grad(total.square().sum(), equal)[0].isfinite().all()
    with pytest.raises(InputError, match="no logits"):
        kernels.z_sum()


def test_mean_over_shots_ignores_absent_scores() -> None:
    scores = vectors(4, 9)
    mean = mean_over_shots(scores.masked_fill(~MASK.flatten(), torch.nan), 3, MASK)
    for c in range(3):
        torch.testing.assert_close(mean[:, c], scores.unflatten(-1, (3, 3))[:, c, MASK[c]].mean(-1))
