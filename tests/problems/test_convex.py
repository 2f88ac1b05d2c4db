"""From a CVXPY problem to a cone program: parameters and variables of every attribute, outputs of every kind, what is refused."""

import warnings

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp

import layercompiler as lc
from layercompiler import errors
from tests.differences import check_derivatives


@pytest.fixture(autouse=True)
def quiet():
    """CVXPY comments on its own use of sparse and N-d leaves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Reading from a sparse|The problem has an expression with dimension|You are")
        yield


def symmetric(a):
    return (a + np.swapaxes(a, -1, -2)) / 2


# Each variable is projected onto its attribute: the nearest point to p is known in closed form.
LOWER = np.tril(np.ones((3, 3), bool))
VARIABLES = {
    "scalar": ((), {}, lambda p: p),
    "vector": ((3,), {}, lambda p: p),
    "matrix": ((2, 3), {}, lambda p: p),
    "column": ((3, 1), {}, lambda p: p),
    "N-d": ((2, 3, 2), {}, lambda p: p),
    "nonneg": ((3,), {"nonneg": True}, lambda p: np.maximum(p, 0)),
    "nonpos": ((2, 2), {"nonpos": True}, lambda p: np.minimum(p, 0)),
    "pos": ((3,), {"pos": True}, lambda p: np.maximum(p, 0)),
    "bounds": ((3,), {"bounds": [-0.5, np.array([0.2, 0.3, np.inf])]}, lambda p: np.clip(p, -0.5, [0.2, 0.3, np.inf])),
    "symmetric": ((3, 3), {"symmetric": True}, symmetric),
    "diag": ((3, 3), {"diag": True}, lambda p: p * np.eye(3)),
    "sparse": ((3, 3), {"sparsity": np.nonzero(LOWER)}, lambda p: p * LOWER),
    "PSD": ((4, 4), {"PSD": True}, lambda p: spectral(p, 1)),
    "NSD": ((3, 3), {"NSD": True}, lambda p: spectral(p, -1)),
}


def spectral(p, sign):
    w, Q = np.linalg.eigh(symmetric(p))
    return (Q * (sign * np.maximum(sign * w, 0))) @ Q.T


@pytest.mark.parametrize("kind", VARIABLES)
@pytest.mark.parametrize("maximize", [False, True])
def test_variables_of_every_attribute(kind, maximize):
    """The nearest point to p: values entry by entry in the user's shape, and derivatives by differences."""
    shape, attributes, expected = VARIABLES[kind]
    x, p = cp.Variable(shape, name="x", **attributes), cp.Parameter(shape, name="p")
    distance = cp.sum_squares(x - p)
    problem = cp.Problem(cp.Maximize(2 - distance) if maximize else cp.Minimize(distance - 2))
    compiled = lc.compile(problem, variables=[x, problem.objective])
    rng = np.random.default_rng(3)
    theta = rng.standard_normal((2, *shape))
    outputs = compiled.evaluate([theta]).outputs
    for i in range(2):
        nearest = expected(theta[i])
        np.testing.assert_allclose(outputs[0][i], nearest, atol=1e-9)
        np.testing.assert_allclose(outputs[1][i], (-1 if maximize else 1) * (np.sum((nearest - theta[i]) ** 2) - 2), atol=1e-9)
    check_derivatives(compiled, [theta[0]], [[rng.standard_normal(shape)] for _ in range(2)])


def test_variables_without_entries():
    x, e, p = cp.Variable(2, name="x"), cp.Variable(0, name="e"), cp.Parameter(2, name="p")
    evaluation = lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(x - p) + cp.sum(e))), variables=[e, x]).evaluate([np.ones((3, 2))])
    assert [o.shape for o in evaluation.outputs] == [(3, 0), (3, 2)]
    np.testing.assert_allclose(evaluation.vjp([np.zeros((3, 0)), np.ones((3, 2))])[0], 1.0, atol=1e-9)
    assert evaluation.jvp([np.ones((3, 2))])[0].shape == (3, 0)


