"""Gradient modes of quadratic programs: barrier-smoothed derivatives, and the closest program of one that cannot be satisfied."""

import cvxpy as cp
import numpy as np
import pytest

import layercompiler as lc
from layercompiler import kernels
from tests import differences
from tests.qp import families

MODES = ("numpy", "torch", "jax", "tensorflow")
needs_kernels = pytest.mark.skipif(not kernels.available(), reason="the kernels are not built")


def gradients(compiled, framework, arrays, w):
    """Gradients of <w, outputs> by a framework, as numpy arrays."""
    if framework == "numpy":
        return compiled.evaluate(arrays).vjp(w)
    layer = compiled.to(framework)
    if framework == "torch":
        torch = pytest.importorskip("torch")
        given = [torch.tensor(a, requires_grad=True) for a in arrays]
        loss = sum((y * torch.tensor(k)).sum() for y, k in zip(layer(*given), w, strict=True))
        return [g.numpy() for g in torch.autograd.grad(loss, given)]
    if framework == "jax":
        jax = pytest.importorskip("jax")
        jax.config.update("jax_enable_x64", True)
        loss = jax.jit(lambda *a: sum((y * k).sum() for y, k in zip(layer(*a), w, strict=True)))
        return [np.asarray(g) for g in jax.grad(loss, argnums=tuple(range(len(arrays))))(*arrays)]
    tf = pytest.importorskip("tensorflow")
    variables = [tf.Variable(a) for a in arrays]
    with tf.GradientTape() as tape:
        loss = sum(tf.reduce_sum(y * k) for y, k in zip(layer(*variables), w, strict=True))
    return [g.numpy() for g in tape.gradient(loss, variables)]


def center(Q, p, G, h, A, b, mu, x):
    """The solution of the barrier problem by a primal-dual method on its four conditions, each with its own unknown."""
    Q, n, m, k = (Q + Q.T) / 2, len(p), len(h), len(b)
    y, z, s = np.zeros(k), np.ones(m), np.maximum(h - G @ x, 1.0)
    for _ in range(300):
        F = np.r_[Q @ x + p + G.T @ z + A.T @ y, A @ x - b, G @ x + s - h, s * z - mu]
        none = np.zeros
        K = np.block(
            [
                [Q, A.T, G.T, none((n, m))],
                [A, none((k, k + 2 * m))],
                [G, none((m, k + m)), np.eye(m)],
                [none((m, n + k)), np.diag(s), np.diag(z)],
            ]
        )
        d = np.linalg.solve(K, -F)
        dz, ds = d[n + k : n + k + m], d[n + k + m :]
        a = min([1.0, *(0.9 * np.min(-v[dv < 0] / dv[dv < 0]) for v, dv in ((z, dz), (s, ds)) if (dv < 0).any())])
        x, y, z, s = x + a * d[:n], y + a * d[n : n + k], z + a * dz, s + a * ds
        if np.abs(F).max() < 1e-13:
            return x, y, z
    raise AssertionError("the reference did not converge")


def each(function):
    """A function of arrays as one of batches of them."""
    return lambda stacked: np.stack([function([a[i] for a in stacked]) for i in range(len(stacked[0]))])


def check(function, arrays, gradient, rng, turn=lambda i, d: d):
    """Gradients against Richardson differences of `function`, one random direction for each array."""
    for i in range(len(arrays)):
        directions = [np.zeros_like(a) for a in arrays]
        directions[i] = turn(i, rng.standard_normal(arrays[i].shape))
        slope, error = differences.directional(each(function), arrays, directions)
        expected, got = float(slope[0]), float(np.sum(gradient[i] * directions[i]))
        assert abs(expected - got) <= 10 * float(error[0]) + 1e-8 * (1 + abs(expected)), i


