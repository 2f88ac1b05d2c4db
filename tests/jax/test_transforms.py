"""A layer under every transform of jax equals the same function written in jax, whose derivatives are jax's own."""

import itertools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from layercompiler.errors import UnsupportedTransformError
from layercompiler.jax import Layer
from tests.jax.fake import Problem, data

ALL = (0, 1, 2, 3)


def reference(P, q, A, b):
    n, m = P.shape[-1], A.shape[-2]
    batch = jnp.broadcast_shapes(P.shape[:-2], q.shape[:-1], A.shape[:-2], b.shape[:-1])
    P, A = (jnp.broadcast_to(a, batch + a.shape[-2:]) for a in (P, A))
    q, b = (jnp.broadcast_to(a, batch + a.shape[-1:]) for a in (q, b))
    K = jnp.concatenate([jnp.concatenate([P, A.swapaxes(-1, -2)], -1), jnp.concatenate([A, jnp.zeros((*batch, m, m))], -1)], -2)
    w = jnp.linalg.solve(K, jnp.concatenate([-q, b], -1)[..., None])[..., 0]
    return w[..., :n], w[..., n:]


def loss(f):
    return lambda *a: sum((y**2).sum() + jnp.sin(y).sum() for y in f(*a))


@pytest.fixture
def problem():
    return Problem()


@pytest.fixture
def layer(problem):
    return Layer(problem)


POINT, DIRECTION = data(Problem(), 0), data(Problem(), 1)
FIVE, TEN = data(Problem(), 2, (5,)), data(Problem(), 3, (2, 5))
SHARED = (POINT[0], FIVE[1], POINT[2], FIVE[3])
IN = (None, 0, None, 0)


def step(f):
    return lambda q: f(POINT[0], q, POINT[2], POINT[3])[0]


def unrolled(f):
    return lambda q: jax.lax.scan(lambda c, _: (step(f)(c), None), q, None, length=3)[0]


CASES = {
    "call": lambda f: f(*POINT),
    "jit": lambda f: jax.jit(f)(*POINT),
    "grad": lambda f: jax.grad(loss(f), ALL)(*POINT),
    "jit grad": lambda f: jax.jit(jax.grad(loss(f), ALL))(*POINT),
    "jvp": lambda f: jax.jvp(f, POINT, DIRECTION)[1],
    "jit jvp": lambda f: jax.jit(lambda *h: jax.jvp(f, POINT, h)[1])(*DIRECTION),
    "jacfwd": lambda f: jax.jacfwd(f, ALL)(*POINT),
    "jacrev": lambda f: jax.jacrev(f, ALL)(*POINT),
    "linearize": lambda f: jax.linearize(f, *POINT)[1](*DIRECTION),
    "transposed": lambda f: jax.linear_transpose(jax.linearize(f, *POINT)[1], *POINT)(f(*DIRECTION)),
    "hessian": lambda f: jax.hessian(loss(f), ALL)(*POINT),
    "grad of grad": lambda f: jax.grad(lambda *x: sum((g**2).sum() for g in jax.grad(loss(f), ALL)(*x)), ALL)(*POINT),
    "one output": lambda f: jax.hessian(lambda q: f(POINT[0], q, *POINT[2:])[1].sum() ** 2)(POINT[1]),
    "vmap": lambda f: jax.vmap(f)(*FIVE),
    "vmap shared": lambda f: jax.vmap(f, IN)(*SHARED),
    "vmap inner axis": lambda f: jax.vmap(f, (None, 1, None, 0), 1)(POINT[0], FIVE[1].T, POINT[2], FIVE[3]),
    "vmap grad shared": lambda f: jax.vmap(jax.grad(loss(f), ALL), IN)(*SHARED),
    "grad vmap shared": lambda f: jax.grad(loss(jax.vmap(f, IN)), ALL)(*SHARED),
    "vmap jvp shared": lambda f: jax.vmap(lambda q, h: jax.jvp(step(f), (q,), (h,)))(FIVE[1], TEN[1][0]),
    "vmap tangents": lambda f: jax.vmap(lambda h: jax.jvp(step(f), (POINT[1],), (h,))[1])(FIVE[1]),
    "vmap hessian": lambda f: jax.vmap(jax.hessian(loss(f), (0, 1)), IN)(*SHARED),
    "hessian vmap": lambda f: jax.hessian(loss(jax.vmap(f, IN)), (0, 3))(*SHARED),
    "vmap vmap": lambda f: jax.vmap(jax.vmap(f))(*TEN),
    "vmap vmap mixed": lambda f: jax.vmap(jax.vmap(f, (None, 0, None, 0)), (0, None, None, 0), 1)(
        FIVE[0], TEN[1][0], POINT[2], np.stack([TEN[3][0]] * 5)
    ),
    "batch of batches": lambda f: f(POINT[0], TEN[1], FIVE[2], POINT[3]),
    "grad of batches": lambda f: jax.grad(loss(f), ALL)(POINT[0], TEN[1], FIVE[2], POINT[3]),
    "one beside five": lambda f: jax.grad(loss(f), ALL)(POINT[0][None], FIVE[1], FIVE[2], TEN[3]),
    "empty batch": lambda f: (f(*[a[:0] for a in FIVE]), jax.grad(loss(f), ALL)(POINT[0], FIVE[1][:0], *POINT[2:])),
    "scan": lambda f: jax.grad(lambda q: (unrolled(f)(q) ** 2).sum())(POINT[1]),
    "scan hessian": lambda f: jax.hessian(lambda q: (unrolled(f)(q) ** 2).sum())(POINT[1]),
    "while": lambda f: jax.jvp(lambda q: jax.lax.fori_loop(0, jnp.int32(3), lambda _, c: step(f)(c), q), (POINT[1],), (DIRECTION[1],)),
    "cond": lambda f: jax.jit(jax.grad(lambda q: jax.lax.cond(q[0] > 9, lambda q: q, step(f), q).sum()))(POINT[1]),
    "map": lambda f: jax.lax.map(step(f), FIVE[1], batch_size=2),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(loss(f)), ALL)(*POINT),
    "jit checkpoint hessian": lambda f: jax.jit(jax.hessian(jax.checkpoint(loss(f)), ALL))(*POINT),
    "through both arguments": lambda f: jax.hessian(lambda q: loss(f)(POINT[0] * q[0] ** 2, q, POINT[2], q[:2] * q[2]))(POINT[1]),
}
for outer, inner in itertools.product((jax.jacfwd, jax.jacrev), repeat=2):
    name = f"{outer.__name__} of {inner.__name__}"
    CASES[name] = lambda f, outer=outer, inner=inner: outer(inner(loss(f), ALL), ALL)(*POINT)
    CASES[f"jit {name}"] = lambda f, outer=outer, inner=inner: jax.jit(outer(inner(f, ALL), ALL))(*POINT)


