"""In torch the residual is evaluated once, on tape: the derivatives by it are those that torch.func finds without one."""

import numpy as np
import pytest
import torch

from layercompiler import arrays
from layercompiler.derivatives.factors import lu
from layercompiler.derivatives.rule import attach
from layercompiler.derivatives.solves import CG, LU, BiCGSTAB, Neumann
from tests.derivatives.implicit.maps import DIRECTION, OTHER, THETA, WEIGHTS, root, solve

XP = arrays.get("torch")
W = torch.tensor(WEIGHTS)


@pytest.mark.parametrize("symmetric, linear", [(True, CG()), (False, LU()), (False, BiCGSTAB())], ids=["CG", "LU", "BiCGSTAB"])
def test_derivatives_by_the_tape_are_those_without_it(symmetric, linear):
    point = torch.tensor(solve(THETA, symmetric=symmetric))

    def y(theta):
        return attach(XP, lambda v, t: root(XP, v, t, symmetric=symmetric), point, (theta,), linear_solve=linear)

    theta, u, v = torch.tensor(THETA, requires_grad=True), torch.tensor(DIRECTION), torch.tensor(OTHER)
    (first,) = torch.autograd.grad(y(theta) @ W, theta)
    (graph,) = torch.autograd.grad(y(theta) @ W, theta, create_graph=True)
    (second,) = torch.autograd.grad(graph @ u, theta)
    value = y(theta)
    rows = torch.func.vmap(lambda c: torch.autograd.grad(value, theta, c, retain_graph=True)[0])(torch.eye(4, dtype=torch.float64))
    found = theta.detach()
    np.testing.assert_allclose(first, torch.func.grad(lambda t: y(t) @ W)(found), rtol=1e-10)
    np.testing.assert_allclose(graph.detach(), first, rtol=1e-10)
    np.testing.assert_allclose(rows, torch.func.jacrev(y)(found), rtol=1e-9, atol=1e-12)
    want = torch.func.grad(lambda t: torch.func.grad(lambda s: y(s) @ W)(t) @ u)(found)
    np.testing.assert_allclose(second @ v, want @ v, rtol=1e-9)


def test_the_residual_is_evaluated_once():
    calls = []

    def F(y, theta):
        calls.append(1)
        return root(XP, y, theta)

    theta = torch.tensor(THETA, requires_grad=True)
    y = attach(XP, F, torch.tensor(solve(THETA)), (theta,), linear_solve=CG())
    y.backward(W)
    assert len(calls) == 1
    with torch.no_grad():
        assert not attach(XP, F, torch.tensor(solve(THETA)), (theta,)).requires_grad


def test_an_argument_changed_in_place_is_an_error():
    theta = torch.tensor(THETA, requires_grad=True)
    moved = theta * 1.0
    y = attach(XP, lambda y, t: root(XP, y, t), torch.tensor(solve(THETA)), (moved,))
    with torch.no_grad():
        moved += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("inside", [False, True], ids=["plain", "torch.func inside"])
def test_captured_tensors_and_their_ancestors_count_once(inside):
    """F = y - a (b + theta), with b = 2 a captured beside a: y = 2 a^2 + a theta."""
    a = torch.tensor([0.5, -1.5], dtype=torch.float64, requires_grad=True)
    b = 2 * a
    theta = torch.tensor([0.3, 0.4], dtype=torch.float64, requires_grad=True)

    def F(y, t):
        if inside:  # the gradient of |y|^2 / 2 - y'a (b + t)
            return torch.func.grad(lambda v: 0.5 * (v * v).sum() - (v * a * (b + t)).sum())(y)
        return y - a * (b + t)

    y = attach(XP, F, (a * (b + theta)).detach(), (theta,))
    by_a, by_theta = torch.autograd.grad(y.sum(), (a, theta))
    torch.testing.assert_close(by_a, 4 * a.detach() + theta.detach())
    torch.testing.assert_close(by_theta, a.detach())


@pytest.mark.parametrize("away, products", [(1e-9, 1), (1e-3, 5)])
def test_a_factor_costs_one_product_if_it_is_near_and_refinement_if_not(away, products):
    rng = np.random.default_rng(0)
    J = torch.tensor(np.eye(6) * 3 + rng.standard_normal((6, 6)))
    theta = torch.tensor(rng.standard_normal(6), requires_grad=True)
    count = []

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return J @ y

        @staticmethod
        def backward(ctx, c):
            count.append(1)
            return J.mT @ c

    factor = lu(XP, J * (1 + away * torch.tensor(rng.standard_normal((6, 6)))))
    y = attach(XP, lambda y, t: Product.apply(y) - t, torch.linalg.solve(J, theta.detach()), (theta,), factor=factor)
    c = torch.tensor(rng.standard_normal(6))
    y.backward(c)
    torch.testing.assert_close(theta.grad, torch.linalg.solve(J.mT, c), rtol=1e-12, atol=1e-14)
    assert len(count) <= products


@pytest.mark.parametrize("scale", [0.3, 0.97, 3.0], ids=["contracts", "hardly contracts", "does not contract"])
def test_the_series_is_summed_or_left_to_an_iteration(scale):
    rng = np.random.default_rng(1)
    T = rng.standard_normal((5, 8, 8))
    T = torch.tensor(scale * T / np.abs(np.linalg.eigvals(T)).max(-1)[:, None, None])
    theta = torch.tensor(rng.standard_normal((5, 8)), requires_grad=True)
    point = torch.linalg.solve(torch.eye(8, dtype=torch.float64) - T, theta.detach())
    y = attach(XP, lambda y, t: y - (T @ y[..., None])[..., 0] - t, point, (theta,), batch=1, linear_solve=Neumann(None))
    c = torch.tensor(rng.standard_normal((5, 8)))
    y.backward(c)
    torch.testing.assert_close(theta.grad, torch.linalg.solve(torch.eye(8, dtype=torch.float64) - T.mT, c), rtol=1e-8, atol=1e-10)
