"""A layer under every differentiation of TensorFlow, eager and in graphs, equals the same function written in TensorFlow."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from layercompiler.errors import UnsupportedTransformError
from layercompiler.tensorflow import Layer
from tests.jax.fake import Problem, data

POINT, DIRECTION = (tuple(map(tf.constant, data(Problem(), k))) for k in (0, 1))
FIVE = tuple(map(tf.constant, data(Problem(), 2, (5,))))
SHARED = (POINT[0], FIVE[1], POINT[2], FIVE[3])


def reference(P, q, A, b):
    n, m = P.shape[-1], A.shape[-2]
    batch = tf.shape(P)[:-2]
    for a, k in ((q, 1), (A, 2), (b, 1)):
        batch = tf.broadcast_dynamic_shape(batch, tf.shape(a)[:-k])
    P, q, A, b = (tf.broadcast_to(a, tf.concat([batch, tf.shape(a)[-k:]], 0)) for a, k in ((P, 2), (q, 1), (A, 2), (b, 1)))
    zero = tf.zeros(tf.concat([batch, [m, m]], 0), P.dtype)
    K = tf.concat([tf.concat([P, tf.linalg.matrix_transpose(A)], -1), tf.concat([A, zero], -1)], -2)
    w = tf.linalg.solve(K, tf.concat([-q, b], -1)[..., None])[..., 0]
    return w[..., :n], w[..., n:]


def loss(f):
    def value(*a):
        return tf.add_n([tf.reduce_sum(y**2) + tf.reduce_sum(tf.sin(y)) for y in f(*a)])

    return value


def first(f):
    def value(*a):
        return f(*a)[0]

    return value


def mix(f):
    """A number that depends on all of f's results, and not linearly."""

    def value(*a):
        return tf.add_n([tf.reduce_sum(tf.cos(y) * y) for y in tf.nest.flatten(f(*a))])

    return value


def reverse(f):
    def gradient(*a):
        with tf.GradientTape() as tape:
            tape.watch(a)
            y = f(*a)
        return tape.gradient(y, a)

    return gradient


def forward(f):
    def tangent(*a):
        with tf.autodiff.ForwardAccumulator(a, DIRECTION[: len(a)]) as accumulator:
            y = f(*a)
        return tf.nest.map_structure(accumulator.jvp, y)

    return tangent


def jacobian(f, **settings):
    def rows(*a):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(a)
            y = tf.concat([tf.reshape(v, [-1]) for v in tf.nest.flatten(f(*a))], 0)
        return tape.jacobian(y, a, **settings)

    return rows


def each(f):
    def mapped(*a):
        return tf.vectorized_map(lambda one: f(*one), a)

    return mapped


def unrolled(f):
    def value(*a):
        return tf.reduce_sum(tf.while_loop(lambda i, c: i < 3, lambda i, c: (i + 1, f(a[0], c, a[2], a[3])[0]), (0, a[1]))[1] ** 2)

    return value


ORDERS = {
    "call": ([lambda f: f], POINT),
    "batch": ([loss, reverse], SHARED),
    "empty batch": ([loss, reverse], (POINT[0], FIVE[1][:0], *POINT[2:])),
    "reverse": ([loss, reverse], POINT),
    "forward": ([forward], POINT),
    "jacobian": ([jacobian], POINT),
    "jacobian without pfor": ([lambda f: jacobian(f, experimental_use_pfor=False)], POINT),
    "reverse over reverse": ([loss, reverse, mix, reverse], POINT),
    "forward over reverse": ([loss, reverse, forward], POINT),
    "reverse over forward": ([forward, mix, reverse], POINT),
    "forward over forward": ([forward, forward], POINT),
    "hessian": ([loss, reverse, jacobian], POINT),
    "vectorized_map": ([each], FIVE),
    "vectorized_map of reverse": ([loss, reverse, each], FIVE),
    "reverse of vectorized_map": ([each, loss, reverse], FIVE),
    "while": ([unrolled, reverse], POINT),
}


def wrapped(steps, where):
    """The composition of `steps` on f, with `tf.function` around the first `where` of them."""

    def build(f):
        for k, step in enumerate(steps):
            f = tf.function(f, autograph=False) if k == where else f
            f = step(f)
        return tf.function(f, autograph=False) if where == len(steps) else f

    return build


def placements():
    for name, (steps, arguments) in ORDERS.items():
        for where in (None, *range(len(steps) + 1)):
            if name == "while" and where in (None, 0):
                continue  # eager loops are Python loops
            if "reverse over forward" in name and where == 0:
                continue  # TensorFlow's own functions have no gradient here: None, or an internal error
            yield pytest.param(wrapped(steps, where), arguments, id=f"{name}, {'eager' if where is None else f'function at {where}'}")


@pytest.mark.parametrize(("build", "arguments"), list(placements()))
def test_equals_tensorflow(build, arguments):
    got, want = (tf.nest.flatten(build(f)(*arguments)) for f in (Layer(Problem()), reference))
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * max(1.0, np.abs(b).max(initial=0)))


@pytest.mark.parametrize(
    ("name", "where"),
    [("jacobian", None), ("hessian", None), ("reverse", 2), ("forward", 1), ("reverse over reverse", 4), ("forward over reverse", 0)],
)
def test_a_derivative_uses_the_factorization_of_its_solve(name, where):
    problem = Problem()
    steps, arguments = ORDERS[name]
    wrapped(steps, where)(Layer(problem))(*arguments)
    assert (problem.evaluations, problem.factorizations) == (1, 1)


def test_inference_in_a_graph_remembers_nothing():
    layer = Layer(Problem())
    tf.function(lambda *a: layer(*a))(*POINT)
    assert len(layer._memory) == 0


@pytest.mark.parametrize("kinds", list(itertools.product((reverse, forward), repeat=3)), ids=lambda k: "-".join(f.__name__ for f in k))
@pytest.mark.parametrize("graph", [False, True])
def test_a_third_derivative_raises(kinds, graph):
    layer = Layer(Problem())
    f = loss(layer)
    for kind in kinds:
        f = mix(kind(f))
    if graph:
        with pytest.raises(tf.errors.UnimplementedError, match="UnsupportedTransformError: third"):
            tf.function(f, autograph=False)(*POINT)
    else:
        with pytest.raises((UnsupportedTransformError, tf.errors.InternalError)):  # TensorFlow's own comes first in one order
            f(*POINT)


def test_a_third_derivative_that_stops_at_the_layer_does_not_raise():
    layer = Layer(Problem())

    def f(q):
        return tf.reduce_sum(layer(POINT[0], tf.stop_gradient(q), *POINT[2:])[0] * q**4)

    def total(g):
        return lambda q: tf.reduce_sum(g(q)[0])

    x = layer(*POINT)[0]
    for function in (lambda g: g, tf.function):
        (third,) = function(reverse(total(reverse(total(reverse(f))))))(POINT[1])
        np.testing.assert_allclose(third, 24 * x * POINT[1], rtol=1e-12)
