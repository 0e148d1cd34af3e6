"""Lag similarity and the soft normalisation against the literal equations, and what they must and must not forgive."""

import pytest
import torch
from torch import Tensor

from strm_lightning.errors import InputError
from strm_lightning.models.matching import kernels
from strm_lightning.models.matching.lag import lag_similarity, soft_normalize
from tests import reference


def clips(*leading: int, length: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return kernels.unit_patches(torch.rand(*leading, length, 2, 3, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("lengths", [(5, 5), (3, 6), (6, 3), (1, 4), (1, 1)])
@pytest.mark.parametrize("options", [(0, 1.0, 0.0), (2, 20.0, 0.35), (7, 30.0, 0.35), (3, 5.0, 2.0)])
def test_equal_to_the_literal_equation(lengths: tuple[int, int], options: tuple) -> None:
    query, support = (kernels.unit(torch.randn(2, n, 2, 3).double(), 3).requires_grad_() for n in lengths)
    ours = lag_similarity(support, query, *options)
    literal = torch.stack([torch.stack([reference.lag(q, s, *options) for s in support]) for q in query])
    torch.testing.assert_close(ours, literal, rtol=1e-10, atol=1e-12)
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    gradients = [torch.autograd.grad((x * weight).sum(), (support, query)) for x in (ours, literal)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_learned_temperature_and_decay_get_their_gradients() -> None:
    inputs = (clips(2, length=3), clips(2, length=3, seed=1))
    scalars = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (20.0, 0.35)]
    assert torch.autograd.gradcheck(lambda t, d: lag_similarity(*inputs, 2, t, d), scalars)
    assert all(g != 0 for g in torch.autograd.grad(lag_similarity(*inputs, 2, *scalars).sum(), scalars))
    same = lag_similarity(*inputs, 2, 20.0, 0.35)
    torch.testing.assert_close(lag_similarity(*inputs, 2, *scalars), same, rtol=1e-12, atol=1e-12)


def test_a_late_start_is_forgiven_and_a_reversed_clip_is_not() -> None:
    moving = torch.eye(8, dtype=torch.float64)[:, None, :]  # [8, 1, 8]: another channel at each time
    late = torch.cat([torch.zeros_like(moving[:2]), moving[:-2]])
    moving, late, back = (kernels.unit(x, 3)[None] for x in (moving, late, moving.flip(0)))
    support = torch.cat([late, back])
    without, forgiving = (lag_similarity(support, moving, max_lag)[0] for max_lag in (0, 2))
    assert without[0] < 1e-12
    assert forgiving[0] > 0.7
    assert forgiving[1] < 0.2


def test_swapped_sides_give_the_same() -> None:
    a, b = clips(3), clips(2, seed=1)
    torch.testing.assert_close(lag_similarity(a, b), lag_similarity(b, a).mT)


def test_leading_axes_and_half_precision() -> None:
    support, query = clips(2, 3, 4), clips(2, 3, 5, seed=1)
    together = lag_similarity(support, query)
    assert together.shape == (2, 3, 5, 4)
    torch.testing.assert_close(together[1, 2], lag_similarity(support[1, 2], query[1, 2]))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = lag_similarity(support.bfloat16(), query.bfloat16())
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), together, rtol=0, atol=0.02)


@pytest.mark.parametrize("temperature", [1.0, 30.0, 1e4])
def test_equal_and_zero_clips_are_finite(temperature: float) -> None:
    support = clips(1).expand(3, -1, -1, -1).clone()
    support[1] = 0
    support.requires_grad_()
    similarity = lag_similarity(support, support, 7, temperature)
    assert similarity.isfinite().all()
    assert torch.autograd.grad(similarity.sum(), support)[0].isfinite().all()
    torch.testing.assert_close(similarity[1], torch.zeros(3).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_lag": -1}, "max_lag is -1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"decay": -0.1}, "decay is -0.1"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        lag_similarity(clips(2), clips(2), **options)


def test_soft_normalize() -> None:
    y = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    ours = soft_normalize(y)
    for clip, found in zip(y, ours, strict=True):
        mean = sum((clip[t, p] ** 2).sum() for t in range(4) for p in range(3)) / 12
        for t in range(4):
            for p in range(3):
                literal = clip[t, p] / ((clip[t, p] ** 2).sum() + mean).sqrt()
                torch.testing.assert_close(found[t, p], literal)
    torch.testing.assert_close(soft_normalize(1000 * y), ours)
    zero = torch.zeros(4, 3, 5, requires_grad=True)
    normalized = soft_normalize(zero)
    assert not normalized.any()
    assert torch.autograd.grad(normalized.sum(), zero)[0].isfinite().all()