PARAMETERS = {
    "scalar": ((), {}, lambda r: r.standard_normal()),
    "matrix": ((2, 3), {}, lambda r: r.standard_normal((2, 3))),
    "N-d": ((2, 1, 3), {}, lambda r: r.standard_normal((2, 1, 3))),
    "nonneg": ((3,), {"nonneg": True}, lambda r: r.uniform(0, 1, 3)),
    "symmetric": ((3, 3), {"symmetric": True}, lambda r: symmetric(r.standard_normal((3, 3)))),
    "PSD": ((3, 3), {"PSD": True}, lambda r: (lambda a: a @ a.T)(r.standard_normal((3, 3)))),
    "NSD": ((3, 3), {"NSD": True}, lambda r: (lambda a: -a @ a.T)(r.standard_normal((3, 3)))),
    "diag": ((3, 3), {"diag": True}, lambda r: np.diag(r.standard_normal(3))),
    "sparse": ((3, 3), {"sparsity": np.nonzero(LOWER)}, lambda r: r.standard_normal((3, 3)) * LOWER),
}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_parameters_of_every_attribute(kind):
    """x = p and y_ij = p_ij w_ij through the constraints, entry by entry; gradients lie in the tangents that the attribute leaves."""
    shape, attributes, draw = PARAMETERS[kind]
    rng = np.random.default_rng(5)
    p = cp.Parameter(shape, name="p", **attributes)
    x, y, w = cp.Variable(shape, name="x"), cp.Variable(shape, name="y"), rng.standard_normal(shape)
    constraints = [y == cp.multiply(w, p)]
    compiled = lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(x - p) + cp.sum_squares(y)), constraints), variables=[x, y])
    theta = np.asarray(draw(rng), dtype=float)
    evaluation = compiled.evaluate([theta])
    np.testing.assert_allclose(evaluation.outputs[0], theta, atol=1e-10)
    np.testing.assert_allclose(evaluation.outputs[1], w * theta, atol=1e-10)
    g = [rng.standard_normal(shape), rng.standard_normal(shape)]
    plain = g[0] + w * g[1]
    mask = {"diag": np.eye(3), "sparse": LOWER}.get(kind, 1.0)
    expected = symmetric(plain) if kind in ("symmetric", "PSD", "NSD") else plain * mask
    np.testing.assert_allclose(evaluation.vjp(g)[0], expected, atol=1e-9)
    h = np.asarray(draw(rng), dtype=float)
    np.testing.assert_allclose(evaluation.jvp([h])[1], w * h, atol=1e-9)


def test_a_symmetric_parameter_given_unsymmetrically_is_its_mean():
    """Without the check of domains both triangles are read, and each gets half of the gradient."""
    S, x = cp.Parameter((2, 2), symmetric=True, name="S"), cp.Variable((2, 2), name="x")
    compiled = lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(x - S))))
    evaluation = compiled.evaluate([np.array([[1.0, 2.0], [4.0, 5.0]])], options=lc.Options(check_domain=False))
    np.testing.assert_allclose(evaluation.outputs[0], [[1, 3], [3, 5]], atol=1e-10)
    np.testing.assert_allclose(evaluation.vjp([np.array([[0.0, 1], [0, 0]])])[0], [[0, 0.5], [0.5, 0]], atol=1e-10)


# Outputs -----------------------------------------------------------------------------------------------------------------


def test_outputs_come_in_the_order_and_as_often_as_asked():
    x, y, p = cp.Variable(2, name="x"), cp.Variable(name="y"), cp.Parameter(2, name="p")
    tie = y == cp.sum(x) + 1
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [tie])
    wanted = [y, problem.objective, x, tie.dual_variables[0], x, 2 * x[::-1] + y, cp.sum(x) + 3]
    compiled = lc.compile(problem, variables=wanted)
    evaluation = compiled.evaluate([np.array([1.0, 2.0])])
    expected = [4.0, 0.0, [1, 2], 0.0, [1, 2], [8, 6], 6.0]
    for mine, theirs in zip(evaluation.outputs, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-10)
    pulled = evaluation.vjp([np.ones(o.shape) for o in evaluation.outputs])[0]
    np.testing.assert_allclose(pulled, [1 + 1 + 1 + 2 + 2 + 1] * 2, atol=1e-9)
    assert [o.name for o in compiled.outputs][:3] == ["y", "value", "x"]
    default = lc.compile(problem)
    assert [o.name for o in default.outputs] == [v.name() for v in problem.variables()]


def test_expressions_may_hold_parameters_and_constants():
    x, p, k = cp.Variable(2, name="x"), cp.Parameter(2, name="p"), cp.Parameter(name="k", value=3.0)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - k * p)))
    compiled = lc.compile(problem, parameters=[p], variables=[cp.multiply(p, x) + k, p @ x])
    theta = np.array([1.0, -2.0])
    evaluation = compiled.evaluate([theta])
    np.testing.assert_allclose(evaluation.outputs[0], 3 * theta**2 + 3, atol=1e-10)
    np.testing.assert_allclose(evaluation.outputs[1], 15.0, atol=1e-10)
    np.testing.assert_allclose(evaluation.vjp([np.ones(2), None])[0], 6 * theta, atol=1e-9)


