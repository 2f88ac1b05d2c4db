"""Behaviours that JAXopt's tests ask of these names, in the three frameworks."""

import numpy as np
import pytest

from layercompiler import arrays
from layercompiler.compat import jaxopt
from tests.derivatives.implicit.maps import FRAMEWORKS

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((20, 4)), RNG.standard_normal(20)
A = RNG.standard_normal((5, 5))
SPD, B = A @ A.T + np.eye(5), RNG.standard_normal(5)
EXACT = -np.linalg.solve(X.T @ X + 3.0 * np.eye(4), np.linalg.solve(X.T @ X + 3.0 * np.eye(4), X.T @ Y))


def times(xp, M):
    return lambda v: xp.sum(xp.new(M, v) * v, axis=-1)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", ["lu", "cholesky", "inv", "cg", "gmres", "bicgstab", "normal_cg"])
def test_linear_solves(framework, name):
    if framework == "jax" and name in ("gmres", "bicgstab"):
        pytest.skip("the same loops, which jax compiles for seconds, run in the tests of the rule")
    xp = arrays.get(framework)
    solve = getattr(jaxopt, f"solve_{name}")
    M = SPD if name in ("cholesky", "cg") else A
    np.testing.assert_allclose(xp.numpy(solve(times(xp, M), xp.new(B))), np.linalg.solve(M, B), rtol=1e-8, atol=1e-9)
    if name == "normal_cg":
        got = solve(times(xp, M), xp.new(B), ridge=0.7)
        np.testing.assert_allclose(xp.numpy(got), np.linalg.solve(M.T @ M + 0.7 * np.eye(5), M.T @ B), rtol=1e-9)
    else:
        np.testing.assert_allclose(xp.numpy(solve(times(xp, M), xp.new(B), ridge=0.7)), np.linalg.solve(M + 0.7 * np.eye(5), B), rtol=1e-8)


def test_rectangular_normal_equations_and_warm_starts():
    xp = arrays.get("torch")
    got = jaxopt.solve_normal_cg(times(xp, X), xp.new(Y), init=xp.new(np.zeros(4)))
    np.testing.assert_allclose(xp.numpy(got), np.linalg.lstsq(X, Y, rcond=None)[0], rtol=1e-9)
    exact = xp.new(np.linalg.solve(SPD, B))
    np.testing.assert_allclose(xp.numpy(jaxopt.solve_cg(times(xp, SPD), xp.new(B), init=exact, maxiter=1)), xp.numpy(exact), rtol=1e-10)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_named_and_unordered_arguments(framework):
    xp = arrays.get(framework)

    def optimality(params, l2reg, X, y):
        return xp.matmul(xp.matrix_transpose(X), xp.matmul(X, params[:, None]) - y[:, None])[:, 0] + l2reg * params

    @jaxopt.custom_root(optimality)
    def solver(init_params, **kwargs):
        G = xp.matmul(xp.matrix_transpose(kwargs["X"]), kwargs["X"]) + kwargs["l2reg"] * xp.eye_like(kwargs["X"], 4)
        return xp.linalg.solve(G, xp.matmul(xp.matrix_transpose(kwargs["X"]), kwargs["y"][:, None])[:, 0])

    data, target = xp.new(X), xp.new(Y)
    for call in (lambda v: solver(None, l2reg=v, X=data, y=target), lambda v: solver(None, y=target, X=data, l2reg=v)):
        assert xp.numpy(xp.grad(lambda v: xp.sum(call(v)))(xp.new(3.0))) == pytest.approx(EXACT.sum(), rel=1e-10)  # noqa: B023


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_fixed_points(framework):
    xp = arrays.get(framework)
    run = jaxopt.FixedPointIteration(lambda x, t: 0.5 * (x + t / x), maxiter=50, tol=1e-12).run
    found = run(xp.new(1.0), xp.new(3.0))
    assert xp.numpy(found.params) == pytest.approx(np.sqrt(3), rel=1e-12) and xp.numpy(found.state.iter_num) < 10
    assert xp.numpy(xp.grad(lambda t: run(xp.new(1.0), t).params)(xp.new(3.0))) == pytest.approx(0.5 / np.sqrt(3), rel=1e-9)
    aux = jaxopt.FixedPointIteration(lambda x, t: (xp.cos(x) * t, x * t), maxiter=200, tol=1e-13, has_aux=True).run
    y = xp.numpy(aux(xp.new(0.5), xp.new(1.0)).params)
    slope = np.cos(y) / (1 + np.sin(y))
    assert xp.numpy(xp.grad(lambda t: aux(xp.new(0.5), t).state.aux)(xp.new(1.0))) == pytest.approx(y + slope, rel=1e-9)


def test_flat_landscapes_affine_maps_and_custom_fixed_points():
    xp = arrays.get("torch")
    flat = jaxopt.FixedPointIteration(lambda x, t: x * 0 + 1.0, tol=1e-12).run
    assert float(xp.grad(lambda t: flat(xp.new(0.0), t).params)(xp.new(2.0))) == 0.0
    M = 0.4 * A / np.linalg.norm(A, 2)
    run = jaxopt.FixedPointIteration(lambda x, b: times(xp, M)(x) + b, maxiter=500, tol=1e-14).run
    J = xp.numpy(xp.jacobian(lambda b: run(xp.new(np.zeros(5)), b).params, xp.new(B)))
    np.testing.assert_allclose(J, np.linalg.inv(np.eye(5) - M), rtol=1e-9, atol=1e-11)
    solver = jaxopt.custom_fixed_point(lambda x, b: times(xp, M)(x) + b)(lambda init, b: xp.linalg.solve(xp.eye_like(b, 5) - xp.new(M), b))
    np.testing.assert_allclose(xp.numpy(xp.jacobian(lambda b: solver(None, b), xp.new(B))), J, rtol=1e-9, atol=1e-11)
    unrolled = jaxopt.FixedPointIteration(lambda x, b: times(xp, M)(x) + b, maxiter=200, tol=1e-14, implicit_diff=False).run
    slopes = xp.numpy(xp.grad(lambda b: xp.sum(unrolled(xp.new(np.zeros(5)), b).params))(xp.new(B)))
    np.testing.assert_allclose(slopes, J.sum(axis=0), rtol=1e-9)