@pytest.mark.parametrize("solver", ["dense_qp", "lanes", "clarabel"])
@pytest.mark.parametrize("mu", [1e-3, 1e-1, 10.0])
def test_smoothed_derivatives_are_those_of_the_barrier_problem(mu, solver):
    if solver != "clarabel" and not kernels.available():
        pytest.skip("the kernels are not built")
    one = [a[0] for a in families.batch("std", 7, 8, 2, 1)]
    rng = np.random.default_rng(0)
    names = ["x", "y", "z", "value"]
    compiled = lc.compile(lc.QP(7, 8, 2), variables=names, solver=solver, options={"smoothing": mu})
    exact = lc.compile(lc.QP(7, 8, 2), variables=names, solver=solver)
    w = [rng.standard_normal(s) for s in (7, 2, 8, ())]
    found = compiled.evaluate(one)
    for got, expected in zip(found.outputs, exact.evaluate(one).outputs, strict=True):
        np.testing.assert_array_equal(got, expected)

    def outputs(Q, p, G, h, A, b):
        x, y, z = center(Q, p, G, h, A, b, mu, found.outputs[0])
        return x, y, z, x @ Q @ x / 2 + p @ x

    check(lambda a: np.array([sum(np.sum(k * o) for k, o in zip(w, outputs(*a), strict=True))]), one, found.vjp(w), rng)
    tangents = [rng.standard_normal(a.shape) for a in one]
    pushed = found.jvp(tangents)
    left = sum(np.sum(a * b) for a, b in zip(pushed, w, strict=True))
    right = sum(np.sum(a * b) for a, b in zip(found.vjp(w), tangents, strict=True))
    np.testing.assert_allclose(left, right, rtol=1e-8)
    pull = each(lambda a: np.concatenate([g.ravel() for g in compiled.evaluate(a).vjp(w)]))
    slopes, errors = differences.directional(pull, one, tangents)
    second = np.concatenate([g.ravel() for g in found.hvp(w, tangents)])
    np.testing.assert_allclose(second, slopes, rtol=0, atol=float(10 * errors.max() + 1e-7 * np.abs(slopes).max()))
    restored = compiled.restore(one, found.z).vjp(w)
    for a, c in zip(restored, found.vjp(w), strict=True):
        np.testing.assert_allclose(a, c, rtol=0, atol=1e-8 * (1 + np.abs(c).max()))


def test_smoothed_derivatives_see_a_row_before_it_is_active():
    """min (x - t)^2 / 2, x <= 1: dx/dt is 1 at t = 0.9 and 0 at t = 1.1; smoothed, z / (z + s) at s z = mu, s - z = 1 - t."""
    mu, t = 0.01, np.array([[0.9], [1.1]])
    x, c = cp.Variable(1), cp.Parameter(1)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - c)), [x <= 1])
    compiled = lc.compile(problem, options={"smoothing": mu})
    z = (t - 1 + np.hypot(t - 1, 2 * np.sqrt(mu))) / 2
    np.testing.assert_allclose(compiled.evaluate([t]).outputs[0], np.minimum(t, 1), atol=1e-9)
    np.testing.assert_allclose(compiled.evaluate([t]).vjp([np.ones((2, 1))])[0], 1 - z / (z + mu / z), rtol=1e-8)


@pytest.mark.parametrize("framework", MODES)
def test_every_framework_takes_smoothed_derivatives(framework):
    arrays = families.batch("std", 6, 5, 1, 3)
    compiled = lc.compile(lc.QP(6, 5, 1), options={"smoothing": 0.05})
    w = [np.random.default_rng(0).standard_normal((3, 6))]
    expected, exact = compiled.evaluate(arrays).vjp(w), lc.compile(lc.QP(6, 5, 1)).evaluate(arrays).vjp(w)
    for got, reference, plain in zip(gradients(compiled, framework, arrays, w), expected, exact, strict=True):
        np.testing.assert_allclose(got, reference, rtol=0, atol=1e-8)
        assert np.abs(reference - plain).max() > 1e-3


def test_what_cannot_be_smoothed_is_refused():
    x = cp.Variable(2)
    problem = cp.Problem(cp.Minimize(x[0]), [cp.norm(x) <= 1])
    with pytest.raises(lc.errors.OptionError):
        lc.compile(problem, options={"smoothing": 0.1})
    with pytest.raises(lc.errors.OptionError):
        lc.compile(lc.QP(2, 2), options={"smoothing": -1.0})
    flat = lc.compile(lc.QP(1, 2), options={"smoothing": 0.1}).evaluate(
        [np.eye(1), np.zeros(1), np.array([[1.0], [-1.0]]), np.array([1.0, -1.0])]
    )
    with pytest.raises(lc.errors.DerivativeError):  # x <= 1 and x >= 1 leave no interior
        flat.vjp([np.ones(1)])


