"""Statuses, limits, warm starts, options: what becomes of each instance, and who decides."""

import copy
import pickle
import time

import cvxpy as cp
import numpy as np
import pytest

import layercompiler as lc
from layercompiler import errors, kernels
from layercompiler.solvers import Engine, engine
from layercompiler.status import Status
from tests.plan import families

ENGINES = ["auto", "lanes", "clarabel", "scs"]


def box(**settings):
    """min c'x over a ball of radius r, with a'x = 1 and x_0 <= top: infeasible for small r, unbounded for none."""
    c, r, top = cp.Parameter(3, name="c"), cp.Parameter(name="r"), cp.Parameter(name="top")
    x = cp.Variable(3, name="x")
    problem = cp.Problem(cp.Minimize(c @ x), [cp.norm(x) <= r, cp.sum(x) == 1, x[0] <= top])
    return lc.compile(problem, parameters=[c, r, top], **settings)


def ray(**settings):
    """min c'x + exp(-x_0) over x >= 0: unbounded where an entry of c is negative."""
    c = cp.Parameter(3, name="c")
    x = cp.Variable(3, name="x")
    problem = cp.Problem(cp.Minimize(c @ x + cp.exp(-x[0])), [x >= 0])
    return lc.compile(problem, parameters=[c], **settings)


@pytest.mark.parametrize("solver", ENGINES)
def test_infeasible_and_unbounded_instances_are_told_apart(solver):
    c = np.array([1.0, -1.0, 0.5])
    status = box(on_error="flag", solver=solver).evaluate([c, np.array([1.0, 0.3, 1.0]), np.array([0.5, 0.5, -3.0])]).info.status
    assert status.tolist() == [Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.PRIMAL_INFEASIBLE]
    c = np.array([[0.5, 1, 1], [0.5, -1, 1], [-1.0, 1, 1]])
    status = ray(on_error="flag", solver=solver).evaluate([c]).info.status
    assert status.tolist() == [Status.SOLVED, Status.DUAL_INFEASIBLE, Status.DUAL_INFEASIBLE]


def test_semidefinite_programs_too():
    C, t = cp.Parameter((4, 4), symmetric=True, name="C"), cp.Parameter(name="t")
    X = cp.Variable((4, 4), PSD=True, name="X")
    compiled = lc.compile(cp.Problem(cp.Minimize(cp.trace(C @ X)), [X[0, 0] == t, X[0, 1] >= 1]), parameters=[C, t], on_error="flag")
    plus = np.eye(4)
    minus = np.diag([1.0, 1.0, 1.0, -1.0])
    status = compiled.evaluate([np.stack([plus, plus, minus]), np.array([1.0, -1.0, 1.0])]).info.status
    assert status.tolist() == [Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE]


class Liar(Engine):
    """Claims what it is told to claim, at a point that is wrong."""

    name = "liar"
    cones = frozenset({"zero", "nonnegative", "second_order", "exponential"})
    claim = Status.SOLVED

    def solve_one(self, data, tolerance, options, deadline):
        s = self.structure
        return np.full(s.n, 7.0), np.full(s.m, -3.0), np.full(s.m, 2.0), self.claim, 1


@pytest.mark.parametrize("claim", Status)
def test_no_claim_of_an_engine_is_believed(claim, monkeypatch):
    """Whatever it says at a nonsensical point, the instance ends solved, by another engine, at the true solution."""
    monkeypatch.setitem(engine.__globals__["_registry"], "liar", type("Said", (Liar,), {"claim": claim}))
    theta = [np.array([1.0, -1.0, 0.5]), np.array(1.0), np.array(0.5)]
    expected = box().evaluate(theta)
    got = box(solver="liar").evaluate(theta)
    assert got.info.ok and got.info.residual < 1e-11
    np.testing.assert_allclose(got.outputs[0], expected.outputs[0], atol=1e-9)


def test_failures_are_raised_with_the_whole_solution():
    c = np.array([1.0, -1.0, 0.5])
    r = np.array([[1.0, 0.3], [1.0, 1.0]])
    with pytest.raises(errors.SolveError, match=r"1 of 4 instances not solved \(infeasible\)") as caught:
        box().evaluate([c, r, np.array(0.5)])
    error = pickle.loads(pickle.dumps(caught.value))
    for e in (caught.value, error):
        assert e.indices == ((0, 1),)
        assert e.solution.status.tolist() == [[0, 1], [0, 0]]
        assert np.isnan(e.solution.outputs[0][0, 1]).all() and np.isfinite(e.solution.outputs[0][1]).all()
    alone = box().solve(c, np.array(1.0), np.array(0.5))
    np.testing.assert_array_equal(caught.value.solution.outputs[0][1, 0], alone.outputs[0])
    with pytest.raises(errors.SolveError, match="infeasible"):
        box().evaluate([c, np.array(0.3), np.array(0.5)])


