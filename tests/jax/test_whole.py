"""Compiled code makes whole calls of problems written in CVXPY without Python, and answers as the host does."""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layercompiler as lc
from layercompiler import kernels
from layercompiler.jax import foreign
from tests.jax.problems import KINDS, exported
from tests.jax.test_foreign import on_host, same, untouched, value_and_pull

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not built")
__all__ = ["untouched"]


@pytest.fixture(autouse=True)
def _registered():
    assert foreign.registered()


def batched(arrays, batch, shared=()):
    """Instances around the given one; those in `shared` are the same for all."""
    r = np.random.default_rng(batch)
    return [jnp.asarray(a if i in shared else a + 0.02 * r.standard_normal((batch, *a.shape))) for i, a in enumerate(arrays)]


def sparse():
    """A program whose squares are substituted, with a shared row and declared signs."""
    n = 6
    x, F, c, d = cp.Variable(n, name="x"), cp.Parameter((2, n), name="F"), cp.Parameter(n, name="c"), cp.Parameter(nonneg=True, name="d")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(F @ x) + d * cp.sum_squares(x) - c @ x), [cp.sum(x) == 1, x >= 0])
    r = np.random.default_rng(0)
    settings = {"parameters": [F, c, d], "variables": [x, problem.constraints[1].dual_variables[0]]}
    return problem, settings, [r.standard_normal((2, n)), r.standard_normal(n), np.array(0.7)]


def made(kind, **settings):
    if kind in KINDS:
        return exported(kind, "jax", **settings)
    problem, given, data = sparse()
    return lc.export(problem, "jax", **given, **settings), data


@pytest.mark.parametrize("kind", [*KINDS, "sparse"])
@pytest.mark.parametrize(("batch", "shared"), [(1, ()), (5, ()), (17, (0,))])
def test_values_and_gradients_come_from_the_kernels_and_are_those_of_the_host(kind, batch, shared, monkeypatch, untouched):
    layer, data = made(kind)
    if len(data) == 1:
        shared = ()
    arrays = batched(data, batch, shared)
    found = jax.jit(value_and_pull(layer))(*arrays)
    monkeypatch.undo()
    same(found, on_host(value_and_pull(layer), monkeypatch, arrays), 1e-9)


@pytest.mark.parametrize("kind", ["qp", "socp"])
def test_float32_is_solved_in_float64(kind, untouched):
    layer, data = made(kind)
    arrays = [a.astype(jnp.float32) for a in batched(data, 3)]
    with jax.enable_x64(False):
        outputs, gradients = jax.jit(value_and_pull(layer))(*arrays)
        assert all(a.dtype == np.float32 for a in (*outputs, *gradients))
    exact = jax.jit(lambda *a: layer(*a))(*(a.astype(jnp.float64) for a in arrays))
    same(outputs, [np.asarray(e, np.float32) for e in exact])


def first(f):
    return lambda *a: jnp.sum(f(*a)[0] ** 2)


CASES = {
    "jacrev": lambda f, ends: jax.jacrev(lambda *a: f(*a)[0], argnums=ends),
    "jacfwd": lambda f, ends: jax.jacfwd(lambda *a: f(*a)[0], argnums=ends),
    "hessian": lambda f, ends: jax.hessian(first(f), argnums=0),
    "vmap of grad": lambda f, ends: jax.vmap(jax.grad(first(f), argnums=ends), (0, *[None] * (len(ends) - 1))),
    "grad of vmap": lambda f, ends: jax.grad(lambda *a: jnp.sum(jax.vmap(f, (0, *[None] * (len(ends) - 1)))(*a)[0] ** 2), argnums=ends),
    "grad of a jvp": lambda f, ends: jax.grad(lambda *a: jnp.sum(jax.jvp(lambda b: f(b, *a[1:])[0], (a[0],), (a[0],))[1]), argnums=ends),
}


@pytest.mark.parametrize("kind", ["qp", "socp"])
@pytest.mark.parametrize("name", CASES)
def test_every_transform(kind, name, monkeypatch):
    layer, data = made(kind)
    arrays = batched(data, 3, range(1 if "vmap" in name else 0, len(data)))
    transformed = CASES[name](layer, tuple(range(len(data))))
    same(jax.jit(transformed)(*arrays), on_host(transformed, monkeypatch, arrays), 1e-8)


def test_a_scan_longer_than_what_is_remembered():
    layer, (q, G, h) = made("qp")

    def loss(q, steps):
        def step(carry, k):
            x = layer(carry, G, h)[0]
            return 0.5 * carry + 0.1 * x, jnp.sum(x**2)

        return jnp.sum(jax.lax.scan(step, q, jnp.arange(9))[1]) if steps is None else unrolled(step, q, steps)

    def unrolled(step, carry, steps):
        total = 0.0
        for k in range(steps):
            carry, part = step(carry, k)
            total = total + part
        return total

    same(jax.jit(jax.grad(lambda q: loss(q, None)))(q), jax.grad(lambda q: loss(q, 9))(jnp.asarray(q)), 1e-9)


@pytest.mark.parametrize("on_error", ["flag", "raise"])
def test_what_the_kernels_leave_open_goes_to_the_host(on_error, monkeypatch):
    layer, data = made("socp", on_error=on_error)
    fine = batched(data, 5)
    arrays = [np.array(a) for a in fine]
    arrays[0][1] = np.nan
    both = value_and_pull(layer)
    if on_error == "raise":
        with pytest.raises(jax.errors.JaxRuntimeError, match="finite"):
            jax.block_until_ready(jax.jit(both)(*arrays))
        arrays[0][1], arrays[1][1] = fine[0][1], -1.0  # was declared not to be negative
        with pytest.raises(jax.errors.JaxRuntimeError, match="DomainError"):
            jax.block_until_ready(jax.jit(both)(*arrays))
        return
    program = jax.jit(both)
    (x, _), gradients = program(*arrays)
    assert np.isnan(x[1]).all() and not np.isnan(np.delete(x, 1, 0)).any() and all((np.asarray(g[1]) == 0).all() for g in gradients)
    same((x, gradients), (lambda r: (r[0][0], r[1]))(on_host(both, monkeypatch, arrays)), 1e-10)
    expected = on_host(both, monkeypatch, fine)
    for _ in range(3):
        same(program(*fine), expected, 1e-9)


def test_points_that_travel_find_their_own_factors():
    layer, data = made("socp")
    arrays = batched(data, 4)
    outputs, pull = jax.jit(lambda *a: jax.vjp(layer, *a))(*arrays)
    w = [jnp.asarray(np.random.default_rng(k).standard_normal(o.shape)) for k, o in enumerate(outputs)]
    whole = pull(tuple(w))
    order = np.array([2, 0, 3, 1])
    moved = jax.tree.map(lambda a: a[order] if a.shape[:1] == (4,) else a, pull)
    same(jax.jit(lambda k, w: k(w))(moved, tuple(p[order] for p in w)), [g[order] for g in whole], 1e-9)
