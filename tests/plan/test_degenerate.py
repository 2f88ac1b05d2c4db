"""Degenerate solutions: duplicated and dependent rows, weakly active constraints, solutions that are not unique.

Where the primal solution is smooth its derivative is exact, whatever the multipliers; gradients of the constraints are then those
of the multiplier of least norm, which shares evenly among equal rows. The flags say which case it is.
"""

import cvxpy as cp
import numpy as np
import pytest

import layercompiler as lc
from layercompiler import errors
from tests.differences import directional, flat

SOLVERS = ["auto", "clarabel"]


def duplicated(form, copies=2, solver="auto"):
    """A program in n = 8 variables with its active inequalities, and one equality, written `copies` times; q, b and h are parameters."""
    n, rng = 8, np.random.default_rng(3)
    E, G, x0 = rng.standard_normal((3, n)), rng.standard_normal((6, n)), rng.standard_normal(n)
    L = rng.standard_normal((n, n))
    q, x = cp.Parameter(n, name="q"), cp.Variable(n, name="x")
    b, h = cp.Parameter(3, name="b"), cp.Parameter(6, name="h")
    constraints = [E @ x == b] + [E[0] @ x == b[0]] * (copies - 1) + [G @ x <= h] * copies
    if form == "qp":
        objective = cp.sum_squares(L @ x) / 2 + 0.25 * cp.sum_squares(x) + q @ x
    else:
        objective = 0.1 * q @ x + cp.norm2(L @ x)
    theta = [5 * rng.standard_normal(n), E @ x0, G @ x0 + 0.1]
    return lc.compile(cp.Problem(cp.Minimize(objective), constraints), parameters=[q, b, h], variables=[x], solver=solver), theta


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("form", ["qp", "socp"])
def test_duplicated_rows_change_neither_solution_nor_derivative(form, solver):
    """The gradient of a right-hand side is the same whether its row stands once or twice, since the copies share it evenly."""
    once, theta = duplicated(form, 1, solver)
    twice, _ = duplicated(form, 2, solver)
    rng = np.random.default_rng(0)
    g, h = [rng.standard_normal(8)], [rng.standard_normal(t.shape) for t in theta]
    one, two = once.evaluate(theta), twice.evaluate(theta)
    assert two.info.ok and two.info.residual < 1e-11 and two.info.unique and not one.info.degenerate
    np.testing.assert_allclose(two.outputs[0], one.outputs[0], atol=1e-10)
    for a, b in zip([*two.vjp(g), *two.jvp(h)], [*one.vjp(g), *one.jvp(h)], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7 * (1 + np.abs(b).max()))
    for a, b in zip([*two.hvp(g, h), *two.second(h, h)], [*one.hvp(g, h), *one.second(h, h)], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * (1 + np.abs(b).max()))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("form", ["qp", "socp"])
def test_derivatives_at_duplicated_rows_are_those_of_differences(form, solver):
    compiled, theta = duplicated(form, 2, solver)
    evaluation = compiled.evaluate(theta)
    rng = np.random.default_rng(1)
    h = [rng.standard_normal(t.shape) for t in theta]
    expected, error = directional(lambda a: flat(compiled.evaluate(a).outputs), theta, h)
    tangent = evaluation.jvp(h)[0]
    assert np.linalg.norm(tangent - expected) <= 1e-6 * np.linalg.norm(expected) + 3 * np.linalg.norm(error)
    w = rng.standard_normal(8)
    assert abs(sum(np.sum(a * b) for a, b in zip(evaluation.vjp([w]), h, strict=True)) - w @ tangent) < 1e-8


def separate(rows):
    """min |x - p|^2 with x_0 = b written `rows` times, each with its own right-hand side."""
    p, b, x = cp.Parameter(3, name="p"), cp.Parameter(rows, name="b"), cp.Variable(3, name="x")
    constraints = [x[0] == b[i] for i in range(rows)]
    duals = [c.dual_variables[0] for c in constraints]
    return lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), constraints), parameters=[p, b], variables=[x, *duals])


