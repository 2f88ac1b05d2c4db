"""Compiled code that calls the kernels itself answers as the host does under every transform, and leaves to it what they leave open."""

import ctypes
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layercompiler as lc
from layercompiler import kernels
from layercompiler.jax import foreign
from layercompiler.jax.host import Host
from layercompiler.kernels.foreign import handler
from layercompiler.plan.dense import DenseProblem
from tests.qp import families

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not built")
N, M, P = 6, 8, 2


@pytest.fixture(autouse=True)
def _registered():
    assert foreign.registered()


@pytest.fixture
def untouched(monkeypatch):
    """Python has no part in what is called here."""

    def refuse(*_, **__):
        raise AssertionError("the host was called")

    monkeypatch.setattr(Host, "solve", refuse)
    monkeypatch.setattr(Host, "vjp", refuse)


def layer(outputs=("x", "y", "z"), **settings):
    return lc.export(lc.QP(N, M, P), "jax", variables=list(outputs), **settings)


def data(batch=5, shared=(), dtype=np.float64):
    """Feasible whichever of them are shared: Gx <= h with room around a short x with Ax = b."""
    r = np.random.default_rng(batch)
    Q, p, G, _, A, _ = families.batch("std", N, M, P, batch)
    h, b = r.uniform(0.5, 1.5, (batch, M)), 0.05 * r.standard_normal((batch, P))
    return [jnp.asarray((a[0] if i in shared else a).astype(dtype)) for i, a in enumerate((Q, 3 * p, G, h, A, b))]


def weights(outputs, seed=0):
    return [np.random.default_rng(seed + k).standard_normal(o.shape).astype(o.dtype) for k, o in enumerate(outputs)]


def value_and_pull(f):
    def both(*arrays):
        outputs, pull = jax.vjp(f, *arrays)
        return outputs, pull(tuple(map(jnp.asarray, weights(outputs))))

    return both


def on_host(function, monkeypatch, arrays):
    """What the function gives under a jax that has no interface of ours."""
    with monkeypatch.context() as patch:
        patch.setattr(foreign, "serves", lambda ctx: False)
        return jax.block_until_ready(jax.jit(lambda *a: function(*a))(*arrays))


