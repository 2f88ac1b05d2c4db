"""Right where existing layers are wrong: on each of these a published layer returns a wrong gradient or a wrong number, in silence."""

import cvxpy as cp
import numpy as np
import pytest

import layercompiler as lc
from layercompiler import errors
from layercompiler.status import Status
from tests.corpus.case import direction_like
from tests.corpus.problems import REG
from tests.corpus.stored import names
from tests.differences import check_derivatives, directional

# Ill-conditioned quadratic programs: an unchecked iterative derivative is off by 100 % at condition 1e3 ------------------


@pytest.mark.parametrize("condition", [1.0, 10.0, 100.0, 1000.0])
def test_gradient_of_an_ill_conditioned_qp(condition):
    n, m = 50, 25
    rng = np.random.default_rng(0)
    U = np.linalg.qr(rng.standard_normal((n, n)))[0]
    root = (U * np.logspace(-np.log10(condition) / 2, np.log10(condition) / 2, n)).T
    q, G = rng.standard_normal(n), rng.standard_normal((m, n)) / np.sqrt(n)
    h = G @ rng.standard_normal(n) + rng.uniform(0.1, 1, m)
    w = np.random.default_rng(3).standard_normal(n)

    x = cp.Variable(n)
    Q_, q_, G_, h_ = cp.Parameter((n, n)), cp.Parameter(n), cp.Parameter((m, n)), cp.Parameter(m)
    inequality = G_ @ x <= h_
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(Q_ @ x) + q_ @ x), [inequality])
    evaluation = lc.compile(problem, parameters=[Q_, q_, G_, h_], variables=[x, inequality.dual_variables[0]]).evaluate([root, q, G, h])
    solution, dual = evaluation.outputs
    dQ, dq, dG, dh = evaluation.vjp([w, None])

    # The active set is clear here; its KKT system gives the gradient in closed form.
    active = dual > 1e-7
    P, Ga = root.T @ root, G[active]
    k = active.sum()
    u, t = np.split(np.linalg.solve(np.block([[P, Ga.T], [Ga, np.zeros((k, k))]]), np.r_[w, np.zeros(k)]), [n])
    stationarity = P @ solution + q + G.T @ dual
    assert np.linalg.norm(stationarity) <= 1e-9 * np.linalg.norm(q)
    for got, expected in [
        (dq, -u),
        (dh[active], t),
        (dQ, -root @ (np.outer(u, solution) + np.outer(solution, u))),
        (dG[active], -np.outer(dual[active], u) - np.outer(t, solution)),
    ]:
        assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)
    assert np.linalg.norm(dh[~active]) <= 1e-9


# Semidefinite cones of order four and more: a peer permutes the dual wrongly there --------------------------------------


def simplex(z):
    u = -np.sort(-z)
    excess = np.cumsum(u) - 1
    k = np.flatnonzero(u - excess / np.arange(1, len(z) + 1) > 0)[-1] + 1
    return np.maximum(z - excess[k - 1] / k, 0)


def spectraplex(C):
    """The matrix of trace one, PSD, nearest to -C / 2."""
    w, Q = np.linalg.eigh(-C / 2)
    return (Q * simplex(w)) @ Q.T


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 8, 10, 12])
def test_gradient_of_a_semidefinite_program_in_closed_form(n):
    rng = np.random.default_rng(n)
    C = rng.standard_normal((n, n))
    C = C + C.T
    C_, X = cp.Parameter((n, n), symmetric=True), cp.Variable((n, n), symmetric=True)
    compiled = lc.compile(cp.Problem(cp.Minimize(cp.trace(C_ @ X) + cp.sum_squares(X)), [X >> 0, cp.trace(X) == 1]))
    evaluation = compiled.evaluate([C])
    np.testing.assert_allclose(evaluation.outputs[0], spectraplex(C), atol=1e-9)
    assert evaluation.info.residual <= 1e-11
    for _ in range(3):
        D = direction_like(rng, C_, C)
        expected, error = directional(lambda a: np.stack([spectraplex(c).ravel() for c in a[0]]), [C], [D])
        (tangent,) = evaluation.jvp([D])
        assert np.linalg.norm(tangent.ravel() - expected) <= 1e-6 * np.linalg.norm(expected) + 3 * np.linalg.norm(error)
        W = rng.standard_normal((n, n))
        (gradient,) = evaluation.vjp([W])
        np.testing.assert_allclose(gradient, gradient.T, atol=1e-12)
        assert abs(np.sum(gradient * D) - np.sum(W * tangent)) <= 1e-9 * np.linalg.norm(tangent) * n