def test_copies_of_an_equality_share_multiplier_and_gradient_evenly():
    """The gradient is the one of least norm, dx_0/db_i = 1 / rows; that it is one of many is flagged, that x is unique is not."""
    for rows in (1, 2, 5):
        evaluation = separate(rows).evaluate([np.array([1.0, 2.0, 3.0]), np.full(rows, 0.5)])
        assert evaluation.info.ok and evaluation.info.unique and evaluation.info.degenerate == (rows > 1)
        np.testing.assert_allclose(evaluation.outputs[0], [0.5, 2, 3], atol=1e-11)
        np.testing.assert_allclose(np.stack(evaluation.outputs[1:]), 1.0 / rows, atol=1e-6)  # the engine's
        p, b = evaluation.vjp([np.array([1.0, 0, 0]), *[None] * rows])
        np.testing.assert_allclose(b, 1.0 / rows, atol=1e-9)
        np.testing.assert_allclose(p, 0.0, atol=1e-9)
        # A tangent that keeps the rows consistent moves x as it must.
        np.testing.assert_allclose(evaluation.jvp([None, np.ones(rows)])[0], [1, 0, 0], atol=1e-9)


def test_equalities_that_contradict_are_infeasible():
    with pytest.raises(errors.SolveError, match="infeasible"):
        separate(2).evaluate([np.zeros(3), np.array([0.5, 0.6])])


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_vertex_where_forty_rows_meet(solver):
    """An LP in 20 variables: the vertex does not move with the costs, and moves with the right-hand sides as the rows allow."""
    rng = np.random.default_rng(3)
    A, corner = rng.standard_normal((40, 20)), rng.standard_normal(20)
    c, b, x = cp.Parameter(20, name="c"), cp.Parameter(40, name="b"), cp.Variable(20, name="x")
    compiled = lc.compile(cp.Problem(cp.Minimize(c @ x), [A @ x <= b]), parameters=[c, b], variables=[x], solver=solver)
    evaluation = compiled.evaluate([-A.T @ rng.uniform(0.1, 1, 40), A @ corner])
    assert evaluation.info.ok and evaluation.info.unique and evaluation.info.degenerate
    np.testing.assert_allclose(evaluation.outputs[0], corner, atol=1e-8)
    np.testing.assert_allclose(evaluation.jvp([rng.standard_normal(20), None])[0], 0.0, atol=1e-6)
    move = rng.standard_normal(20)
    np.testing.assert_allclose(evaluation.jvp([None, A @ move])[0], move, atol=1e-6)
    w = rng.standard_normal(20)
    g_c, g_b = evaluation.vjp([w])
    np.testing.assert_allclose(g_c, 0.0, atol=1e-6)
    np.testing.assert_allclose(A.T @ g_b, w, atol=1e-6)


def test_weakly_active_constraints_are_flagged_and_get_a_one_sided_derivative():
    """min (x - p)^2 with x >= 0 at p = 0: the derivative is between 0 and 1, forward and reverse agree, and it is exact beside."""
    p, x = cp.Parameter(3, name="p"), cp.Variable(3, name="x")
    compiled = lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]))
    evaluation = compiled.evaluate([np.array([[0.0, 1.0, -1.0], [1e-4, 1.0, -1.0]])])
    assert evaluation.info.ok.all() and evaluation.info.unique.all()
    assert evaluation.info.degenerate.tolist() == [True, False]
    J = np.stack([evaluation.jvp([np.broadcast_to(e, (2, 3))])[0] for e in np.eye(3)], axis=-1)
    np.testing.assert_allclose(J[1], np.diag([1, 1, 0]), atol=1e-9)
    np.testing.assert_allclose(J[0] - np.diag([J[0, 0, 0], 1, 0]), 0, atol=1e-9)
    assert -1e-9 <= J[0, 0, 0] <= 1 + 1e-9
    pulled = np.stack([evaluation.vjp([np.broadcast_to(e, (2, 3))])[0] for e in np.eye(3)], axis=-1)
    np.testing.assert_allclose(pulled, J.swapaxes(1, 2), atol=1e-9)


KINKS = {
    "second order: the tip": lambda x, p: cp.sum_squares(x - p) + 2 * cp.norm2(x),
    "projection onto a ball, at its surface": lambda x, p: (cp.sum_squares(x - p), [cp.norm2(x) <= 1]),
    "an absolute value at its corner": lambda x, p: cp.sum_squares(x - p) + 2 * cp.norm1(x),
}


