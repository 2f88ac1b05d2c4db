"""Values, duals and optimal values against CVXPY: its data, its optimality conditions, its own solutions."""

import warnings

import cvxpy as cp
import numpy as np
import pytest

from layercompiler.errors import UnsupportedConeError
from tests.plan import families, optimality

every_family = pytest.mark.parametrize("name", families.FAMILIES)


@pytest.fixture(autouse=True)
def quiet():
    """CVXPY comments on its own inaccurate solutions and sparse values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def set_values(case):
    for p, t in zip(case.parameters, case.theta, strict=True):
        p.value = t


@every_family
def test_optimality_conditions_of_the_data_that_cvxpy_makes(name):
    """Our primal-dual point, in the program that CVXPY builds from the parameter values for another solver."""
    case = families.case(name)
    evaluation = families.solve(name)
    set_values(case)
    problem = canonical_problem(name)
    assert optimality.violation(problem, evaluation.x[0], evaluation.y[0], gp=name == "geometric") < 1e-11


def canonical_problem(name):
    """The problem with the expressions among its outputs given variables of their own, as the compiler does."""
    case = families.case(name)
    leaves = [o for o in case.outputs if not isinstance(o, (cp.Variable, cp.Minimize, cp.Maximize))]
    extra = [cp.Variable(o.shape, pos=name == "geometric") == o for o in leaves]
    return cp.Problem(case.problem.objective, [*case.problem.constraints, *extra])


@every_family
def test_values_duals_and_optimal_value_are_those_of_cvxpy(name):
    case, evaluation = families.case(name), families.solve(name)
    case.solve(gp=name == "geometric")
    for output, ours in zip(case.outputs, evaluation.outputs, strict=True):
        theirs = output.value
        theirs = theirs.toarray() if hasattr(theirs, "toarray") else np.asarray(theirs)
        np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=0, atol=3e-6)
    solution = families.compiled(name).solve(*case.theta)
    assert abs(solution.value - case.problem.value) <= 1e-8 * (1 + abs(case.problem.value))


@every_family
def test_the_optimal_value_has_its_envelope_gradient(name):
    """d value / d theta = d Lagrangian / d theta at the solution: the derivative of <y, Ax - b> and of the objective, data by data."""
    case, problem, evaluation = families.case(name), families.compiled(name), families.solve(name)
    k = next(i for i, o in enumerate(problem.outputs) if o.source == "value")
    g = [np.ones(()) if i == k else None for i in range(len(case.outputs))]
    gradient = evaluation.vjp(g)
    h = case.direction(3)
    set_values(case)
    step = 1e-6
    ends = []
    for sign in (1, -1):
        for p, t, d in zip(case.parameters, case.theta, h, strict=True):
            p._value = np.asarray(t + sign * step * d)
        P, q, A, b, _ = optimality.data(canonical_problem(name), gp=name == "geometric")
        x, y = evaluation.x[0], evaluation.y[0]
        ends.append(x @ P @ x / 2 + q @ x + y @ (A @ x - b))
    slope = (ends[0] - ends[1]) / (2 * step)
    sign = -1 if type(case.problem.objective).__name__ == "Maximize" else 1
    value = evaluation.outputs[k] if name == "geometric" else 1.0
    got = sum(float(np.sum(a * d)) for a, d in zip(gradient, h, strict=True))
    assert abs(got - sign * value * slope) <= 1e-6 * (1 + abs(got))


@every_family
@pytest.mark.parametrize("solver", ["clarabel", "scs", "ecos", "diffcp"])
def test_engines_agree(name, solver):
    """Every engine that accepts the problem ends, after refinement, at the same point with the same gradient."""
    case, evaluation = families.case(name), families.solve(name)
    pytest.importorskip(solver)
    try:
        problem = families.compiled(name, solver=solver)
    except UnsupportedConeError:
        pytest.skip("not its cones")
    other = problem.evaluate(case.theta)
    assert other.info.engine == solver
    g = case.cotangents(evaluation, 0)
    for a, b in ((other.outputs, evaluation.outputs), (other.vjp(g), evaluation.vjp(g))):
        for u, v in zip(a, b, strict=True):
            np.testing.assert_allclose(u, v, rtol=0, atol=1e-8 * (1 + np.abs(v).max(initial=0.0)))
