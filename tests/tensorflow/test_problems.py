"""Exported problems of every kind of cone in TensorFlow: derivatives against differences, batches against singles."""

import numpy as np
import pytest
import tensorflow as tf

from layercompiler.errors import NonFiniteInputError, SolveError
from layercompiler.status import Status
from layercompiler.tensorflow import CvxpyLayer
from tests.jax.problems import KINDS, differences, exported, qp


def loss(layer):
    return lambda *a: tf.add_n([tf.reduce_sum(tf.sin(y)) + tf.reduce_sum(y**2) for y in layer(*a)])


def gradients(f):
    def function(*a):
        with tf.GradientTape() as tape:
            tape.watch(a)
            y = f(*a)
        return tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(y, a)], 0)

    return function


def hessian(f):
    def rows(*a):
        with tf.GradientTape() as tape:
            tape.watch(a)
            y = gradients(f)(*a)
        return tape.jacobian(y, a)

    return rows


def product(f, direction):
    """Forward over reverse."""

    def function(*a):
        with tf.autodiff.ForwardAccumulator(a, direction) as accumulator:
            y = gradients(f)(*a)
        return accumulator.jvp(y)

    return function


def tensors(arrays):
    return tuple(map(tf.constant, arrays))


def along(f, arrays):
    """f as a function of each argument alone, with that argument."""
    return [(lambda t, i=i: f(*tensors([*arrays[:i], t, *arrays[i + 1 :]])), a) for i, a in enumerate(arrays)]


@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives_equal_differences(kind):
    layer, arrays = exported(kind, "tensorflow")
    function = gradients(loss(layer))
    want = np.concatenate([np.ravel(differences(f, a)) for f, a in along(loss(layer), arrays)])
    np.testing.assert_allclose(function(*tensors(arrays)), want, rtol=0, atol=1e-8)
    np.testing.assert_allclose(tf.function(function)(*tensors(arrays)), want, rtol=0, atol=1e-8)
    second = [differences(f, a) for f, a in along(function, arrays)]
    for wrap in (lambda f: f, tf.function):
        for got, want in zip(wrap(hessian(loss(layer)))(*tensors(arrays)), second, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-7)
        direction = tensors([np.ones_like(a) for a in arrays])
        want = sum(h.reshape(len(h), -1).sum(1) for h in second)
        np.testing.assert_allclose(wrap(product(loss(layer), direction))(*tensors(arrays)), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_equal_singles(kind):
    layer, arrays = exported(kind, "tensorflow")
    rng = np.random.default_rng(0)
    batch = tensors([a + 1e-2 * rng.normal(size=(4, *a.shape)) for a in arrays])
    function = gradients(loss(layer))
    whole = np.concatenate([np.reshape(g, (4, -1)) for g in _split(function(*batch), batch)], 1)
    mapped = tf.vectorized_map(lambda a: function(*a), batch)
    for i in range(4):
        single = function(*(a[i] for a in batch))
        np.testing.assert_allclose(whole[i], single, rtol=0, atol=1e-10)
        np.testing.assert_allclose(mapped[i], single, rtol=0, atol=1e-10)


def _split(flat, like):
    sizes = [int(tf.size(a)) for a in like]
    return tf.split(flat, sizes)


def test_a_failed_instance_leaves_the_others_bitwise_unchanged():
    layer, (q, G, h) = exported("qp", "tensorflow", on_error="flag")
    bad = np.stack([h, [-1.0, -1.0, 1.0], h])  # x0 <= -1 beside -x0 <= -1
    G = np.stack([G, [[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0]], G])
    (x,) = tf.function(layer)(q, G, bad)
    assert np.isnan(x[1]).all()
    np.testing.assert_array_equal(x[::2], layer(q, G[::2], bad[::2])[0])
    assert layer.solve(q, G, bad).status.tolist() == [Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.SOLVED]


def test_failures_name_the_instance():
    layer, (q, G, h) = exported("qp", "tensorflow")
    G, h = np.stack([G, [[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0]]]), np.stack([h, [-1.0, -1.0, 1.0]])
    with pytest.raises(SolveError, match=r"instance 1.*infeasible") as caught:
        layer(q, G, h)
    assert caught.value.solution.outputs[0].shape == (2, 3)
    with pytest.raises(tf.errors.UnknownError, match=r"instance 1.*infeasible"):
        tf.function(layer)(q, G, h)
    with pytest.raises(NonFiniteInputError, match="'q'"):
        layer(np.full(3, np.nan), G, h)


def test_solve_warm_start_and_options():
    layer, arrays = exported("socp", "tensorflow")
    solution = layer.solve(*arrays)
    assert solution.status == Status.SOLVED and tf.is_tensor(solution.values["x"])
    graph = tf.function(lambda z: layer(*arrays, warm_start=z)[0])
    for x in (layer(*arrays, warm_start=solution, options={"max_iterations": 50})[0], graph(solution.warm_start)):
        np.testing.assert_allclose(x, solution.outputs[0], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(layer(*arrays, warm_start=np.zeros(3))[0], layer(*arrays)[0])  # does not fit: no start
    z = tf.Variable(solution.warm_start)
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(layer(*arrays, warm_start=z)[0])
    assert tape.gradient(y, z) is None  # the start is no argument of the solution


def test_the_signature_of_cvxpylayers():
    problem, parameters, variables, data = qp()
    layer = CvxpyLayer(problem, parameters, variables, solver_args={"eps": 1e-8})
    want = exported("qp", "tensorflow")[0](*tensors(map(np.asarray, data)))[0]
    arguments = {"solve_method": "ECOS", "max_iters": 1000}
    arrays = tensors(map(np.asarray, data))
    graph = tf.function(lambda *a: layer(*a, solver_args=arguments))
    for got in (layer(*arrays), layer(*arrays, solver_args=arguments), graph(*arrays)):
        np.testing.assert_allclose(got[0], want, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="exactly match"):
        CvxpyLayer(problem, parameters[:2], variables)
    (g,) = [gradients(lambda q: tf.reduce_sum(layer(q, *arrays[1:], solver_args=arguments)[0]))(arrays[0])]
    assert g.shape == (3,)
