"""Expressions of the CVXPY DSL: values, derivatives and patterns, in four frameworks."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import warnings
from functools import cache

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp

from layercompiler import arrays
from layercompiler.expressions import Builder
from layercompiler.expressions.jacobian import SparseJacobian
from layercompiler.problems.nonlinear.translate import RULES, Translator
from tests.expressions.cases import CASES

HOST = arrays.get("numpy")
_WRAPS = {"conj", "real", "nonneg_wrap", "nonpos_wrap", "psd_wrap", "nsd_wrap", "hermitian_wrap", "skew_symmetric_wrap", "symmetric_wrap"}
_ALIASES = {"Pnorm", "GeoMean", "Power", "conv"}  # the same rule as PnormApprox, GeoMeanApprox, PowerApprox, convolve


def _value(leaf, rng):
    if leaf.ndim == 2 and leaf.is_symmetric() and leaf.size > 1:
        square = rng.uniform(0.1, 1.0, leaf.shape)
        return square @ square.T + np.eye(len(square))
    return rng.uniform(0.1, 1.0, leaf.shape)


@cache
def translated(name):
    """(expression, graph, variables, parameters, values)."""
    rng = np.random.default_rng(len(name) + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expression = CASES[name]()
    variables, parameters = expression.variables(), expression.parameters()
    builder, leaves = Builder(), {}
    for k, leaf in enumerate([*variables, *parameters]):
        leaves[leaf.id] = builder.input(k, leaf.shape)
        leaf.value = _value(leaf, rng)
    graph = builder.graph([Translator(builder, leaves).node(expression)])
    return expression, graph, variables, parameters, [np.asarray(leaf.value) for leaf in [*variables, *parameters]]


@cache
def jacobian(name):
    _, graph, variables, _, _ = translated(name)
    return SparseJacobian.of(graph, [v.shape for v in variables])


def _reference(expression):
    value = expression.value
    return np.asarray(value.toarray() if sp.issparse(value) else value).reshape(expression.shape)


def test_there_are_enough_cases_and_every_rule_is_used():
    assert len(CASES) >= 100
    used = set()
    for name in CASES:
        stack = [translated(name)[0]]
        while stack:
            e = stack.pop()
            used.add(type(e).__name__)
            stack.extend(e.args)
    assert set(RULES) - used - _WRAPS - _ALIASES == set()


@pytest.fixture(params=["numpy", "torch", "jax", "tensorflow"])
def xp(request):
    pytest.importorskip(request.param)
    if request.param == "jax":
        import jax

        with jax.enable_x64(True):
            yield arrays.get("jax")
    else:
        yield arrays.get(request.param)


@pytest.mark.parametrize("name", CASES)
def test_value_is_that_of_cvxpy_alone_and_in_batches(name, xp):
    expression, graph, _, _, values = translated(name)
    want = _reference(expression)
    scale = max(1.0, np.abs(want).max(initial=0.0))
    (one,) = graph.evaluate(xp, [xp.new(v) for v in values])
    assert tuple(one.shape) == want.shape
    np.testing.assert_allclose(xp.numpy(one), want, rtol=0, atol=1e-12 * scale)

    stretch = 1 + 0.1 * np.arange(3)
    for batched in ([True] * len(values), [k % 2 == 0 for k in range(len(values))]):
        some = [np.stack([v * s for s in stretch]) if b else v for v, b in zip(values, batched, strict=True)]
        (many,) = graph.evaluate(xp, [xp.new(v) for v in some])
        for i, s in enumerate(stretch):
            (each,) = graph.evaluate(xp, [xp.new(v * s if b else v) for v, b in zip(values, batched, strict=True)])
            np.testing.assert_allclose(xp.numpy(many)[i], xp.numpy(each), rtol=0, atol=1e-12 * scale)


def differences(f, z):
    """Jacobian by central differences of order four, with the error that two step sizes suggest."""
    found = []
    for h in (2e-3, 1e-3):
        columns = [(8 * (f(z + h * u) - f(z - h * u)) - (f(z + 2 * h * u) - f(z - 2 * h * u))) / (12 * h) for u in np.eye(len(z))]
        found.append(np.stack(columns, axis=1))
    coarse, fine = found
    return fine + (fine - coarse) / 15, np.abs(fine - coarse).max(initial=0.0)


@cache
def reference_jacobian(name):
    _, _, variables, _, values = translated(name)
    J = jacobian(name)
    fixed = values[len(variables) :]
    z = np.concatenate([v.reshape(-1) for v in values[: len(variables)]])
    return (z, fixed, *differences(lambda at: J.residual(HOST, at, fixed), z))


def _checked_names():
    """All in torch; in jax and TensorFlow, which take a second each to compile, some by default and the others with the slow tests."""
    for framework in ("torch", "jax", "tensorflow"):
        for k, name in enumerate(CASES):
            slow = framework != "torch" and k % 8 != 0
            yield pytest.param(framework, name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(("xp", "name"), list(_checked_names()), indirect=["xp"])
def test_jacobian_is_that_of_differences(xp, name):
    J = jacobian(name)
    z, fixed, want, error = reference_jacobian(name)
    entries = xp.numpy(J.values(xp, xp.new(z), [xp.new(v) for v in fixed]))
    dense = np.zeros(J.shape)
    dense[J.rows, J.columns] = entries
    scale = max(1.0, np.abs(want).max(initial=0.0))
    assert error < 1e-5 * scale
    np.testing.assert_allclose(dense, want, rtol=0, atol=max(1e-8 * scale, error))
    np.testing.assert_allclose(dense[want == 0], 0, atol=1e-10 * scale)


@pytest.mark.parametrize("name", CASES)
def test_pattern_holds_every_nonzero_of_the_dense_jacobian(name):
    xp = arrays.get("torch")
    J = jacobian(name)
    z, fixed, _, _ = reference_jacobian(name)
    inside = np.zeros(J.shape, bool)
    inside[J.rows, J.columns] = True
    rng = np.random.default_rng(0)
    for _ in range(2):
        at = z * rng.uniform(0.8, 1.2, z.shape)
        dense = xp.numpy(xp.jacobian(lambda v: J.residual(xp, v, [xp.new(f) for f in fixed]), xp.new(at)))
        assert not np.any((dense != 0) & ~inside)


def test_colors_share_no_row():
    for name in CASES:
        J = jacobian(name)
        pairs = J.rows * (J.colors.max(initial=0) + 1) + J.colors[J.columns]
        assert len(np.unique(pairs)) == len(pairs)


def test_unicycle_of_sixty_states_needs_five_colors():
    T, dt = 60, 0.1
    states, controls = cp.Variable((T, 3)), cp.Variable((T - 1, 2))
    v, turn, heading = controls[:, 0], controls[:, 1], states[:-1, 2]
    steps = cp.vstack([cp.multiply(v, cp.nlp.cos(heading)), cp.multiply(v, cp.nlp.sin(heading)), turn]).T
    builder = Builder()
    leaves = {states.id: builder.input(0, states.shape), controls.id: builder.input(1, controls.shape)}
    root = Translator(builder, leaves).node(states[1:] - states[:-1] - dt * steps)
    J = SparseJacobian.of(builder.graph([root]), [states.shape, controls.shape])
    assert J.shape == (177, 298)
    assert len(J.rows) == 649
    assert J.colors.max() + 1 <= 6


def test_equal_subexpressions_are_one_node():
    x = cp.Variable(3)
    builder = Builder()
    once = Translator(builder, {x.id: builder.input(0, (3,))})
    a, b = cp.exp(x), cp.exp(x)
    assert once.node(a) == once.node(b)
    graph = builder.graph([once.node(cp.multiply(a, b) + a)])
    assert sum(node.operation == "exp" for node in graph.nodes) == 1


def test_sums_written_in_long_loops_do_not_recurse():
    x = cp.Variable(3000)
    total = x[0]
    for k in range(1, 1500):
        total = cp.nlp.sin(total) + x[k]
    builder = Builder()
    graph = builder.graph([Translator(builder, {x.id: builder.input(0, (3000,))}).node(total)])
    z = np.random.default_rng(0).standard_normal(3000)
    want = z[0]
    for k in range(1, 1500):
        want = np.sin(want) + z[k]
    assert float(graph.evaluate(HOST, [z])[0]) == pytest.approx(want, abs=1e-12)