@pytest.mark.parametrize("name", KINKS)
def test_kinks_are_flagged(name):
    """At |p| = 1 each solution map bends; on both sides it is smooth."""
    p, x = cp.Parameter(3, name="p"), cp.Variable(3, name="x")
    made = KINKS[name](x, p)
    objective, constraints = made if isinstance(made, tuple) else (made, [])
    compiled = lc.compile(cp.Problem(cp.Minimize(objective), constraints), parameters=[p])
    on = np.array([1.0, 0, 0]) if "absolute" in name else np.array([0.6, 0.8, 0])
    on = np.array([1.0, 0.4, 3.0]) if "absolute" in name else on
    evaluation = compiled.evaluate([np.stack([on, 0.9 * on, 1.1 * on])])
    assert evaluation.info.ok.all() and evaluation.info.unique.all()
    assert evaluation.info.degenerate.tolist() == [True, False, False]
    J = np.stack([evaluation.jvp([np.broadcast_to(e, (3, 3))])[0] for e in np.eye(3)], axis=-1)
    assert np.isfinite(J).all() and np.abs(J).max() <= 1 + 1e-6


def test_a_face_of_solutions_is_not_unique():
    """min c'x over a box and sum(x) = 1 with equal costs: the primal solution is one of many, and says so."""
    c, x = cp.Parameter(3, name="c"), cp.Variable(3, name="x")
    compiled = lc.compile(cp.Problem(cp.Minimize(c @ x), [x >= 0, cp.sum(x) == 1]))
    evaluation = compiled.evaluate([np.array([[1.0, 1.0, 2.0], [1.0, 1.5, 2.0]])])
    assert evaluation.info.ok.all() and evaluation.info.unique.tolist() == [False, True]
    x = evaluation.outputs[0]
    assert abs(x[0, :2].sum() - 1) < 1e-8 and abs(x[0, 2]) < 1e-8
    np.testing.assert_allclose(x[1], [1, 0, 0], atol=1e-9)
    g = evaluation.vjp([np.ones((2, 3))])[0]
    assert np.isfinite(g).all() and np.abs(g).max() < 1e-6  # the sum is 1 whatever the costs
    np.testing.assert_allclose(evaluation.jvp([np.ones((2, 3))])[0], 0.0, atol=1e-6)


def test_a_variable_that_nothing_decides():
    """A direction that neither objective nor constraints see: not unique if it is an output, of no interest if it is not."""
    p, x = cp.Parameter(name="p"), cp.Variable(2, name="x")
    problem = cp.Problem(cp.Minimize(cp.square(x[0] - p)), [x[1] >= -1, x[1] <= 1])
    assert not lc.compile(problem).evaluate([np.array(3.0)]).info.unique
    first = lc.compile(problem, variables=[x[0]]).evaluate([np.array(3.0)])
    assert first.info.ok and first.info.unique and not first.info.degenerate
    np.testing.assert_allclose(first.vjp([np.ones(())])[0], 1.0, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
def test_flags_do_not_depend_on_units(scale):
    """A face of solutions, and a vertex where three rows of the plane meet, in rows and variables of any size."""
    c, x, y = cp.Parameter(2, name="c"), cp.Variable(2, name="x"), cp.Variable(2, name="y")
    rows = np.array([[1.0, 0], [0, 1], [1, 1]])
    face = lc.compile(cp.Problem(cp.Minimize(c @ x / scale), [scale * x >= 0, cp.sum(x) == scale, y == 2 * x]), variables=[x])
    info = face.evaluate([np.array([[1.0, 1.0], [1.0, 1.5]])]).info
    assert info.ok.all() and info.unique.tolist() == [False, True]
    corner = lc.compile(cp.Problem(cp.Minimize(c @ x), [scale * rows @ x >= scale * np.array([1.0, 1, 2])]), variables=[x])
    info = corner.evaluate([np.array([1.0, 1.2])]).info
    assert info.ok and info.unique and not info.degenerate


def test_a_multiplier_that_is_one_of_many_matters_where_it_is_an_output():
    p, x = cp.Parameter(2, name="p"), cp.Variable(2, name="x")
    ties = [x[0] == 0.5, x[0] == 0.5]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), ties)
    plain = lc.compile(problem, variables=[x]).evaluate([np.ones(2)])
    dual = lc.compile(problem, variables=[x, ties[0].dual_variables[0]]).evaluate([np.ones(2)])
    assert plain.info.unique and dual.info.unique and dual.info.degenerate and not plain.info.degenerate