# ------------------------------------------------------------------------------------------------------------------- closest


def infeasible(kind, rng, n=5, m=6):
    """Instances that cannot be satisfied: more equalities than unknowns, or rows that contradict each other."""
    p = n + 3 if kind == "many" else 2
    L = rng.standard_normal((n, n)) / np.sqrt(n)
    Q, q, G, A = L @ L.T + 0.1 * np.eye(n), rng.standard_normal(n), rng.standard_normal((m, n)), rng.standard_normal((p, n))
    z = rng.standard_normal(n)
    h, b = G @ z + rng.random(m), A @ z
    if kind == "many":
        b = rng.standard_normal(p)
    else:
        G[1], h[0], h[1] = -G[0], -1.0, 0.3
    return Q, q, G, h, A, b


def closest(Q, q, G, h, A, b):
    """The closest program's solution in two steps, each by Clarabel: the least violation, then the objective."""
    tight = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}
    x, s = cp.Variable(len(q)), cp.Variable(len(h))
    cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + cp.sum_squares(s)), [G @ x - s <= h]).solve(solver="CLARABEL", **tight)
    left, violated = A @ x.value - b, np.where(s.value > 1e-5, s.value, 0.0)
    on = violated > 0
    rows, sides = np.vstack([A, G[on]]), np.concatenate([b + left, (h + violated)[on]])
    basis = np.linalg.svd(rows)[2][: np.linalg.matrix_rank(rows, 1e-8)]
    other = [G[~on] @ x <= h[~on]] if (~on).any() else []
    rest = [basis @ x == basis @ np.linalg.lstsq(rows, sides, rcond=None)[0]]
    cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, cp.psd_wrap(Q)) + q @ x), [*other, *rest]).solve(solver="CLARABEL", **tight)
    return x.value, np.concatenate([left, violated])


def keep(kind):
    """Directions along which contradicting rows go on contradicting each other, elsewhere the solution jumps."""

    def turn(i, d):
        if kind == "rows" and i == 2:
            d[..., 1, :] = -d[..., 0, :]
        return d

    return turn


@needs_kernels
@pytest.mark.parametrize("kind", ["many", "rows"])
def test_closest_programs(kind):
    rng = np.random.default_rng(3)
    several = [infeasible(kind, rng) for _ in range(4)]
    good = [a[0] for a in families.batch("std", 5, 6, len(several[0][5]), 1)]
    if kind == "many":
        good[4], good[5] = np.zeros_like(good[4]), np.zeros_like(good[5])
    arrays = [np.stack(a) for a in zip(*several, good, strict=True)]
    n, m, p = 5, 6, len(several[0][5])
    compiled = lc.compile(lc.QP(n, m, p), variables=["x", "y", "z", "value"], on_error="closest")
    found = compiled.evaluate(arrays)
    assert found.info.ok.all() and (found.info.engine == "closest").tolist() == [True] * 4 + [False]
    assert found.info.residual.max() <= 1e-11
    for i, one in enumerate(several):
        x, s = closest(*one)
        Q, q, G, h, A, b = one
        np.testing.assert_allclose(found.outputs[0][i], x, rtol=0, atol=1e-6 * (1 + np.abs(x).max()))
        ours = np.concatenate([A @ found.outputs[0][i] - b, np.maximum(G @ found.outputs[0][i] - h, 0)])
        np.testing.assert_allclose(ours, s, rtol=0, atol=1e-6)
        y, z = found.outputs[1][i], found.outputs[2][i]
        np.testing.assert_allclose(Q @ found.outputs[0][i] + q + A.T @ y + G.T @ z, 0, atol=1e-10 * (1 + np.abs(y).max() + np.abs(z).max()))
    plain = lc.compile(lc.QP(n, m, p), variables=["x", "y", "z", "value"]).evaluate(good)
    for got, expected in zip(found.outputs, plain.outputs, strict=True):
        np.testing.assert_allclose(got[4], expected, rtol=0, atol=1e-10 * (1 + np.abs(expected).max()))

    w = [rng.standard_normal(o.shape) for o in found.outputs]
    if kind == "many":
        w[1][4] = 0.0  # multipliers of rows that are zero
    gradient = found.vjp(w)
    function = lambda a: np.array([sum(np.sum(k[:4] * o[:4]) for k, o in zip(w, compiled.evaluate(a).outputs, strict=True))])  # noqa: E731
    check(function, [a[:4] for a in arrays], [g[:4] for g in gradient], rng, keep(kind))
    tangents = [keep(kind)(i, rng.standard_normal(a.shape)) for i, a in enumerate(arrays)]
    for t in tangents:
        t[4] = 0.0
    left = sum(np.sum(a * b) for a, b in zip(found.jvp(tangents), w, strict=True))
    right = sum(np.sum(a * b) for a, b in zip(gradient, tangents, strict=True))
    np.testing.assert_allclose(left, right, rtol=1e-7)
    restored = compiled.restore(arrays, found.z)
    for a, c in zip(restored.vjp(w), gradient, strict=True):
        np.testing.assert_allclose(a, c, rtol=0, atol=1e-8 * (1 + np.abs(c).max()))
    with pytest.raises(lc.errors.UnsupportedTransformError):
        found.hvp(w, tangents)


