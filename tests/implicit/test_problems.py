"""Every problem and solver: solutions satisfy their optimality conditions, and both derivative modes equal differences and each other."""

import numpy as np
import pytest

import layercompiler as lc
from layercompiler import arrays
from layercompiler.implicit import LBFGS, Anderson, Bisection, BlockCoordinate, Broyden, Gradient, MirrorDescent, Newton, Picard
from tests.derivatives.implicit.maps import FRAMEWORKS, slopes

RNG = np.random.default_rng(0)
H = (lambda M: M @ M.T + np.eye(5))(RNG.standard_normal((5, 5)))
A, W, T0 = RNG.standard_normal((2, 5)), 0.3 * RNG.standard_normal((4, 4)), RNG.standard_normal(5)
B0 = RNG.standard_normal((3, 4))


def times(xp, M, y):
    return xp.sum(xp.new(M, y) * y[..., None, :], axis=-1)


def objective(xp, y, t):
    return 0.5 * xp.sum(y * times(xp, H, y), axis=-1) - xp.sum(y * t, axis=-1) + 0.1 * xp.sum(y**4, axis=-1)


def cubic(xp, y, t):
    return y**3 + t * y - 1 + 0.1 * xp.sum(y)


def separable(xp, y, t):
    return y**3 + t * y - 1


def cell(xp, y, t):
    return xp.tanh(xp.matmul(y, xp.new(W, y)) + t)


def soft(xp, v, t, *_):
    return xp.sign(v) * xp.maximum(xp.abs(v) - 0.3 * t, xp.zeros_like(v))


def equalities(xp, y, t):
    return times(xp, A, y) - 1


POSITIVE = np.abs(T0) + 0.5
SMALL = 0.5 / np.diag(H).max()
CASES = {
    "newton": (lc.Root(cubic, Newton(), init=0.5 * np.ones(5)), POSITIVE),
    "broyden": (lc.Root(cubic, Broyden(), init=0.5 * np.ones(5)), POSITIVE),
    "bisection": (lc.Root(separable, Bisection(0.0, 2.0), init=np.ones(5)), POSITIVE),
    "anderson": (lc.FixedPoint(cell, Anderson(), init=np.zeros((3, 4)), batch=1), B0),
    "picard": (lc.FixedPoint(cell, Picard(), init=np.zeros((3, 4)), batch=1), B0),
    "broyden, fixed point": (lc.FixedPoint(cell, Broyden(), init=np.zeros((3, 4)), batch=1), B0),
    "newton, fixed point": (lc.FixedPoint(cell, Newton(), init=np.zeros((3, 4)), batch=1), B0),
    "l-bfgs": (lc.Argmin(objective, solver=LBFGS(), init=np.zeros(5)), T0),
    "l-bfgs, batch": (lc.Argmin(objective, init=np.zeros((2, 5)), batch=1), RNG.standard_normal((2, 5))),
    "gradient": (lc.Argmin(objective, solver=Gradient(step=0.02), init=np.zeros(5)), T0),
    "newton, minimum": (lc.Argmin(objective, solver=Newton(), init=np.zeros(5)), T0),
    "proximal": (lc.Argmin(objective, prox=soft, init=np.zeros(5)), 3 * T0),
    "block coordinates": (lc.Argmin(objective, prox=soft, solver=BlockCoordinate(step=SMALL), init=np.zeros(5)), 3 * T0),
    "projected": (lc.Argmin(objective, projection=lambda xp, v, *_: xp.clip(v, -0.2, 0.2), init=np.zeros(5)), 3 * T0),
    "mirror": (lc.Argmin(objective, geometry="kl", solver=MirrorDescent(step=0.1), init=np.ones(5) / 5), 0.3 * T0),
    "constrained": (lc.Argmin(objective, eq=equalities, ineq=lambda xp, y, t: y, init=np.zeros(5)), 3 * T0),
    "unrolled": (lc.Unrolled(lambda xp, y, t: 0.5 * xp.tanh(y) + t, 20, init=np.zeros(5)), T0),
}
SLOW = ("mirror", "block coordinates")