@pytest.mark.parametrize("n", [4, 7, 12])
def test_gradient_and_dual_of_a_correlation_matrix(n):
    rng = np.random.default_rng(n)
    C_, X = cp.Parameter((n, n), symmetric=True), cp.Variable((n, n), symmetric=True)
    constraints = [X >> 0, cp.diag(X) == 1]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C_)), constraints)
    compiled = lc.compile(problem, variables=[X, *(c.dual_variables[0] for c in constraints)])
    C = direction_like(rng, C_, np.ones((n, n)))
    evaluation = check_derivatives(compiled, [C], [[direction_like(rng, C_, C)] for _ in range(2)])
    solution, psd_dual, diagonal = evaluation.outputs
    stationarity = 2 * (solution - C) - psd_dual + np.diag(diagonal)
    assert np.abs(stationarity).max() <= 1e-9
    assert abs(np.sum(solution * psd_dual)) <= 1e-9


# Plain bounds, which CVXPY hands over apart: a peer drops them -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["x >= 0", "simplex", "x >= 0.1", "x <= 0.5", "2 x >= 0", "variable bounds", "nonneg variable"])
def test_bounds_are_kept(kind):
    x = cp.Variable(3, **{"variable bounds": {"bounds": [-0.2, 0.7]}, "nonneg variable": {"nonneg": True}}.get(kind, {}))
    constraints = {
        "x >= 0": [x >= 0],
        "simplex": [x >= 0, cp.sum(x) == 1],
        "x >= 0.1": [x >= 0.1],
        "x <= 0.5": [x <= 0.5],
        "2 x >= 0": [2 * x >= 0],
    }.get(kind, [])
    z = cp.Parameter(3, value=[-1, 0.3, 2])
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - z)), constraints)
    compiled = lc.compile(problem, parameters=[z], variables=[x])
    (got,) = compiled.solve(z.value).outputs
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    np.testing.assert_allclose(got, x.value, atol=1e-8)
    check_derivatives(compiled, [z.value], [[np.array([0.3, -0.4, 0.5])]])


# Failures that others return as plausible numbers ------------------------------------------------------------------------


def test_an_infeasible_instance_is_named():
    x, lower = cp.Variable(2), cp.Parameter(2, name="lower")
    compiled = lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(x)), [x >= lower, x <= 1]))
    with pytest.raises(errors.SolveError) as caught:
        compiled.solve(np.array([[0.5, 0.5], [2.0, 2.0]]))
    assert caught.value.indices == ((1,),)
    assert list(caught.value.solution.status) == [Status.SOLVED, Status.PRIMAL_INFEASIBLE]
    np.testing.assert_allclose(caught.value.solution.outputs[0][0], [0.5, 0.5], atol=1e-9)


def test_an_unbounded_instance_is_named():
    y, c = cp.Variable(2), cp.Parameter(2)
    compiled = lc.compile(cp.Problem(cp.Minimize(c @ y), [y >= 0]), on_error="flag")
    assert compiled.solve(np.array([-1.0, 1.0])).status == Status.DUAL_INFEASIBLE


def test_a_nan_and_an_iteration_limit_are_named():
    A, b, y = cp.Parameter((3, 2)), cp.Parameter(3), cp.Variable(2)
    compiled = lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(A @ y - b)), [y >= 0]), parameters=[A, b], on_error="flag")
    rng = np.random.default_rng(0)
    a, values = rng.standard_normal((3, 2)), rng.standard_normal(3)
    assert compiled.solve(a, np.r_[np.nan, values[1:]]).status == Status.NONFINITE_INPUT
    limited = compiled.solve(a, values, options={"max_iterations": 1})
    assert limited.status == Status.ITERATION_LIMIT or limited.residual <= 1e-8


# Power cones, whose backward pass a peer does not have -------------------------------------------------------------------


