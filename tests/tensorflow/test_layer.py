"""What a TensorFlow layer is as an object: arguments, dtypes, shapes, failures, copies, threads, XLA."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from layercompiler.errors import DtypeError, ShapeError, SolveError, UnsupportedTransformError
from layercompiler.status import Status
from layercompiler.tensorflow import Layer
from tests.jax.fake import LIMIT, Problem, data

POINT = data(Problem(), 0)
TENSORS = tuple(map(tf.constant, POINT))
FAILING = (*POINT[:3], np.stack([POINT[3], [2 * LIMIT, 0.0], POINT[3]]))


@pytest.fixture
def layer():
    return Layer(Problem())


def gradient(layer, *arrays):
    arrays = [tf.convert_to_tensor(a) for a in arrays]
    with tf.GradientTape() as tape:
        tape.watch(arrays)
        y = tf.reduce_sum(layer(*arrays)[0])
    return tape.gradient(y, arrays)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_out_is_dtype_in(layer, dtype):
    arrays = [tf.cast(a, dtype) for a in POINT]
    for f in (layer, tf.function(layer)):
        assert {y.dtype.name for y in (*f(*arrays), *gradient(f, *arrays))} == {dtype}


def test_float32_is_the_rounded_float64_answer(layer):
    single = [np.asarray(a, np.float32) for a in POINT]
    double = [np.asarray(a, np.float64) for a in single]
    for f in (layer, tf.function(layer)):
        for a, b in zip((*f(*single), *gradient(f, *single)), (*layer(*double), *gradient(layer, *double)), strict=True):
            np.testing.assert_array_equal(a, tf.cast(b, tf.float32))


def test_lists_integers_names_and_variables(layer):
    P, q, A, b = POINT
    want = layer(*TENSORS)[0]
    np.testing.assert_array_equal(layer(P.tolist(), q, A.tolist(), b=tf.Variable(b))[0], want)
    np.testing.assert_array_equal(tf.function(lambda: layer(b=b, A=A, q=q, P=P)[0])(), want)
    assert layer(np.eye(3, dtype=int), [1, 2, 3], [[1, 0, 0], [0, 1, 0]], [0, 0])[0].dtype == tf.float32


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda P, q, A, b: (P, q, A), ShapeError, "got 3"),
        (lambda P, q, A, b: (P, q[:2], A, b), ShapeError, "'q'"),
        (lambda P, q, A, b: (P, 1.0, A, b), ShapeError, "'q'"),
        (lambda P, q, A, b: (P, np.zeros((2, 3)), A, np.zeros((3, 2))), ShapeError, "batch"),
        (lambda P, q, A, b: (P, q + 1j, A, b), DtypeError, "complex"),
        (lambda P, q, A, b: (P, None, A, b), DtypeError, "'q'"),
        (lambda P, q, A, b: (P, "abc", A, b), DtypeError, "'q'"),
        (lambda P, q, A, b: (P, [[1], [2, 3]], A, b), DtypeError, "'q'"),
    ],
)
def test_wrong_arguments(layer, change, error, says):
    with pytest.raises(error, match=says):
        layer(*change(*POINT))


@pytest.mark.parametrize(
    ("batches", "static"),
    [
        (((), (), (), ()), (3,)),
        (((7,), (1,), (), (2, 1)), (2, 7, 3)),
        (((None,), (), (), (5,)), (5, 3)),
        (((None,), (), (), ()), (None, 3)),
        (((None, 4), (), (1,), ()), (None, 4, 3)),
    ],
)
def test_static_shapes(layer, batches, static):
    specs = [tf.TensorSpec((*lead, *p.shape), tf.float64) for lead, p in zip(batches, layer.compiled.parameters, strict=True)]
    x, y = tf.function(layer).get_concrete_function(*specs).structured_outputs
    assert x.shape.as_list() == list(static) and y.shape[-1] == 2


def test_unknown_ranks_and_dynamic_batches(layer):
    open_ended = tf.function(layer, input_signature=[tf.TensorSpec(None, tf.float64)] * 4)
    P, q, A, b = data(Problem(), 1, (2, 5))
    np.testing.assert_array_equal(open_ended(P, q[0, 0], A, b)[0], layer(P, q[0, 0], A, b)[0])
    with pytest.raises(tf.errors.InvalidArgumentError, match="ShapeError"):
        open_ended(P, q[..., :2], A, b)
    assert [g.shape for g in gradient(open_ended, P, q[0, 0], A[0], b)] == [P.shape, (3,), A[0].shape, b.shape]


def test_a_failure_raises_our_error_in_eager_mode(layer):
    for f in (lambda: layer(*FAILING), lambda: gradient(layer, *FAILING)):
        with pytest.raises(SolveError, match="primal infeasible") as caught:
            f()
        assert caught.value.indices == ((1,),)


def test_a_failure_in_a_graph_carries_our_text(layer):
    for f in (lambda: tf.function(layer)(*FAILING), lambda: gradient(tf.function(layer), *FAILING)):
        with pytest.raises(tf.errors.UnknownError, match=r"SolveError: an instance is primal infeasible \(LC-SOLVE\)"):
            f()


def test_a_flagged_failure_is_nan_with_zero_derivatives_and_leaves_the_others_alone():
    layer = Layer(Problem(on_error="flag"))
    for f in (layer, tf.function(layer)):
        x = f(*FAILING)[0].numpy()
        assert np.isnan(x[1]).all()
        np.testing.assert_array_equal(x[0], layer(*POINT)[0])
        g = gradient(lambda *a, f=f: [tf.where(tf.math.is_nan(y), 0.0, y) for y in f(*a)], *map(tf.constant, FAILING))[3].numpy()
        assert np.isfinite(g).all() and not g[1].any() and g[0].any()


def test_solve_reports_and_refuses_symbols(layer):
    solution = Layer(Problem(on_error="flag")).solve(*FAILING)
    assert solution.status.tolist() == [Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.SOLVED]
    with pytest.raises((UnsupportedTransformError, tf.errors.OpError), match="symbolic"):
        tf.function(lambda *a: layer.solve(*a).outputs, autograph=False)(*TENSORS)


def test_copies_and_repr(layer):
    for other in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        np.testing.assert_array_equal(other(*TENSORS)[0], layer(*TENSORS)[0])
        assert other.name == layer.name
    assert "QP layer" in repr(layer) and "parameters (P" in repr(layer)


def test_xla_refuses_by_name(layer):
    with pytest.raises(tf.errors.InvalidArgumentError, match="layercompiler_runs_on_the_host_and_needs_jit_compile_False"):
        tf.function(layer, jit_compile=True)(*TENSORS)


def test_threads_give_the_serial_results(layer):
    graph = tf.function(layer, reduce_retracing=True)
    batches = [data(Problem(), k, (1 + k % 4,)) for k in range(16)]
    for f in (layer, graph):
        serial = [gradient(f, *b) for b in batches]
        with ThreadPoolExecutor(4) as pool:
            for a, b in zip(serial, pool.map(lambda b, f=f: gradient(f, *b), batches), strict=True):
                for u, v in zip(a, b, strict=True):
                    np.testing.assert_array_equal(u, v)
