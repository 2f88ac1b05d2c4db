"""Batches: every broadcasting pattern equals the instances one by one, and no instance sees its neighbors."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layercompiler as lc
from layercompiler.status import Status
from tests.plan import families

every_family = pytest.mark.parametrize("name", families.FAMILIES)


def spread(case, batch, seed=0, scale=0.05):
    """A batch of parameter values around the case's own, one direction per instance."""
    steps = [case.direction(1000 * seed + i) for i in range(int(np.prod(batch, dtype=int)))]
    return [
        np.stack([t + scale * s[j] for s in steps]).reshape(*batch, *np.shape(t)) if steps else np.zeros((*batch, *np.shape(t)))
        for j, t in enumerate(case.theta)
    ]


@every_family
def test_a_batch_is_its_instances_bitwise(name):
    """Outputs, gradients and second derivatives of any subset, in any order."""
    case, problem = families.case(name), families.compiled(name)
    theta = spread(case, (6,))
    whole = problem.evaluate(theta)
    assert whole.info.ok.all()
    g = [np.random.default_rng(0).standard_normal(o.shape) for o in whole.outputs]
    h = [0.1 * t for t in theta]
    order = np.array([4, 1, 5])
    some = problem.evaluate([t[order] for t in theta])
    part = lambda arrays: [a[order] for a in arrays]  # noqa: E731
    for mine, theirs in (
        (some.outputs, whole.outputs),
        (some.vjp(part(g)), whole.vjp(g)),
        (some.jvp(part(h)), whole.jvp(h)),
        (some.hvp(part(g), part(h)), whole.hvp(g, h)),
        (some.second(part(h), part(h)), whole.second(h, h)),
    ):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b[order])


@every_family
def test_one_bad_instance_leaves_the_others_bitwise_unchanged(name):
    """A NaN or an infinity in one instance; its outputs are NaN, all its derivatives zero."""
    case, problem = families.case(name), families.compiled(name, on_error="flag")
    theta = spread(case, (4,))
    good = problem.evaluate(theta)
    for k, bad in ((0, np.nan), (len(theta) - 1, np.inf), (0, -np.inf)):
        spoiled = [t.copy() for t in theta]
        spoiled[k][2] = bad
        evaluation = problem.evaluate(spoiled, options=lc.Options(check_domain=False))
        assert evaluation.info.status.tolist() == [0, 0, Status.NONFINITE_INPUT, 0]
        check_alone(evaluation, good, 2)


def check_alone(evaluation, good, i):
    """Instance i failed: NaN outputs and zero derivatives; the others are those of `good` to the bit."""
    rest = np.arange(len(good.z)) != i
    g = [np.random.default_rng(0).standard_normal(o.shape) for o in good.outputs]
    h = [0.1 * np.random.default_rng(1).standard_normal(s) for s in good.bound.values.shapes]
    assert all(np.isnan(o[i]).all() for o in evaluation.outputs if o[i].size) and np.isnan(evaluation.z[i]).all()
    for mine, theirs in (
        (evaluation.outputs, good.outputs),
        (evaluation.vjp(g), good.vjp(g)),
        (evaluation.jvp(h), good.jvp(h)),
        (evaluation.hvp(g, h), good.hvp(g, h)),
        (evaluation.second(h, h), good.second(h, h)),
    ):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a[rest], b[rest])
            assert mine is evaluation.outputs or not a[i].any()
    np.testing.assert_array_equal(evaluation.info.residual[rest], good.info.residual[rest])


def simple(**settings):
    """min |x - p|^2 + |x|_1 with a'x <= 1, lower <= x: infeasible where lower is too high."""
    a, p, lower = cp.Parameter(3, name="a"), cp.Parameter(3, name="p"), cp.Parameter(name="lower")
    x = cp.Variable(3, name="x")
    below = a @ x <= 1
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p) + cp.norm1(x) + cp.norm2(x)), [below, x >= lower])
    outputs = [x, below.dual_variables[0], problem.objective]
    return lc.compile(problem, parameters=[a, p, lower], variables=outputs, on_error="flag", **settings)


@pytest.mark.parametrize("solver", ["auto", "clarabel", "scs"])
def test_an_infeasible_instance_is_alone(solver):
    problem = simple(solver=solver)
    rng = np.random.default_rng(0)
    theta = [rng.uniform(0.5, 1, (4, 3)), rng.standard_normal((4, 3)), np.full(4, -0.5)]
    good = problem.evaluate(theta)
    assert good.info.ok.all()
    theta[2][1] = 3.0
    evaluation = problem.evaluate(theta)
    assert evaluation.info.status.tolist() == [0, Status.PRIMAL_INFEASIBLE, 0, 0]
    check_alone(evaluation, good, 1)


def test_a_gradient_shared_by_the_batch_leaves_bad_instances_out():
    problem = simple()
    rng = np.random.default_rng(0)
    a, p, lower = rng.uniform(0.5, 1, 3), rng.standard_normal((4, 3)), np.array([-0.5, 3.0, -0.5, -0.5])
    evaluation = problem.evaluate([a, p, lower])
    good = [problem.evaluate([a, p[i], lower[i]]) for i in (0, 2, 3)]
    g = [np.ones(o.shape) for o in evaluation.outputs]
    total = sum(e.vjp([np.ones(o.shape) for o in e.outputs])[0] for e in good)
    np.testing.assert_allclose(evaluation.vjp(g)[0], total, rtol=1e-12)