@pytest.mark.parametrize(
    "framework, name",
    [
        pytest.param(f, n, marks=[] if (f == "torch" and n not in SLOW) or n == "newton" else pytest.mark.slow)
        for f in FRAMEWORKS
        for n in CASES
    ],
)
def test_derivatives_of_every_problem(framework, name):
    xp, (problem, at) = arrays.get(framework), CASES[name]
    rng = np.random.default_rng(5)
    layer, d = lc.export(problem, framework), rng.standard_normal(at.shape)

    def value(t):
        out = layer(t)
        return xp.concat(list(out), axis=-1) if isinstance(out, tuple) else out

    theta, along = xp.new(at), xp.new(d)
    c = rng.standard_normal(xp.numpy(value(theta)).shape)
    (want, error), _ = slopes(lambda h: np.sum(c * xp.numpy(value(xp.new(at + h * d)))), 1e-2)
    reverse = xp.numpy(xp.sum(xp.grad(lambda t: xp.sum(value(t) * xp.new(c)))(theta) * along))
    forward = np.sum(xp.numpy(xp.jvp(value, (theta,), (along,))[1]) * c)
    assert abs(reverse - want) <= 3 * error + 1e-7 * max(abs(want), 1.0)
    assert abs(forward - reverse) <= 1e-11 * max(abs(reverse), 1.0)


def test_constrained_minimisers_satisfy_the_conditions_and_return_their_multipliers():
    xp = arrays.get("torch")
    t = xp.new(3 * T0)
    y, nu, lam = lc.export(CASES["constrained"][0], "torch")(t)
    slope = xp.grad(lambda v: objective(xp, v, t))(y)
    np.testing.assert_allclose(xp.numpy(slope) + A.T @ xp.numpy(nu) + xp.numpy(lam), 0, atol=1e-8)
    assert xp.numpy(lam).min() > -1e-9 and xp.numpy(y).max() < 1e-9 and xp.numpy(lam).max() > 0.01


@pytest.mark.parametrize(
    "framework", ["torch", pytest.param("jax", marks=pytest.mark.slow), pytest.param("tensorflow", marks=pytest.mark.slow)]
)
def test_linear_equalities_enter_the_gradient(framework):
    """min |y - x|^2 / 2 with 1'y = 1: the VJP is v - mean(v); a peer returns v."""
    xp = arrays.get(framework)
    node = lc.Declarative(
        lambda xp, y, x: 0.5 * xp.sum((y - x) ** 2, axis=-1), linear=(np.ones((1, 4)), np.ones(1)), init=lambda xp, x: xp.zeros_like(x)
    )
    layer = lc.export(node, framework)
    x, v = np.random.default_rng(6).standard_normal((2, 2, 4))
    got = xp.numpy(xp.grad(lambda x: xp.sum(layer(x) * xp.new(v)))(xp.new(x)))
    np.testing.assert_allclose(got, v - v.mean(axis=1, keepdims=True), atol=1e-13)