def same(a, b, tolerance=0.0):
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(u, v, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shared", [(), (0, 2, 4), (1, 3, 5)])
@pytest.mark.parametrize("batch", [1, 5, 40])
def test_values_and_gradients_come_from_the_kernel_and_are_those_of_the_host(shared, batch, monkeypatch, untouched):
    arrays = data(batch, shared)
    found = jax.jit(value_and_pull(layer()))(*arrays)
    monkeypatch.undo()
    same(found, on_host(value_and_pull(layer()), monkeypatch, arrays), 1e-12)


@pytest.mark.parametrize("outputs", [("x",), ("z",), ("y", "x"), ("z", "y")])
def test_any_choice_of_outputs(outputs, monkeypatch, untouched):
    arrays = data()
    found = jax.jit(value_and_pull(layer(outputs)))(*arrays)
    monkeypatch.undo()
    same(found, on_host(value_and_pull(layer(outputs)), monkeypatch, arrays), 1e-12)


@pytest.mark.parametrize("x64", [True, False])
def test_float32_is_solved_in_float64(x64, untouched):
    arrays = [np.asarray(a, np.float32) for a in data()]
    with jax.enable_x64(x64):
        outputs, gradients = jax.jit(value_and_pull(layer()))(*arrays)
        assert all(a.dtype == np.float32 for a in (*outputs, *gradients))
    with jax.enable_x64(True):
        exact = jax.jit(lambda *a: layer()(*a))(*(a.astype(np.float64) for a in arrays))
    same(outputs, [np.asarray(e, np.float32) for e in exact])


def test_constants_and_parameters(untouched):
    Q, _, G, h, A, b = (np.asarray(a) for a in data(1, shared=range(6)))
    f = lc.export(lc.QP(Q, None, G, h, A, b), "jax", parameters=["p"], variables=["x"])
    ps = jnp.asarray(np.random.default_rng(0).standard_normal((7, N)))
    x, (g,) = jax.jit(value_and_pull(f))(ps)
    whole = lambda p: layer(("x",))(Q, p, G, h, A, b)  # noqa: E731
    same((x, (g,)), jax.jit(value_and_pull(whole))(ps), 1e-11)


CASES = {
    "jacrev": lambda f: jax.jacrev(lambda *a: f(*a)[0], argnums=(1, 3)),
    "jacfwd": lambda f: jax.jacfwd(lambda *a: f(*a)[0], argnums=(1, 3)),
    "hessian": lambda f: jax.hessian(lambda *a: jnp.sum(f(*a)[0] ** 2), argnums=1),
    "vmap of grad": lambda f: jax.vmap(jax.grad(lambda *a: jnp.sum(f(*a)[0] ** 2), argnums=(0, 2)), (0, 0, None, 0, None, 0)),
    "grad of vmap": lambda f: jax.grad(lambda *a: jnp.sum(jax.vmap(f, (0, 0, None, 0, None, 0))(*a)[0] ** 2), argnums=(0, 2)),
    "two vmaps": lambda f: jax.vmap(
        jax.vmap(jax.grad(lambda *a: jnp.sum(f(*a)[0] ** 2), argnums=(1, 2)), (None, 0, None, None, None, None)),
        (0, None, None, 0, None, 0),
    ),
    "checkpoint": lambda f: jax.grad(lambda *a: jnp.sum(jax.checkpoint(f)(*a)[0] ** 2), argnums=(1, 4)),
    "a derivative of both kinds": lambda f: (
        lambda *a: (
            jax.grad(lambda p: jnp.sum(f(a[0], p, *a[2:])[0] ** 2))(a[1]),
            jax.jvp(lambda p: f(a[0], p, *a[2:])[0], (a[1],), (a[1],))[1],
        )
    ),
}
MAPPED = {"vmap of grad": (2, 4), "grad of vmap": (2, 4), "two vmaps": (2, 4)}


@pytest.mark.parametrize("name", CASES)
def test_every_transform(name, monkeypatch):
    arrays = data(4, MAPPED.get(name, range(6)))
    transformed = CASES[name](layer())
    same(jax.jit(transformed)(*arrays), on_host(transformed, monkeypatch, arrays), 1e-11)


@pytest.mark.parametrize("name", ["jacrev", "jacfwd", "a derivative of both kinds"])
def test_what_the_host_differentiates_uses_the_factors_of_compiled_code(name, monkeypatch):
    monkeypatch.setattr(DenseProblem, "restore", None)
    monkeypatch.setattr(DenseProblem, "evaluate", None)
    jax.block_until_ready(jax.jit(CASES[name](layer()))(*data(4, range(6))))


def test_a_scan_longer_than_what_is_remembered():
    Q, p, G, h, A, b = data(3)
    f = layer(("x",))

    def loss(p):
        def step(carry, k):
            x = f(Q, carry, G, h, A, b)[0]
            return 0.5 * carry + 0.1 * x, jnp.sum(x**2)

        return jnp.sum(jax.lax.scan(step, p, jnp.arange(12))[1])

    def unrolled(p):
        total = 0.0
        for _ in range(12):
            x = f(Q, p, G, h, A, b)[0]
            p, total = 0.5 * p + 0.1 * x, total + jnp.sum(x**2)
        return total

    same(jax.jit(jax.grad(loss))(p), jax.grad(unrolled)(p), 1e-10)


def test_points_that_travel_find_their_own_factors():
    f, arrays = layer(("x",)), data(4)
    x, pull = jax.jit(lambda *a: jax.vjp(f, *a))(*arrays)
    w = jnp.asarray(weights(x)[0])
    whole = pull((w,))
    order = np.array([2, 0, 3, 1])
    moved = jax.tree.map(lambda a: a[order] if a.shape[:1] == (4,) else a, pull)
    same(jax.jit(lambda k, w: k((w,)))(moved, w[order]), [g[order] for g in whole], 1e-10)
    twice = jax.jit(lambda k, w: (k((w,)), k((2 * w,))))(pull, w)
    same(twice, (whole, [2 * g for g in whole]), 1e-10)


@pytest.mark.parametrize("on_error", ["flag", "raise", "closest"])
def test_what_the_kernel_leaves_open_goes_to_the_host(on_error, monkeypatch):
    arrays = [np.array(a) for a in data(5)]
    arrays[2][1, 1], arrays[3][1, :2] = -arrays[2][1, 0], [-1.0, -1.0]  # g'x <= -1 and -g'x <= -1
    both = value_and_pull(layer(on_error=on_error))
    if on_error == "raise":
        with pytest.raises(jax.errors.JaxRuntimeError, match=r"SolveError: 1 of 5 instances not solved \(infeasible\)"):
            jax.block_until_ready(jax.jit(both)(*arrays))
        return
    program = jax.jit(both)
    found = program(*arrays)
    same(found, on_host(both, monkeypatch, arrays))
    assert np.isnan(found[0][0][1]).all() == (on_error == "flag")
    fine = data(5)
    expected = on_host(both, monkeypatch, fine)
    for _ in range(12):  # the kernel is tried again after a while
        same(program(*fine), expected)


def test_numbers_that_are_none_are_flagged_and_the_others_untouched():
    arrays = [np.array(a) for a in data(5)]
    good = jax.jit(value_and_pull(layer()))(*arrays)
    arrays[1][3, 0] = np.nan
    outputs, gradients = jax.jit(value_and_pull(layer(on_error="flag")))(*arrays)
    keep = np.array([0, 1, 2, 4])
    assert all(np.isnan(o[3]).all() for o in outputs) and all((np.asarray(g[3]) == 0).all() for g in gradients)
    same([o[keep] for o in outputs], [o[keep] for o in good[0]], 1e-11)
    same([g[keep] for g in gradients], [g[keep] for g in good[1]], 1e-10)


def test_a_singular_system_has_the_derivative_of_the_host(monkeypatch):
    """A linear program whose vertex is degenerate: three active rows in two dimensions."""
    Q, p = np.zeros((2, 2)), np.array([-1.0, -1.0])
    G, h = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]]), np.array([1.0, 1.0, 2.0, 0.0])
    arrays = [jnp.asarray(np.stack([a, a])) for a in (Q, p, G, h)]
    both = value_and_pull(lc.export(lc.QP(2, 4), "jax", variables=["x"]))
    same(jax.jit(both)(*arrays), on_host(both, monkeypatch, arrays), 1e-12)