def test_rank_deficient_least_squares():
    """A with equal columns: x is one of many, A x and its gradient are not."""
    rng = np.random.default_rng(0)
    b, x = cp.Parameter(6, name="b"), cp.Variable(3, name="x")
    M = rng.standard_normal((6, 2))
    A = np.c_[M, M[:, :1]]
    fit = A @ x
    problem = cp.Problem(cp.Minimize(cp.sum_squares(fit - b)))
    evaluation = lc.compile(problem, variables=[fit]).evaluate([rng.standard_normal(6)])
    hat = M @ np.linalg.pinv(M)
    assert evaluation.info.ok and evaluation.info.unique
    np.testing.assert_allclose(evaluation.outputs[0], hat @ evaluation.bound.values.flat[0][0], atol=1e-8)
    w = rng.standard_normal(6)
    np.testing.assert_allclose(evaluation.vjp([w])[0], hat @ w, atol=1e-7)
    assert not lc.compile(problem, variables=[x]).evaluate([rng.standard_normal(6)]).info.unique


def test_semidefinite_programs_at_points_of_low_rank():
    """Projection onto the PSD cone of matrices with equal and with zero eigenvalues."""
    C, X = cp.Parameter((4, 4), symmetric=True, name="C"), cp.Variable((4, 4), PSD=True, name="X")
    compiled = lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(X - C))), parameters=[C])
    Q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))
    spectra = np.array([[2.0, 2.0, -1.0, -1.0], [1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0], [2.0, 1.0, 0.0, -1.0]])
    M = np.einsum("ij,bj,kj->bik", Q, spectra, Q)
    evaluation = compiled.evaluate([M])
    assert evaluation.info.ok.all()
    np.testing.assert_allclose(evaluation.outputs[0], np.einsum("ij,bj,kj->bik", Q, np.maximum(spectra, 0), Q), atol=1e-8)
    assert evaluation.info.degenerate.tolist() == [False, False, False, True]
    H = np.random.default_rng(1).standard_normal((4, 4))
    H = H + H.T
    J = evaluation.jvp([np.broadcast_to(H, (4, 4, 4))])[0]
    R = Q.T @ H @ Q
    R[2:, 2:] = 0
    R[:2, 2:] *= 2 / 3
    R[2:, :2] *= 2 / 3
    np.testing.assert_allclose(J[0], Q @ R @ Q.T, atol=1e-8)
    np.testing.assert_allclose(J[1], H, atol=1e-8)
    np.testing.assert_allclose(J[2], 0, atol=1e-8)


# Scale -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("rows", "objective", "units"), [(1e6, 1, 1), (1e-6, 1, 1), (1, 1e8, 1), (1, 1e-6, 1), (1, 1, 1e5), (1e4, 1e4, 1e-4)]
)
def test_units_do_not_matter(rows, objective, units, solver):
    """Scaled constraints, objective and variables: the same solution in other units, and the same gradients by the chain rule."""
    n, rng = 4, np.random.default_rng(2)
    L, G = rng.standard_normal((n, n)), rng.standard_normal((5, n))
    R = np.diag(rows ** rng.uniform(-1, 1, 5))

    def build(R, objective, units):
        q, h, x = cp.Parameter(n, name="q"), cp.Parameter(5, name="h"), cp.Variable(n, name="x")
        cost = objective * (cp.sum_squares(L @ x / units) + q @ x / units + cp.norm2(x / units))
        return lc.compile(cp.Problem(cp.Minimize(cost), [R @ (G @ x / units) <= R @ h]), parameters=[q, h], solver=solver)

    theta = [3 * rng.standard_normal(n), rng.uniform(0.1, 1, 5)]
    plain, scaled = build(np.eye(5), 1, 1).evaluate(theta), build(R, objective, units).evaluate(theta)
    assert scaled.info.ok
    np.testing.assert_allclose(scaled.outputs[0] / units, plain.outputs[0], atol=1e-8)
    w = rng.standard_normal(n)
    for a, b in zip(scaled.vjp([w]), plain.vjp([w]), strict=True):
        np.testing.assert_allclose(a / units, b, atol=1e-6 * (1 + np.abs(b).max()))