@pytest.mark.parametrize("solver", ENGINES)
def test_iteration_limit(solver):
    problem = box(on_error="flag", solver=solver)
    theta = [np.array([1.0, -1.0, 0.5]), np.array(1.0), np.array(0.5)]
    info = problem.evaluate(theta, options=lc.Options(max_iterations=1)).info
    assert info.status == Status.ITERATION_LIMIT and info.iterations == 1 and info.residual > 1e-8


@pytest.mark.parametrize("solver", ["auto", "clarabel", "scs"])
def test_time_limit(solver):
    """It counts from the start of the call, whatever the engine; a limit already passed solves nothing."""
    A, b = cp.Parameter((90, 60), name="A"), cp.Parameter(90, name="b")
    x = cp.Variable(60, name="x")
    objective = cp.Minimize(cp.norm1(A @ x - b) + cp.norm2(x) + cp.sum(cp.logistic(A @ x)))
    problem = lc.compile(cp.Problem(objective), parameters=[A, b], solver=solver, on_error="flag")
    rng = np.random.default_rng(0)
    theta = [rng.standard_normal((60, 90, 60)), rng.standard_normal((60, 90))]
    began = time.perf_counter()
    status = problem.evaluate(theta, options=lc.Options(time_limit=0.05)).info.status
    assert time.perf_counter() - began < 1.5
    assert set(status.tolist()) <= {Status.SOLVED, Status.TIME_LIMIT} and (status == Status.TIME_LIMIT).any()
    status = problem.evaluate(theta, options=lc.Options(time_limit=1e-9)).info.status
    assert (status == Status.TIME_LIMIT).all()


def test_solved_means_the_tolerance_that_was_asked_for():
    problem = box(on_error="flag", solver="scs")
    theta = [np.array([1.0, -1.0, 0.5]), np.array(1.0), np.array(0.5)]
    rough = lc.Options(tolerance=1e-2, engine_tolerance=1e-3, refinements=0)
    info = problem.evaluate(theta, options=rough).info
    assert info.ok and 1e-12 < info.residual <= 1e-2 and info.refinements == 0
    strict = lc.Options(tolerance=1e-15, refinements=0, max_iterations=40)
    assert not problem.evaluate(theta, options=strict).info.ok


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_warm_start_at_the_solution_needs_no_engine(name):
    case, problem, evaluation = families.case(name), families.compiled(name), families.solve(name)
    for start in (evaluation.z, problem.solve(*case.theta).warm_start, problem.solve(*case.theta)):
        again = problem.evaluate(case.theta, warm_start=start)
        assert again.info.engine == "warm start" and again.info.iterations == 0
        for a, b in zip(again.outputs, evaluation.outputs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * (1 + np.abs(b).max(initial=0.0)))


def test_a_warm_start_cannot_change_the_solution():
    """Wrong shapes, NaN, and far points: the same answer as from nothing."""
    case, problem, evaluation = families.case("socp"), families.compiled("socp"), families.solve("socp")
    rng = np.random.default_rng(0)
    for start in (np.full(problem.zsize, np.nan), np.zeros(3), np.zeros((7, problem.zsize)), 1e6 * rng.standard_normal(problem.zsize)):
        again = problem.evaluate(case.theta, warm_start=start)
        assert again.info.ok
        for a, b in zip(again.outputs, evaluation.outputs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)


def test_a_warm_start_serves_the_instances_it_fits():
    case, problem = families.case("least_squares"), families.compiled("least_squares")
    rng = np.random.default_rng(0)
    theta = [np.stack([t + 0.1 * rng.standard_normal(t.shape) for _ in range(3)]) for t in case.theta]
    z = problem.evaluate(theta).z.copy()
    z[1] = np.nan
    again = problem.evaluate(theta, warm_start=z)
    assert again.info.engine.tolist() == ["warm start", "dense_qp" if kernels.available() else "clarabel", "warm start"]
    np.testing.assert_allclose(again.outputs[0], problem.evaluate(theta).outputs[0], atol=1e-10)