def test_torch_vmap_runs_the_solver_instance_by_instance():
    import torch

    layer = lc.export(CASES["newton"][0], "torch")
    thetas = torch.tensor(POSITIVE + 0.1 * np.random.default_rng(7).random((3, 5)))
    rows = torch.func.vmap(torch.func.jacrev(layer))(thetas)
    hessians = torch.func.vmap(torch.func.hessian(lambda t: layer(t).sum()))(thetas)
    for i, t in enumerate(thetas):
        torch.testing.assert_close(rows[i], torch.func.jacrev(layer)(t), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(hessians[i], torch.func.hessian(lambda t: layer(t).sum())(t), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(hessians[i], hessians[i].T, rtol=1e-9, atol=1e-12)


def test_nests_named_arguments_and_auxiliary_outputs():
    import torch

    def F(y, theta, *, scale):
        a, b = y["a"], y["b"]
        residual = {"a": a**3 + theta[0] * a - scale, "b": b * theta[1] - a.sum()}
        return residual, (a * theta[0]).sum()

    layer = lc.export(lc.Root(F, init={"a": np.ones(2), "b": np.ones(())}, has_aux=True), "torch")
    theta = (torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64))

    def f(s, t0, t1):
        y, aux = layer((t0, t1), scale=s)
        return y["b"] ** 2 + aux + y["a"].sum()

    args = (torch.tensor(1.5, dtype=torch.float64), *theta)
    assert torch.autograd.gradcheck(f, tuple(a.clone().requires_grad_() for a in args), rtol=1e-6)
    assert torch.autograd.gradgradcheck(f, tuple(a.clone().requires_grad_() for a in args), rtol=1e-5)


def test_a_failed_instance_is_flagged_and_leaves_the_others_alone():
    import torch

    F = lambda y, t: y**2 - t  # noqa: E731 - no root for t < 0
    theta = torch.tensor([[4.0], [-1.0], [9.0]], dtype=torch.float64)
    with pytest.raises(lc.errors.SolveError) as caught:
        lc.export(lc.Root(F, Newton(maxiter=30), init=np.ones((3, 1)), batch=1), "torch")(theta)
    assert caught.value.indices == ((1,),)
    layer = lc.export(lc.Root(F, Newton(maxiter=30), init=np.ones((3, 1)), batch=1, on_error="flag"), "torch")
    t = theta.clone().requires_grad_()
    y = layer(t)
    assert torch.isnan(y[1]).all() and torch.allclose(y[[0, 2]], theta[[0, 2]].sqrt())
    y[[0, 2]].sum().backward()
    np.testing.assert_allclose(t.grad[:, 0].numpy(), [0.25, 0.0, 1 / 6], rtol=1e-10)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_objective_without_minimum_is_flagged_with_a_gradient_of_zero(framework):
    """Its Hessian is zero whatever it is multiplied with, so that a product does not show that nothing was solved."""
    xp = arrays.get(framework)
    layer = lc.export(lc.Argmin(lambda xp, y, t: xp.sum(t * y, axis=-1), init=np.zeros((2, 3)), batch=1, on_error="flag"), framework)
    theta = xp.new(np.ones((2, 3)))
    y, pull = xp.vjp(lambda t: layer(t), theta)
    assert np.isnan(xp.numpy(y)).all()
    np.testing.assert_array_equal(xp.numpy(pull(xp.new(np.ones((2, 3))))[0]), 0.0)


def test_the_certificate_bounds_the_jacobian_error_on_ridge_regression():
    """The bound of theorem 1 from the residual alone, within a small factor of the true error (diabetes data, gradient descent)."""
    import torch
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    X = data.data / data.data.std(axis=0)
    target = (data.target - data.target.mean()) / data.target.std()
    G, b, theta = X.T @ X / len(X), X.T @ target / len(X), np.full(10, 0.01)
    M = G + np.diag(theta)
    exact = np.linalg.solve(M, b)
    J = -np.linalg.inv(M) * exact
    Gt, bt = torch.tensor(G), torch.tensor(b)
    x, step = np.zeros(10), 1 / np.linalg.norm(M, 2)
    for k in range(1, 1001):
        x = x - step * (M @ x - b)
        if k in (100, 1000):
            point = x.copy()
            layer = lc.export(
                lc.Root(lambda v, t: Gt @ v - bt + t * v, lambda init, t, p=point: torch.tensor(p), init=np.zeros(10), tolerance=None),
                "torch",
            )
            found = layer.certificate(torch.tensor(theta), beta=1.0, gamma=0.0)
            error = np.linalg.norm(torch.func.jacrev(layer)(torch.tensor(theta)).numpy() - J, 2)
            assert error <= found.jacobian_bound <= 3 * error
            assert np.linalg.norm(x - exact) <= found.iterate_bound * (1 + 1e-9)
            estimated = layer.certificate(torch.tensor(theta))
            assert estimated.beta == pytest.approx(1.0, rel=0.5) and estimated.gamma == pytest.approx(0.0, abs=1e-6)