@pytest.mark.parametrize("name", CASES)
def test_equals_jax(layer, name):
    got, want = CASES[name](layer), CASES[name](reference)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        scale = max(1.0, float(np.abs(b).max(initial=0)))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * scale)  # rounding, times the condition of two small systems squared


@pytest.mark.parametrize("name", ["vmap", "vmap vmap", "jacfwd", "jacrev", "jit jacfwd of jacrev", "vmap grad shared", "grad vmap shared"])
def test_a_batch_is_one_host_call_and_one_factorization(problem, layer, name):
    CASES[name](layer)
    assert (problem.evaluations, problem.factorizations) == (1, 1)


@pytest.mark.parametrize(
    "transforms", list(itertools.product((jax.jacfwd, jax.jacrev), repeat=3)), ids=lambda t: "-".join(x.__name__ for x in t)
)
@pytest.mark.parametrize("jit", [False, True])
def test_a_third_derivative_raises(layer, transforms, jit):
    f = loss(lambda q: layer(POINT[0], q, *POINT[2:]))
    for transform in transforms:
        f = transform(f)
    with pytest.raises(UnsupportedTransformError, match="third"):
        (jax.jit(f) if jit else f)(POINT[1])


def test_a_third_derivative_that_stops_at_the_layer_does_not_raise(layer):
    def f(q):
        x, _ = layer(POINT[0], jax.lax.stop_gradient(q), *POINT[2:])
        return (x * q**4).sum()

    x = np.asarray(layer(*POINT)[0])
    third = jax.jacfwd(jax.hessian(f))(POINT[1])
    np.testing.assert_allclose(np.einsum("iii->i", third), 24 * x * POINT[1], rtol=1e-12)


def test_shapes_without_a_solve(problem, layer):
    shapes = jax.eval_shape(jax.grad(loss(layer), ALL), *SHARED)
    assert [s.shape for s in shapes] == [np.shape(a) for a in SHARED] and problem.evaluations == 0


def test_unused_solves_are_dropped(problem, layer):
    jax.jit(lambda q: (layer(POINT[0], q, *POINT[2:]), q)[1])(POINT[1])
    assert problem.evaluations == 0