@pytest.mark.parametrize(
    "bad",
    [
        {"tolerance": 0.0},
        {"engine_tolerance": -1.0},
        {"time_limit": 0.0},
        {"time_limit": float("nan")},
        {"max_iterations": 0},
        {"max_iterations": 2.5},
        {"workers": 0},
        {"refinements": -1},
        {"no_such_option": 1},
    ],
)
def test_options_out_of_range(bad):
    with pytest.raises(errors.OptionError, match=next(iter(bad))):
        lc.Options.of(bad)


def test_unknown_and_unfit_engines():
    with pytest.raises(errors.OptionError, match="unknown solver 'gurobbi'"):
        box(solver="gurobbi")
    pytest.importorskip("ecos")
    with pytest.raises(errors.UnsupportedConeError, match="quadratic"):
        families.compiled("qp", solver="ecos")
    assert families.compiled("lp", solver="ECOS").search.attempts[0][0].name == "ecos"


def test_without_the_kernels_everything_works_on_other_engines(monkeypatch):
    """An install without a compiler: Clarabel solves, numpy refines and differentiates, to the same numbers."""
    case, evaluation = families.case("socp"), families.solve("socp")
    monkeypatch.setattr("layercompiler.kernels.available", lambda: False)
    problem = lc.compile(case.problem, parameters=case.parameters, variables=case.outputs)
    other = problem.evaluate(case.theta)
    assert other.info.engine == "clarabel" and other.info.residual < 1e-12
    g = case.cotangents(evaluation, 0)
    for a, b in ((other.outputs, evaluation.outputs), (other.vjp(g), evaluation.vjp(g))):
        for u, v in zip(a, b, strict=True):
            np.testing.assert_allclose(u, v, rtol=0, atol=1e-9)
    with pytest.raises(errors.MissingDependencyError, match=r"C\+\+17 compiler"):
        lc.compile(case.problem, parameters=case.parameters, solver="lanes")


@pytest.mark.parametrize("name", families.FAMILIES)
def test_copies_and_pickles_give_the_same_bits(name):
    case, problem, evaluation = families.case(name), families.compiled(name), families.solve(name)
    g = case.cotangents(evaluation, 0)
    for twin in (copy.deepcopy(problem), copy.copy(problem), pickle.loads(pickle.dumps(problem))):
        other = twin.evaluate(case.theta)
        assert twin.fingerprint == problem.fingerprint and twin.describe() == problem.describe()
        assert all(np.array_equal(a, b) for a, b in zip(other.outputs, evaluation.outputs, strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(other.vjp(g), evaluation.vjp(g), strict=True))


@pytest.mark.parametrize("name", families.FAMILIES)
def test_restore_marks_what_failed(name):
    case, problem = families.case(name), families.compiled(name)
    z = np.stack([families.solve(name).z] * 2)
    z[1, 0] = np.nan
    restored = problem.restore([np.stack([t, t]) for t in case.theta], z)
    assert restored.info.ok.tolist() == [True, False] and all(np.isnan(o[1]).all() for o in restored.outputs if o[1].size)
    gradients = restored.vjp([np.ones(o.shape) for o in restored.outputs])
    assert all(g[0].any() and not g[1].any() for g in gradients)


def test_texts_say_what_was_compiled():
    problem = families.compiled("socp")
    assert "second_order" in repr(problem) and "A (6, 4)" in repr(problem)
    for word in ("problem", "canonicalize", "presolve", "cones", "solver", "derivative", "1e-08"):
        assert word in problem.report()
    assert "9 defined variables substituted" in families.compiled("least_squares").report()
    assert "1 PSD groups in their eigenbasis" in families.compiled("psd").report()


def test_flags_are_found_out_when_asked_for(monkeypatch):
    x, c = cp.Variable(2), cp.Parameter(2)
    compiled = lc.compile(cp.Problem(cp.Minimize(c @ x), [x >= 0, x <= 1]), parameters=[c], variables=[x], solver="lanes")
    asked = []
    flags = type(compiled)._flags
    monkeypatch.setattr(type(compiled), "_flags", lambda self, *args: asked.append(1) or flags(self, *args))
    info = compiled.evaluate([np.array([[1.0, -1.0], [1.0, 0.0]])]).info
    assert not asked and info.ok.all()
    assert pickle.loads(pickle.dumps(info)).unique.tolist() == info.unique.tolist() == [True, False] and asked == [1]
    assert copy.deepcopy(info).degenerate.tolist() == [False, True]
    with pytest.raises(AttributeError, match="nothing"):
        _ = info.nothing
