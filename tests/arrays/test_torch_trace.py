"""Recorded functions of torch: what they write to is nobody else's."""

import pytest
import torch

from layercompiler.arrays.torch_trace import Repeated, Traced


def _view_read_later(a, b):
    c = a + b
    top = c[:, :2]
    d = c * b
    return d, top + 1.0


def _product_with_itself(a, b):
    c = a - b
    return (c * c.mT).abs(), c


def _diagonal(a, b):
    c = a @ b
    low = torch.diagonal_scatter(c, c.diagonal() + 3.0)
    return torch.diagonal_scatter(a, b.diagonal()), torch.linalg.cholesky_ex(low @ low.mT)[0], low


def _chain(a, b):
    c = torch.addcmul(a, a, b)
    c = (c / 2.0).clamp(-1.0, 1.0).neg()
    index = torch.zeros((len(a), 1), dtype=torch.int64)
    return c.scatter(1, index, 5.0), a.scatter(1, index, b[:, :1]), torch.baddbmm(c[None], a[None], b[None])


def _reshaped(a, b):
    c = a + 1.0
    flat = c.reshape(-1)
    return c.mul(b), flat


@pytest.mark.parametrize("function", [_view_read_later, _product_with_itself, _diagonal, _chain, _reshaped])
def test_a_recorded_function_gives_what_the_function_gives_and_leaves_its_arguments_alone(function):
    recorded = Traced(function)
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        a, b = (torch.randn(4, 4, dtype=torch.float64, generator=g) for _ in range(2))
        kept = a.clone(), b.clone()
        expected, found = function(a, b), recorded(a, b)
        assert torch.equal(a, kept[0]) and torch.equal(b, kept[1])
        for x, y in zip(expected, found, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-15, atol=1e-15)


def _grows(fixed, x, going):
    return torch.addcmul(x, fixed, fixed), going


def _swaps(fixed, x, y, going):
    return y + fixed, x * 0.5, going


def _shares(fixed, x, y, going):
    new = torch.addcmul(x, y, fixed)
    return new, new, going


def _keeps(fixed, x, y, going):
    return x + fixed, x, going


def _starts_again(fixed, x, y, going):
    return x.mul(2.0), fixed, going


@pytest.mark.parametrize(("function", "count"), [(_grows, 1), (_swaps, 2), (_shares, 2), (_keeps, 2), (_starts_again, 2)])
def test_a_loop_gives_what_its_steps_give_and_leaves_its_arguments_alone(function, count):
    loop = Repeated(function, 1, 1 + count)
    g = torch.Generator().manual_seed(0)
    for turns in (0, 1, 4):
        fixed, *state = (torch.randn(3, 3, dtype=torch.float64, generator=g) for _ in range(1 + count))
        state.append(torch.ones(3, dtype=torch.bool))
        kept = [t.clone() for t in (fixed, *state)]
        expected = tuple(state)
        for _ in range(turns):
            expected = function(fixed, *expected)
        found, made = loop((fixed, *state), turns, 0, 1)
        assert made == turns and all(torch.equal(t, k) for t, k in zip((fixed, *state), kept, strict=True))
        for x, y in zip(expected, found, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-15, atol=1e-15)
