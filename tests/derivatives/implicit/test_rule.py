"""One residual map, three frameworks: every derivative equals finite differences of the solver, and every route the others."""

import jax
import numpy as np
import pytest

from layercompiler import arrays
from layercompiler.derivatives import factors
from layercompiler.derivatives.rule import attach
from layercompiler.derivatives.solves import CG, GMRES, LSMR, LU, Auto, BiCGSTAB, Cholesky, NormalCG
from tests.derivatives.implicit.maps import DIRECTION, FRAMEWORKS, OTHER, THETA, WEIGHTS, root, slopes, solve

SYMMETRIC = (Auto(), LU(), Cholesky(), CG(), GMRES())
GENERAL = (Auto(), LU(), BiCGSTAB(), GMRES(), NormalCG(), LSMR())
FAST = [(True, CG()), (False, LU()), (False, BiCGSTAB())]  # the rest differ in the linear solve only, and are marked slow
CASES = [
    pytest.param(b, s, marks=[] if (b, s) in FAST else pytest.mark.slow) for b, ss in ((True, SYMMETRIC), (False, GENERAL)) for s in ss
]


def attached(xp, symmetric, linear, **options):
    def F(y, theta):
        return root(xp, y, theta, symmetric=symmetric)

    def y(theta, point):
        return attach(xp, F, xp.new(point), (theta,), linear_solve=linear, **options)

    return y


def derivatives(xp, y, point):
    """Every first and second derivative of w'y along two directions, one route each."""
    theta, u, v, w = (xp.new(a) for a in (THETA, DIRECTION, OTHER, WEIGHTS))

    def f(t):
        return xp.sum(y(t, point) * w)

    along = lambda g, d: lambda t: xp.jvp(g, (t,), (d,))[1]  # noqa: E731
    slope = lambda g, d: lambda t: xp.sum(xp.grad(g)(t) * d)  # noqa: E731
    routes = {
        "vjp": slope(f, u),
        "jvp": along(f, u),
        "reverse over reverse": slope(slope(f, u), v),
        "forward over reverse": along(slope(f, u), v),
        "reverse over forward": slope(along(f, u), v),
        "forward over forward": along(along(f, u), v),
    }
    if xp.name == "jax":
        return {name: xp.numpy(value) for name, value in jax.jit(lambda t: {n: g(t) for n, g in routes.items()})(theta).items()}
    return {name: xp.numpy(route(theta)) for name, route in routes.items()}


@pytest.mark.parametrize("symmetric, linear", CASES, ids=lambda v: type(v).__name__ if v not in (True, False) else str(v))
def test_one_map_three_frameworks(symmetric, linear):
    point = solve(THETA, symmetric=symmetric)
    (first, error1), _ = slopes(lambda h: WEIGHTS @ solve(THETA + h * DIRECTION, symmetric=symmetric))
    plus = slopes(lambda h: WEIGHTS @ solve(THETA + h * (DIRECTION + OTHER), symmetric=symmetric))[1]
    minus = slopes(lambda h: WEIGHTS @ solve(THETA + h * (DIRECTION - OTHER), symmetric=symmetric))[1]
    second, error2 = (plus[0] - minus[0]) / 4, plus[1] + minus[1]
    assert error1 < 1e-6 * abs(first) and error2 < 1e-4 * abs(second)
    found = {f: derivatives(arrays.get(f), attached(arrays.get(f), symmetric, linear), point) for f in FRAMEWORKS}
    for framework, values in found.items():
        for route, value in values.items():
            one = route in ("vjp", "jvp")
            want, error = (first, error1) if one else (second, error2)
            assert abs(value - want) <= 3 * error + 1e-10 * abs(want), (framework, route)
            reference = found["jax"]["vjp" if one else "reverse over reverse"]
            assert abs(value - reference) <= 1e-10 * abs(reference), (framework, route)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("linear", [LU(), pytest.param(GMRES(), marks=pytest.mark.slow), BiCGSTAB()], ids=lambda v: type(v).__name__)
def test_mapped_derivatives_are_those_of_singles(framework, symmetric, linear):
    xp = arrays.get(framework)
    thetas = THETA + 0.3 * np.random.default_rng(3).standard_normal((3, 3))
    points = np.stack([solve(t, symmetric=symmetric) for t in thetas])
    w = xp.new(WEIGHTS)

    def gradient(t, p):
        return xp.grad(lambda s: xp.sum(attach(xp, lambda z, s: root(xp, z, s, symmetric=symmetric), p, (s,), linear_solve=linear) * w))(t)

    rows = xp.numpy(xp.vmap(gradient)(xp.new(thetas), xp.new(points)))
    gradient = jax.jit(gradient) if framework == "jax" else gradient
    for row, t, p in zip(rows, thetas, points, strict=True):
        np.testing.assert_allclose(row, xp.numpy(gradient(xp.new(t), xp.new(p))), rtol=1e-10)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("linear", [LU(), BiCGSTAB(), pytest.param(GMRES(), marks=pytest.mark.slow)], ids=lambda v: type(v).__name__)
def test_a_batch_is_its_instances(framework, linear):
    """The whole batch as one system, as a batch of systems, and its instances one by one."""
    xp = arrays.get(framework)
    rng = np.random.default_rng(4)
    W, x = 0.3 * rng.standard_normal((5, 5)), rng.standard_normal((4, 5))
    z = np.zeros((4, 5))
    for _ in range(200):
        z = np.tanh(z @ W.T + x)

    def F(z, W, x):
        return z - xp.tanh(xp.matmul(z, xp.matrix_transpose(W)) + x)

    def gradient(batch):
        def g(W, x, z):
            f = lambda p: xp.sum(attach(xp, F, z, (p[:5], p[5:]), linear_solve=linear, batch=batch) ** 2)  # noqa: E731
            return xp.grad(f)(xp.concat([W, x], axis=0))

        g = jax.jit(g) if framework == "jax" else g
        return lambda W, x, z: xp.numpy(g(xp.new(W), xp.new(x), xp.new(z)))

    whole, one, single = gradient(1)(W, x, z), gradient(0)(W, x, z), gradient(1)
    singles = [single(W, x[i : i + 1], z[i : i + 1]) for i in range(len(x))]
    np.testing.assert_allclose(whole, one, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(whole[:5], sum(s[:5] for s in singles), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(whole[5:], [s[5] for s in singles], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", ["lu", "cholesky"])
def test_a_factor_of_a_point_nearby_gives_the_exact_derivative(framework, kind):
    xp = arrays.get(framework)
    point = xp.new(solve(THETA))
    J = xp.jacobian(lambda v: root(xp, v, xp.new(THETA)), point + 1e-3)
    factor = getattr(factors, kind)(xp, J)
    f = lambda t, **o: xp.sum(attached(xp, True, LU(), **o)(t, solve(THETA)) * xp.new(WEIGHTS))  # noqa: E731
    want = xp.numpy(xp.grad(f)(xp.new(THETA)))
    got = xp.numpy(xp.grad(lambda t: f(t, factor=factor))(xp.new(THETA)))
    np.testing.assert_allclose(got, want, rtol=1e-11)