@pytest.mark.parametrize("geometric", [False, True])
def test_an_output_twice_counts_twice(geometric):
    """Values, variables and duals, in all derivatives."""
    p, x = cp.Parameter(2, name="p", pos=True), cp.Variable(2, name="x", pos=geometric)
    objective = cp.Minimize(cp.sum(x) + p[0] / x[0] if geometric else cp.sum_squares(x - p) + p[0] * x[1])
    tie = x[0] * x[1] == p[1] if geometric else cp.sum(x) == p[1]
    problem = cp.Problem(objective, [tie])
    once = [x, tie.dual_variables[0], problem.objective]
    theta, h = [np.array([0.7, 1.3])], [np.array([0.4, -0.3])]
    single = lc.compile(problem, variables=once).evaluate(theta)
    double = lc.compile(problem, variables=[*once, *once]).evaluate(theta)
    g = [np.array([1.0, -2.0]), np.array(0.6), np.array(1.5)]
    for a, b in ((double.vjp([*g, *g]), single.vjp(g)), (double.hvp([*g, *g], h), single.hvp(g, h))):
        np.testing.assert_allclose(a[0], 2 * b[0], rtol=1e-10)
    for a, b in ((double.jvp(h), single.jvp(h)), (double.second(h, h), single.second(h, h))):
        np.testing.assert_allclose(
            np.concatenate([np.ravel(e) for e in a]), np.tile(np.concatenate([np.ravel(e) for e in b]), 2), rtol=1e-10
        )


@pytest.mark.parametrize("maximize", [False, True])
def test_the_optimal_value_has_the_sign_and_the_constants_of_the_user(maximize):
    x, a, b = cp.Variable(name="x"), cp.Parameter(name="a"), cp.Parameter(name="b")
    cost = 2 * cp.square(x - a) + b + 7
    problem = cp.Problem(cp.Maximize(-cost) if maximize else cp.Minimize(cost), [x >= a + 1])
    compiled = lc.compile(problem, parameters=[a, b], variables=[problem.objective])
    sign = -1 if maximize else 1
    evaluation = compiled.evaluate([np.array([0.5, -2.0]), np.array(3.0)])
    np.testing.assert_allclose(evaluation.outputs[0], sign * 12.0, atol=1e-9)
    g_a, g_b = evaluation.vjp([np.ones(2)])
    np.testing.assert_allclose(g_a, 0.0, atol=1e-9)
    np.testing.assert_allclose(g_b, 2.0 * sign, atol=1e-9)
    np.testing.assert_allclose(compiled.solve(np.array(0.5), np.array(3.0)).value, sign * 12.0, atol=1e-9)


def test_a_feasibility_problem():
    x, p = cp.Variable(2, name="x"), cp.Parameter(2, name="p")
    compiled = lc.compile(cp.Problem(cp.Minimize(0), [x == p]))
    evaluation = compiled.evaluate([np.array([1.0, 2.0])])
    np.testing.assert_allclose(evaluation.outputs[0], [1, 2], atol=1e-9)
    np.testing.assert_allclose(evaluation.vjp([np.ones(2)])[0], 1.0, atol=1e-9)


def test_no_parameters_at_all():
    x = cp.Variable(2, name="x")
    compiled = lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(x - 1))))
    evaluation = compiled.evaluate([])
    assert compiled.parameters == () and evaluation.vjp([np.ones(2)]) == ()
    np.testing.assert_allclose(evaluation.outputs[0], 1.0, atol=1e-10)
    np.testing.assert_array_equal(evaluation.jvp([])[0], 0.0)


def test_parameters_that_change_nothing_have_zero_gradients():
    x, p, q = cp.Variable(2, name="x"), cp.Parameter(2, name="p"), cp.Parameter(name="q")
    compiled = lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(x - p) + 0 * q)), parameters=[q, p])
    g_q, g_p = compiled.evaluate([np.array(5.0), np.ones(2)]).vjp([np.ones(2)])
    assert g_q == 0.0 and g_q.shape == ()
    np.testing.assert_allclose(g_p, 1.0, atol=1e-9)


@pytest.mark.parametrize("order", ["C", "F"])
def test_sparse_and_transposed_constants(order):
    rng = np.random.default_rng(0)
    M = rng.standard_normal((4, 3))
    x, p = cp.Variable(3, name="x"), cp.Parameter(4, name="p")
    dense = cp.Problem(cp.Minimize(cp.sum_squares(np.asarray(M, order=order) @ x - p)))
    sparse = cp.Problem(cp.Minimize(cp.sum_squares(sp.csc_array(M) @ x - p)))
    theta = rng.standard_normal(4)
    for problem in (dense, sparse):
        evaluation = lc.compile(problem).evaluate([theta])
        np.testing.assert_allclose(evaluation.outputs[0], np.linalg.lstsq(M, theta, rcond=None)[0], atol=1e-9)
        np.testing.assert_allclose(evaluation.vjp([np.ones(3)])[0], np.linalg.pinv(M).T @ np.ones(3), atol=1e-9)


