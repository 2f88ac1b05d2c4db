"""Exported problems of every kind of cone under jax: derivatives against differences, batches against singles."""

import itertools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from layercompiler.errors import NonFiniteInputError, SolveError
from layercompiler.jax import CvxpyLayer
from layercompiler.status import Status
from tests.jax.problems import KINDS, differences, exported, qp


def loss(layer):
    return lambda *a: sum((jnp.sin(y) + y**2).sum() for y in layer(*a))


def along(f, arrays):
    """f as a function of each argument alone, with that argument."""
    return [(lambda t, i=i: f(*arrays[:i], t, *arrays[i + 1 :]), a) for i, a in enumerate(arrays)]


@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives_equal_differences(kind):
    layer, arrays = exported(kind, "jax")
    everything = tuple(range(len(arrays)))
    value, gradients = jax.jit(loss(layer)), jax.jit(jax.grad(loss(layer), everything))
    first = [differences(f, a) for f, a in along(value, arrays)]
    for got, want in zip(gradients(*arrays), first, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-8)
    second = [differences(f, a) for f, a in along(lambda *a: np.concatenate([np.ravel(g) for g in gradients(*a)]), arrays)]
    for outer, inner in itertools.product((jax.jacfwd, jax.jacrev), repeat=2):
        rows = jax.jit(outer(inner(loss(layer), everything), everything))(*arrays)
        for i, (a, want) in enumerate(zip(arrays, second, strict=True)):
            got = np.concatenate([np.reshape(row[i], (-1, *a.shape)) for row in rows])
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_equal_singles(kind):
    layer, arrays = exported(kind, "jax")
    rng = np.random.default_rng(0)
    batch = [a + 1e-2 * rng.normal(size=(2, 3, *a.shape)) for a in arrays]
    everything = tuple(range(len(arrays)))
    function = jax.grad(loss(layer), everything)
    whole = jax.jit(function)(*batch)
    mapped = jax.vmap(jax.vmap(function))(*batch)
    for i, j in np.ndindex(2, 3):
        single = function(*(a[i, j] for a in batch))
        for s, w, m in zip(single, whole, mapped, strict=True):
            np.testing.assert_allclose(w[i, j], s, rtol=0, atol=1e-10)
            np.testing.assert_allclose(m[i, j], s, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_float32(kind):
    layer, arrays = exported(kind, "jax")
    single = [a.astype(np.float32) for a in arrays]
    want = jax.grad(loss(layer))(*(np.asarray(a, float) for a in single))
    with jax.enable_x64(False):
        got = jax.jit(jax.grad(loss(layer)))(*single)
        assert got.dtype == np.float32
        jax.block_until_ready(jax.hessian(loss(layer))(*single))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


def test_a_failed_instance_leaves_the_others_bitwise_unchanged():
    layer, (q, G, h) = exported("qp", "jax", on_error="flag")
    bad = np.stack([h, [-1.0, -1.0, 1.0], h])  # x0 <= -1 beside -x0 <= -1
    G = np.stack([G, [[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0]], G])
    (x,) = jax.jit(layer)(q, G, bad)
    assert np.isnan(x[1]).all()
    np.testing.assert_array_equal(x[::2], layer(q, G[::2], bad[::2])[0])
    assert layer.solve(q, G, bad).status.tolist() == [Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.SOLVED]
    gradient = jax.jit(jax.grad(lambda h: jnp.nansum(layer(q, G, h)[0])))(bad)
    assert np.isfinite(gradient).all() and not gradient[1].any() and gradient[0].any()


def test_failures_name_the_instance():
    layer, (q, G, h) = exported("qp", "jax")
    G, h = np.stack([G, [[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0]]]), np.stack([h, [-1.0, -1.0, 1.0]])
    with pytest.raises(SolveError, match=r"instance 1.*infeasible") as caught:
        layer(q, G, h)
    assert caught.value.solution.outputs[0].shape == (2, 3)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"instance 1.*infeasible"):
        jax.block_until_ready(jax.jit(layer)(q, G, h))
    with pytest.raises(NonFiniteInputError, match="'q'"):
        layer(np.full(3, np.nan), G, h)


def test_solve_warm_start_and_options():
    layer, arrays = exported("socp", "jax")
    solution = layer.solve(*arrays)
    assert solution.status == Status.SOLVED and isinstance(solution.values["x"], jax.Array)
    z = solution.warm_start
    starts = jax.vmap(lambda z: layer(*arrays, warm_start=z)[0])(np.stack([z, z]))
    for x in (layer(*arrays, warm_start=solution, options={"max_iterations": 50})[0], jax.jit(layer)(*arrays, warm_start=z)[0], *starts):
        np.testing.assert_allclose(x, solution.outputs[0], rtol=0, atol=1e-9)
    gradient = jax.grad(lambda z: layer(*arrays, warm_start=z)[0].sum())(jnp.asarray(z))
    assert not gradient.any()  # the start is no argument of the solution
    np.testing.assert_array_equal(layer(*arrays, warm_start=np.zeros(3))[0], layer(*arrays)[0])  # does not fit: no start
    assert layer.solve(*arrays, options={"time_limit": 60.0}).status == Status.SOLVED


def test_the_signature_of_cvxpylayers():
    problem, parameters, variables, data = qp()
    layer = CvxpyLayer(problem, parameters, variables, solver_args={"eps": 1e-8})
    want = exported("qp", "jax")[0](*data)[0]
    arguments = {"solve_method": "ECOS", "max_iters": 1000}
    for got in (layer(*data), layer(*data, solver_args=arguments), jax.jit(lambda *a: layer(*a, solver_args=arguments))(*data)):
        np.testing.assert_allclose(got[0], want, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="exactly match"):
        CvxpyLayer(problem, parameters[:2], variables)
    gradient = jax.jit(jax.vmap(jax.grad(lambda q: layer(q, *data[1:])[0].sum())))(np.stack([data[0]] * 2))
    assert gradient.shape == (2, 3)