def test_gradient_of_power_cones_in_closed_form():
    exponents = np.array([0.3, 0.6])
    x, z, c = cp.Variable(2), cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Maximize(cp.sum(z)), [cp.PowCone3D(x, np.ones(2), z, exponents), x <= c])
    evaluation = lc.compile(problem, parameters=[c], variables=[z]).evaluate([np.array([2.0, 3.0])])
    np.testing.assert_allclose(evaluation.outputs[0], np.array([2.0, 3.0]) ** exponents, rtol=1e-9)
    (gradient,) = evaluation.vjp([np.ones(2)])
    np.testing.assert_allclose(gradient, exponents * np.array([2.0, 3.0]) ** (exponents - 1), rtol=1e-8)


@pytest.mark.parametrize("exponents", [(0.5,), (0.05, 0.95), (0.2, 0.33, 0.5, 0.77), (0.01,)])
def test_gradient_of_many_power_cones(exponents):
    n = len(exponents)
    rng = np.random.default_rng(n)
    X, z, price, budget = cp.Variable((2, n)), cp.Variable(n), cp.Parameter(n), cp.Parameter()
    cone = cp.PowCone3D(X[0], X[1], z, np.array(exponents))
    problem = cp.Problem(cp.Maximize(price @ z - 0.1 * cp.sum_squares(X)), [cone, cp.sum(X) <= budget])
    compiled = lc.compile(problem, parameters=[price, budget], variables=[X, z, *cone.dual_variables])
    theta = [rng.uniform(1, 2, n), np.array(0.7 * n)]
    check_derivatives(compiled, theta, [[rng.standard_normal(n), np.array(0.5)], [np.zeros(n), np.array(1.0)]], rtol=1e-5)


# Duplicated rows: the multipliers are not unique, the solution and its derivative are ------------------------------------


@pytest.mark.parametrize("which", ["inequality", "equality"])
def test_gradient_with_duplicated_active_rows(which):
    y, a, x = cp.Parameter(4), cp.Parameter(4), cp.Variable(4)
    row = (lambda: a @ x <= 0.1) if which == "inequality" else (lambda: a @ x == 0.1)
    compiled = lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [row(), row(), row()]), parameters=[y, a], variables=[x])
    rng = np.random.default_rng(2)
    y_value, a_value = rng.standard_normal(4), rng.standard_normal(4)
    a_value *= np.sign(a_value @ y_value)
    assert a_value @ y_value > 0.2
    evaluation = compiled.evaluate([y_value, a_value])
    shift = (a_value @ y_value - 0.1) / (a_value @ a_value)
    np.testing.assert_allclose(evaluation.outputs[0], y_value - shift * a_value, atol=1e-9)
    assert evaluation.info.degenerate
    w = rng.standard_normal(4)
    dy, da = evaluation.vjp([w])
    unit = a_value / np.linalg.norm(a_value)
    np.testing.assert_allclose(dy, w - unit * (unit @ w), atol=1e-7)
    projected = (w @ a_value) / (a_value @ a_value)
    np.testing.assert_allclose(da, -shift * w - projected * (y_value - 2 * shift * a_value), atol=1e-7)


# Duals of every cone as outputs ------------------------------------------------------------------------------------------


def equality_and_inequality(rng):
    p, x = cp.Parameter(4), cp.Variable(4)
    constraints = [cp.sum(x) == 1, x >= 0, x[:2] <= 0.3]
    return cp.Problem(cp.Minimize(cp.sum_squares(x - p)), constraints), [p], x, constraints, [np.array([0.9, 0.25, -0.5, 0.1])]


def second_order(rng):
    p, x, t = cp.Parameter(4), cp.Variable(3), cp.Variable()
    constraints = [cp.SOC(t, x), t + cp.sum(x) <= p[3]]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p[:3]) + cp.square(t) - t), constraints)
    return problem, [p], x, constraints, [np.array([1.0, 0.5, -0.3, 0.8])]


def norm_bound(rng):
    p, r, x = cp.Parameter(3), cp.Parameter(), cp.Variable(3)
    constraints = [cp.norm2(x) <= r]
    return cp.Problem(cp.Minimize(cp.sum_squares(x - p)), constraints), [p, r], x, constraints, [np.array([1.0, 0.5, -0.3]), np.array(0.6)]


def semidefinite(rng):
    p, X = cp.Parameter((5, 5), symmetric=True), cp.Variable((5, 5), symmetric=True)
    constraints = [X >> 0, cp.trace(X) == 2]
    M = rng.standard_normal((5, 5))
    return cp.Problem(cp.Minimize(cp.sum_squares(X - p)), constraints), [p], X, constraints, [M + M.T]