@needs_kernels
@pytest.mark.parametrize("framework", MODES)
def test_every_framework_takes_closest_programs(framework):
    """A matrix that the batch shares, as one that is learned: its gradient is the sum."""
    rng = np.random.default_rng(0)
    several = [infeasible("many", rng) for _ in range(3)]
    Q, q, G, h, A, b = (np.stack(a) for a in zip(*several, strict=True))
    arrays = [Q[0], q, G[0], h[0], A[0], b[0]]
    compiled = lc.compile(lc.QP(5, 6, 8), on_error="closest")
    w = [rng.standard_normal((3, 5))]
    expected = lc.compile(lc.QP(5, 6, 8), on_error="closest").evaluate([np.stack([a] * 3) if a is not q else q for a in arrays]).vjp(w)
    for got, wide, given in zip(gradients(compiled, framework, arrays, w), expected, arrays, strict=True):
        reference = wide if given is q else wide.sum(0)
        np.testing.assert_allclose(got, reference, rtol=0, atol=1e-8 * (1 + np.abs(reference).max()))


@needs_kernels
def test_closest_programs_of_the_modelling_language():
    """x >= 1 and x <= -1 + t: the least squares between them is t / 2."""
    x, t = cp.Variable(2, name="x"), cp.Parameter(name="t")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 3)), [x[0] >= 1, x[0] <= t - 1, x[1] <= t])
    compiled = lc.compile(problem, on_error="closest")
    found = compiled.evaluate([np.array([0.0, 0.5, 4.0])])
    np.testing.assert_allclose(found.outputs[0], [[0, 0], [0.25, 0.5], [3, 3]], atol=1e-8)
    np.testing.assert_allclose(found.vjp([np.ones((3, 2))])[0], [1.5, 1.5, 0], atol=1e-8)


@needs_kernels
def test_closest_is_for_what_cannot_be_satisfied():
    """An unbounded instance still raises, and other problems are refused."""
    with pytest.raises(lc.errors.SolveError):
        lc.compile(lc.QP(1, 1), on_error="closest").evaluate([np.zeros((1, 1)), np.ones(1), np.ones((1, 1)), np.ones(1)])
    x = cp.Variable(2)
    with pytest.raises(lc.errors.LayerCompilerError):
        lc.compile(cp.Problem(cp.Minimize(x[0]), [cp.norm(x) <= 1]), on_error="closest")
    with pytest.raises(lc.errors.OptionError):
        lc.compile(lc.QP(1, 1), on_error="closest", options={"smoothing": 0.1})