# Quadratic forms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shifted", [False, True])
def test_parametric_quadratic_forms(shifted):
    """quad_form(x, P) with a parameter P, also at a shifted point y == x - c: kept as a quadratic objective, its gradient symmetric."""
    P, c, q = cp.Parameter((3, 3), PSD=True, name="P"), cp.Parameter(3, name="c"), cp.Parameter(3, name="q")
    x, y = cp.Variable(3, name="x"), cp.Variable(3, name="y")
    problem = cp.Problem(cp.Minimize(cp.quad_form(y if shifted else x, P) + q @ x), [y == x - c] if shifted else [])
    compiled = lc.compile(problem, parameters=[P, c, q] if shifted else [P, q], variables=[x])
    rng = np.random.default_rng(1)
    L, b, a = rng.standard_normal((3, 3)), rng.standard_normal(3), rng.standard_normal(3)
    M = L @ L.T + np.eye(3)
    theta = [M, a, b] if shifted else [M, b]
    evaluation = compiled.evaluate(theta)
    solution = (a if shifted else 0) - np.linalg.solve(M, b) / 2
    np.testing.assert_allclose(evaluation.outputs[0], solution, atol=1e-10)
    w = rng.standard_normal(3)
    gradients = evaluation.vjp([w])
    pulled = np.linalg.solve(M, w)
    np.testing.assert_allclose(gradients[0], symmetric(np.outer(pulled, np.linalg.solve(M, b) / 2)), atol=1e-9)
    np.testing.assert_allclose(gradients[-1], -pulled / 2, atol=1e-9)
    if shifted:
        np.testing.assert_allclose(gradients[1], w, atol=1e-9)
    np.testing.assert_array_equal(gradients[0], gradients[0].T)


def test_quadratic_forms_at_a_parametric_point():
    """quad_form(x - c, M) with a constant M, which CVXPY takes on other paths only."""
    rng = np.random.default_rng(2)
    L = rng.standard_normal((3, 3))
    M = L @ L.T + np.eye(3)
    x, c = cp.Variable(3, name="x"), cp.Parameter(3, name="c")
    compiled = lc.compile(cp.Problem(cp.Minimize(cp.quad_form(x - c, M) + cp.sum(x))))
    for theta in (np.zeros(3), rng.standard_normal(3)):
        np.testing.assert_allclose(compiled.evaluate([theta]).outputs[0], theta - np.linalg.solve(M, np.ones(3)) / 2, atol=1e-10)


# What is refused ---------------------------------------------------------------------------------------------------------


def refused():
    x, y, p, q = cp.Variable(2, name="x"), cp.Variable(2, name="y"), cp.Parameter(2, name="p"), cp.Parameter(2, name="q")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x <= q])
    other = cp.Problem(cp.Minimize(cp.sum_squares(y)))
    stray = cp.Parameter(name="stray")
    return {
        "a parameter of another problem": (problem, {"parameters": [p, q, stray]}, "'stray' is listed but does not occur"),
        "no parameter": (problem, {"parameters": [p, x]}, "something else than a parameter"),
        "a parameter twice": (problem, {"parameters": [p, q, p]}, "listed twice"),
        "a constant without a value": (problem, {"parameters": [p]}, "'q' is not listed and has no value"),
        "a variable of another problem": (problem, {"variables": [y]}, "'y' is listed as an output but does not occur"),
        "an objective of another problem": (problem, {"variables": [other.objective]}, "objective of another problem"),
        "a convex expression": (problem, {"variables": [cp.norm(x)]}, "not an affine function"),
        "an expression in another variable": (problem, {"variables": [x + y]}, "not an affine function"),
        "a constraint": (problem, {"variables": [problem.constraints[0]]}, "neither a variable, a dual variable"),
    }


@pytest.mark.parametrize("what", refused())
def test_what_does_not_belong_is_named(what):
    problem, arguments, says = refused()[what]
    with pytest.raises(errors.BuildError, match=says):
        lc.compile(problem, **arguments)


@pytest.mark.parametrize("thing", [None, 3, "problem", cp.Variable(), [cp.Problem(cp.Minimize(0))]])
def test_what_is_no_problem(thing):
    with pytest.raises(errors.NotAProblemError):
        lc.compile(thing)
