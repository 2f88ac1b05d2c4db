"""The array interior point as a pure jax function: values and derivatives against the compiled lanes. Slow: XLA compiles it for long."""

import cvxpy as cp
import numpy as np
import pytest

import layercompiler as lc

jax = pytest.importorskip("jax")

N, M, K = 5, 6, 2


def pair(on_error="raise"):
    q, A, b, G, h = (cp.Parameter(s, name=n) for n, s in (("q", N), ("A", (K, N)), ("b", K), ("G", (M, N)), ("h", M)))
    x = cp.Variable(N)
    less = G @ x <= h
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + q @ x), [A @ x == b, less])
    arguments = {"parameters": [q, A, b, G, h], "variables": [x, less.dual_variables[0]], "on_error": on_error}
    return tuple(lc.export(problem, "jax", solver=solver, **arguments) for solver in ("interior_point", "lanes"))


def values(batch):
    r = np.random.default_rng(0)
    q, A, G, x = (r.standard_normal((batch, *s)) for s in ((N,), (K, N), (M, N), (N,)))
    return [q, A, np.einsum("bij,bj->bi", A, x), G, np.einsum("bij,bj->bi", G, x) + r.random((batch, M))]


def close(got, expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-9 * (1 + np.abs(np.asarray(b)).max()))


@pytest.mark.slow
def test_values_and_derivatives_under_jit_are_those_of_the_lanes():
    native, lanes = pair()
    theta = values(40)  # more than one piece
    with jax.enable_x64(True):
        total = lambda layer: lambda *a: sum((o**2).sum() for o in layer(*a))  # noqa: E731
        close(jax.jit(native)(*theta), lanes(*theta))
        order = tuple(range(len(theta)))
        close(jax.jit(jax.grad(total(native), order))(*theta), jax.grad(total(lanes), order)(*theta))
        tangents = tuple(np.cos(np.arange(a.size)).reshape(a.shape) for a in theta)
        push = lambda layer: jax.jvp(jax.grad(total(layer), order), tuple(theta), tangents)[1]  # noqa: E731
        close(jax.jit(lambda: push(native))(), push(lanes))


@pytest.mark.slow
def test_failures_raise_or_are_flagged():
    theta = values(3)
    theta[3][1, 1], theta[4][1, :2] = -theta[3][1, 0], -1.0  # no point has both a <= -1 and -a <= -1
    with jax.enable_x64(True):
        flagged, _ = pair("flag")
        x, _ = flagged(*theta)
        assert np.isnan(x[1]).all() and np.isfinite(x[::2]).all()
        raising, _ = pair()
        with pytest.raises(lc.errors.SolveError, match="infeasible") as caught:
            raising(*theta)
        assert caught.value.indices == ((1,),)


@pytest.mark.parametrize("equality", [False, True])
def test_constant_constraints_have_derivatives_in_both_modes(equality):
    q, x = cp.Parameter(4, name="q"), cp.Variable(4)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x) + q @ x), [x >= 0, *([cp.sum(x) == 0.5] if equality else [])])
    native, lanes = (lc.export(problem, "jax", parameters=[q], variables=[x], solver=s) for s in ("interior_point", "clarabel"))
    values = np.random.default_rng(0).standard_normal((3, 4))
    weights = np.random.default_rng(1).standard_normal((3, 4))
    with jax.enable_x64(True):
        gradients = [jax.grad(lambda q, layer=layer: (weights * layer(q)[0]).sum())(values) for layer in (native, lanes)]
        tangents = [jax.jvp(lambda q, layer=layer: layer(q)[0], (values,), (weights,))[1] for layer in (native, lanes)]
    close(gradients[:1], gradients[1:])
    close(tangents[:1], tangents[1:])


@pytest.mark.slow
def test_second_order_cones_under_jit_are_those_of_the_lanes():
    A, b, c, t = (cp.Parameter(s, name=n) for n, s in (("A", (4, N)), ("b", 4), ("c", N), ("t", ())))
    x = cp.Variable(N)
    cone = cp.norm2(A @ x + b) <= t
    problem = cp.Problem(cp.Minimize(c @ x + 0.1 * cp.sum_squares(x)), [cone, cp.norm2(x) <= 3])
    arguments = {"parameters": [A, b, c, t], "variables": [x, cone.dual_variables[0]]}
    native, lanes = (lc.export(problem, "jax", solver=solver, **arguments) for solver in ("interior_point", "lanes"))
    r = np.random.default_rng(1)
    theta = [r.standard_normal((17, 4, N)), r.standard_normal((17, 4)), r.standard_normal((17, N)), np.array(4.0)]  # t is shared
    with jax.enable_x64(True):
        x, dual = native(*theta)
        held = np.asarray(dual).reshape(17) > 1e-6
        assert 2 < held.sum() < 17  # the cone binds in some instances, and not in others
        close(jax.jit(native)(*theta), lanes(*theta))
        total = lambda layer: lambda *a: sum((o**2).sum() for o in layer(*a))  # noqa: E731
        order = tuple(range(len(theta)))
        close(jax.jit(jax.grad(total(native), order))(*theta), jax.grad(total(lanes), order)(*theta))