def exponential(rng):
    p, x = cp.Parameter(3), cp.Variable(3)
    constraints = [cp.ExpCone(x[0], x[1], x[2]), cp.sum(x) == p[0]]
    return cp.Problem(cp.Minimize(cp.sum_squares(x - p)), constraints), [p], x, constraints, [np.array([1.0, 0.7, 0.2])]


def power(rng):
    p, x = cp.Parameter(3), cp.Variable(3)
    constraints = [cp.PowCone3D(x[0], x[1], x[2], 0.35), cp.sum(x) <= 2.5]
    return cp.Problem(cp.Minimize(cp.sum_squares(x - p)), constraints), [p], x, constraints, [np.array([0.5, 0.7, 1.6])]


@pytest.mark.parametrize("build", [equality_and_inequality, second_order, norm_bound, semidefinite, exponential, power])
def test_dual_outputs_and_their_gradients(build):
    rng = np.random.default_rng(4)
    problem, parameters, x, constraints, theta = build(rng)
    duals = [d for c in constraints for d in c.dual_variables]
    compiled = lc.compile(problem, parameters=parameters, variables=[x, *duals, problem.objective])
    directions = [[direction_like(rng, p, t) for p, t in zip(parameters, theta, strict=True)] for _ in range(3)]
    evaluation = check_derivatives(compiled, theta, directions)
    for p, t in zip(parameters, theta, strict=True):
        p.value = t
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    np.testing.assert_allclose(evaluation.outputs[0], x.value, atol=1e-5)  # CVXPY's own solution at 1e-9: it checks signs and order
    for got, dual in zip(evaluation.outputs[1:-1], duals, strict=True):
        np.testing.assert_allclose(np.ravel(got), np.ravel(dual.value), atol=1e-5)
    np.testing.assert_allclose(evaluation.outputs[-1], problem.value, atol=1e-8)


# Random draws of the corpus: no silent wrong gradient --------------------------------------------------------------------


def gradient_errors(name, draws, seed):
    """Relative error of the derivative along a random direction: (solved draws, errors of the smooth ones, those that say "not unique")."""
    entry = REG[name]
    case = entry.build(entry.small, 0)
    compiled = lc.compile(case.problem, parameters=case.parameters, variables=case.variables, on_error="flag")
    rng = np.random.default_rng([seed, len(name)])
    solved, off, warned = 0, [], []
    for _ in range(draws):
        theta = [np.asarray(t, dtype=float) for t in case.sample(rng)]
        evaluation = compiled.evaluate(theta)
        if not evaluation.info.ok:
            continue
        solved += 1
        direction = [direction_like(rng, p, t) for p, t in zip(case.parameters, theta, strict=True)]
        w = [rng.standard_normal(o.shape) for o in evaluation.outputs]
        pulled = sum(float(np.sum(g * d)) for g, d in zip(evaluation.vjp(w), direction, strict=True))

        def loss(arrays, w=w):
            outputs = compiled.evaluate(arrays).outputs
            return sum(np.sum((o * a).reshape(len(o), -1), axis=1) for o, a in zip(outputs, w, strict=True))[:, None]

        expected, error = directional(loss, theta, direction, steps=(4e-3, 1e-3, 2.5e-4, 6e-5))
        scale = max(abs(expected[0]), 1e-3 * np.sqrt(sum(np.sum(d * d) for d in direction)))
        if error[0] <= 1e-3 * scale:
            off.append(abs(pulled - expected[0]) / scale)
            warned.append(not evaluation.info.unique)
    return solved, np.array(off), np.array(warned)


@pytest.mark.parametrize("name", names("small"))
def test_no_silent_wrong_gradient_in_a_few_draws(name):
    solved, off, warned = gradient_errors(name, 3, seed=0)
    assert solved == 3
    assert len(off) >= 1
    assert off[~warned].max(initial=0.0) <= 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", names("small"))
def test_no_silent_wrong_gradient_in_a_thousand_draws(name):
    """Only a draw whose info says that its solution is one of many may differ, and few do."""
    solved, off, warned = gradient_errors(name, 25, seed=1)
    assert solved == 25
    assert len(off) >= 18
    assert off[~warned].max(initial=0.0) <= 0.1
    assert np.sum(off > 0.1) <= 3
