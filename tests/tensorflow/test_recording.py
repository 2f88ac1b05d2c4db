"""The contract with TensorFlow's private recording module: a rule is seen by every kind of differentiation, and counted once."""

import itertools

import pytest
import tensorflow as tf

from layercompiler.arrays import tensorflow_recording as recording
from tests.tensorflow.test_transforms import reverse


def forward(f):
    def tangent(x):
        with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
            y = f(x)
        return accumulator.jvp(y)

    return tangent


def on_host(f, x, g, gradient):
    """f(x, g) in numpy, as a node of the graph or eagerly."""
    if tf.executing_eagerly():
        values = recording.eager([tf.constant(f(x.numpy(), g.numpy()))], [g], lambda w: [gradient([x, g], [], [w])[1]])
        edge = recording.eager([tf.zeros_like(values[0])], [x], lambda w: [gradient([x, g], [], [w])[0]])
        return values[0] + edge[0]
    return recording.node(lambda x, g: [f(x, g)], [x, g], [(x.shape, x.dtype)], gradient)[0]


def slope(x, g):
    """2 x g, symmetric in its arguments."""
    return on_host(lambda x, g: 2 * x * g, x, g, lambda a, _, w: [slope(a[1], w[0]), slope(a[0], w[0])])


def square(x):
    return on_host(lambda x, _: x * x, x, tf.zeros_like(x), lambda a, _, w: [slope(a[0], w[0]), tf.zeros_like(w[0])])


def first(f):
    def value(*a):
        return tf.nest.flatten(f(*a))[0]

    return value


@pytest.mark.parametrize(("outer", "inner"), list(itertools.product((reverse, forward), repeat=2)), ids=lambda f: f.__name__)
@pytest.mark.parametrize("where", [None, 0, 1, 2])
def test_derivatives_of_the_fourth_power(outer, inner, where):
    if (outer, inner, where) == (reverse, forward, 0):
        pytest.skip("TensorFlow's own functions have no gradient here")
    f = lambda x: square(square(x))  # noqa: E731
    for k, step in enumerate((inner, outer)):
        f = tf.function(f, autograph=False) if k == where else f
        f = first(step(f))
    f = tf.function(f, autograph=False) if where == 2 else f
    assert float(f(tf.constant(3.0))) == pytest.approx(108)


@pytest.mark.parametrize("graph", [False, True])
def test_derivatives_of_a_vectorized_map(graph):
    derivative = reverse(lambda x: tf.vectorized_map(square, x))
    (got,) = (tf.function(derivative) if graph else derivative)(tf.constant([1.0, 2.0, 3.0]))
    assert got.numpy().tolist() == [2, 4, 6]