def test_a_program_that_is_gone_while_it_runs():
    arrays = data(40)
    results = []
    for _ in range(5):
        results.append(jax.jit(value_and_pull(layer()))(*arrays))
        jax.clear_caches()
        gc.collect()
    for r in results[1:]:
        same(r, results[0])


def test_layers_that_are_gone_leave_nothing_behind():
    """Their calls are told apart from those of layers that live, and freed."""
    freed = []

    def run():
        f = layer(("x",))
        jax.block_until_ready(jax.jit(lambda *a: f(*a))(*data(3)))
        freed.append(weakref.ref(f._host))

    run()
    jax.clear_caches()
    gc.collect()
    assert freed[0]() is None


class _Frame(ctypes.Structure):
    _fields_ = [
        *(("size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("api", ctypes.c_void_p), ("context", ctypes.c_void_p)),
        *(("stage", ctypes.c_int64), ("rest", ctypes.c_int64 * 17)),
    ]


@pytest.mark.parametrize(("minor", "taken"), [(0, False), (1, True), (3, True), (4, False), (None, True)])
def test_other_versions_of_the_interface_are_refused(minor, taken):
    words = ctypes.c_int64
    api = None if minor is None else (words * 8)(64, 0, 24, 0, minor << 32, 0, 0, 0)  # None: a version that does not say
    metadata = (words * 6)(48, 0, 0, 0, 0, 0)
    request = (words * 4)(32, 1, 0, ctypes.addressof(metadata))
    frame = _Frame(ctypes.sizeof(_Frame), ctypes.addressof(request), api and ctypes.addressof(api))
    assert not handler()(ctypes.addressof(frame))
    assert (metadata[3] == (1 if minor is None else minor) << 32) == taken
