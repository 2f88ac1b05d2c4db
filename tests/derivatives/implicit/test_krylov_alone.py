"""One system, eagerly in torch, goes its own way through the iterations: the solutions are those of a dense solve."""

import pytest
import torch

from layercompiler import arrays
from layercompiler.derivatives import krylov
from layercompiler.derivatives.factors import lu
from layercompiler.derivatives.operator import Operator
from layercompiler.derivatives.solves import LU, solve

XP = arrays.get("torch")


def system(n=24, seed=0, shape=None):
    g = torch.Generator().manual_seed(seed)
    A = torch.eye(n, dtype=torch.float64) * 3 + torch.randn(n, n, generator=g, dtype=torch.float64) / n**0.5
    b = torch.randn(n, generator=g, dtype=torch.float64)
    b = (b / b.norm()).reshape(shape or (n,))
    op = Operator(XP, b, 0, lambda v: (A @ v.reshape(-1)).reshape(b.shape), lambda v: (A.mT @ v.reshape(-1)).reshape(b.shape))
    return A, b, op


@pytest.mark.parametrize("restart", [3, 24, 100])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_gmres(restart, preconditioned):
    A, b, op = system(shape=(4, 6))
    given = b.clone()
    M = (lambda v: v / 3) if preconditioned else None
    x = krylov.gmres(op, b, 1e-12, 500, M, restart)
    torch.testing.assert_close(x.reshape(-1), torch.linalg.solve(A, b.reshape(-1)), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(b, given, rtol=0, atol=0)
    eigen = Operator(XP, b, 0, lambda v: 2 * v, lambda v: 2 * v)  # the space is invariant after one step
    torch.testing.assert_close(krylov.gmres(eigen, b, 1e-12, 50, None, restart), b / 2)


def test_cg_stops_at_the_error_that_is_wanted():
    A, _, _ = system()
    A = A @ A.mT
    b = torch.ones(24, dtype=torch.float64) / 24**0.5
    count = []

    def product(v):
        count.append(1)
        return v @ A

    op, counts = Operator(XP, b, 0, product, product, frozenset({"psd"})), []
    for near in (0.0, 1e-6):
        count.clear()
        x = krylov.cg(op, b, 1e-12, 500, None, near)
        want = torch.linalg.solve(A, b)
        assert float((x - want).norm() / want.norm()) < max(1e-11, 10 * near)
        counts.append(len(count))
    assert counts[1] < counts[0]


def test_directions_that_a_singular_matrix_does_not_see_are_no_nan():
    b = torch.ones(4, dtype=torch.float64) / 2
    zero = Operator(XP, b, 0, lambda v: 0 * v, lambda v: 0 * v)
    both = Operator(XP, torch.stack([b, b]), 1, lambda v: 0 * v, lambda v: 0 * v)
    for iteration in (krylov.cg, krylov.normal_cg):
        assert torch.isfinite(iteration(zero, b, 1e-12, 20)).all()
        assert torch.isfinite(iteration(both, torch.stack([b, b]), 1e-12, 20)).all()


@pytest.mark.parametrize("away", [0.0, 1e-8, 1e-3, 1e-1, 10.0])
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e30])
def test_factors_near_and_far(away, scale):
    A, b, op = system()
    factor = lu(XP, A + away * torch.randn(24, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    x = solve(LU(), op.T, scale * b, factor=factor, transposed=True)
    torch.testing.assert_close(x / scale, torch.linalg.solve(A.mT, b), rtol=1e-9, atol=1e-10)