def test_an_instance_that_hits_a_limit_is_alone():
    """One refinement-free iteration budget that the easy instances meet and the hard one does not."""
    c, G = cp.Parameter(2, name="c"), cp.Parameter((3, 2), name="G")
    x = cp.Variable(2, name="x")
    objective = cp.Minimize(c @ x + cp.norm(G @ x) + cp.sum_squares(x) + cp.sum(cp.exp(x)))
    compiled = lc.compile(cp.Problem(objective), parameters=[c, G], on_error="flag")
    rng = np.random.default_rng(1)
    theta = [0.3 * rng.standard_normal((4, 2)), rng.standard_normal((4, 3, 2))]
    full = compiled.evaluate(theta).info.iterations
    theta[0][2] = [3e3, 40.0]
    limit = int(full.max()) + 1
    options = lc.Options(max_iterations=limit)
    easy = [t.copy() for t in theta]
    easy[0][2] = easy[0][1]
    good, evaluation = compiled.evaluate(easy, options=options), compiled.evaluate(theta, options=options)
    assert evaluation.info.status.tolist() == [0, 0, Status.ITERATION_LIMIT, 0] and good.info.ok.all()
    check_alone(evaluation, good, 2)


LEADS = st.sampled_from([(), (1,), (2,), (3, 1), (1, 2), (3, 2), (3, 1, 1)])


@given(st.lists(LEADS, min_size=3, max_size=3), st.integers(0, 99))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_broadcasting_is_that_of_numpy(leads, seed):
    """Any mix of leading dimensions: outputs of the broadcast batch, gradients of the shape of each argument, summed."""
    problem = simple()
    rng = np.random.default_rng(seed)
    theta = [rng.uniform(0.5, 1, (*leads[0], 3)), rng.standard_normal((*leads[1], 3)), rng.uniform(-1, -0.5, leads[2])]
    batch = np.broadcast_shapes(*leads)
    assert problem.batch_shape([t.shape for t in theta]) == batch
    evaluation = problem.evaluate(theta)
    wide = [np.broadcast_to(t, (*batch, *p.shape)) for t, p in zip(theta, problem.parameters, strict=True)]
    plain = problem.evaluate([np.array(t) for t in wide])
    h = [rng.standard_normal(t.shape) for t in theta]
    wide_h = [np.broadcast_to(d, (*batch, *p.shape)) for d, p in zip(h, problem.parameters, strict=True)]
    g = [rng.standard_normal(o.shape) for o in evaluation.outputs]
    for a, b in (
        (evaluation.outputs, plain.outputs),
        (evaluation.jvp(h), plain.jvp(wide_h)),
        (evaluation.second(h, h), plain.second(wide_h, wide_h)),
    ):
        for u, v, o in zip(a, b, problem.outputs, strict=True):
            assert u.shape == (*batch, *o.shape)
            np.testing.assert_allclose(u, v, rtol=0, atol=1e-9 * (1 + np.abs(v).max(initial=0.0)))
    for a, b in ((evaluation.vjp(g), plain.vjp(g)), (evaluation.hvp(g, h), plain.hvp(g, wide_h))):
        for u, v, t in zip(a, b, theta, strict=True):
            assert u.shape == t.shape
            np.testing.assert_allclose(u, summed(v, t.shape), rtol=0, atol=1e-9 * (1 + np.abs(v).sum()))


def summed(wide, shape):
    """Sum over the dimensions that broadcasting made."""
    wide = wide.sum(axis=tuple(range(wide.ndim - len(shape))))
    for axis, n in enumerate(shape):
        if n == 1 and wide.shape[axis] != 1:
            wide = wide.sum(axis=axis, keepdims=True)
    return wide


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_empty_batches(shape):
    for name in families.FAMILIES:
        case, problem = families.case(name), families.compiled(name)
        theta = [np.zeros((*shape, *np.shape(t))) for t in case.theta]
        theta[-1] = case.theta[-1]
        evaluation = problem.evaluate(theta)
        assert [o.shape for o in evaluation.outputs] == [(*shape, *o.shape) for o in problem.outputs]
        g, h = [np.zeros(o.shape) for o in evaluation.outputs], [np.zeros(np.shape(t)) for t in theta]
        for gradients in (evaluation.vjp(g), evaluation.hvp(g, h)):
            assert [a.shape for a in gradients] == [np.shape(t) for t in theta] and not any(a.any() for a in gradients)
        for tangents in (evaluation.jvp(h), evaluation.second(h, h)):
            assert [a.shape for a in tangents] == [o.shape for o in evaluation.outputs]


def test_dtypes_and_layouts_do_not_matter():
    problem = simple()
    rng = np.random.default_rng(0)
    theta = [rng.integers(1, 4, (5, 3)), rng.integers(-3, 4, (5, 3)), np.full(5, -1)]
    expected = problem.evaluate([t.astype(float) for t in theta]).outputs
    variants = [
        theta,
        [t.astype(np.float32) for t in theta],
        [np.asfortranarray(t) for t in theta],
        [np.repeat(t, 2, axis=0)[::2] for t in theta],
        [t.astype(np.int8) for t in theta],
        [t.tolist() for t in theta],
    ]
    for variant in variants:
        for a, b in zip(problem.evaluate(variant).outputs, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def processes(workers):
    """Processes that are not forked: another framework's threads may live in this one."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


@pytest.mark.parametrize("solver", ["clarabel", "scs"])
@pytest.mark.parametrize("executor", [ThreadPoolExecutor, processes])
def test_an_executor_of_the_user_changes_no_bit(solver, executor):
    problem = simple(solver=solver)
    rng = np.random.default_rng(0)
    theta = [rng.uniform(0.5, 1, (4, 3)), rng.standard_normal((4, 3)), np.array([-0.5, 3.0, -0.5, -0.5])]
    plain = problem.evaluate(theta)
    with executor(2) as pool:
        other = problem.evaluate(theta, options=lc.Options(executor=pool))
    np.testing.assert_array_equal(other.z, plain.z)
    np.testing.assert_array_equal(other.info.status, plain.info.status)
