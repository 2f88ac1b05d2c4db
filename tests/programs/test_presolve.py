"""Presolve changes nothing: values, duals and derivatives of every order are those of the program as written."""

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layercompiler as lc
from layercompiler.programs import presolve
from layercompiler.programs.cone import Data
from tests.plan import families


def untouched(monkeypatch):
    """Substitute nothing from here on."""
    monkeypatch.setattr(presolve, "_profitable", lambda *_: np.zeros(0, np.intp))


def rank_one(rng):
    """Fill that pays and fill that does not, coefficients other than one, a term linear in the defined variable."""
    a, b, w = cp.Parameter((3, 4), name="a"), cp.Parameter(3, name="b"), cp.Parameter(6, nonneg=True, name="w")
    x, r, u = cp.Variable(4, name="x"), cp.Variable(3, name="r"), cp.Variable(6, name="u")
    link, ties = -2 * r == a @ x - b, u == 3 * x[np.arange(6) % 4] + 1
    objective = cp.Minimize(cp.sum_squares(r) + 2 * cp.sum(r) + cp.square(u[0]) + w @ cp.square(u) + cp.sum_squares(x))
    constraints = [link, ties, x >= -0.1]
    outputs = [x, r, u, link.dual_variables[0], ties.dual_variables[0], constraints[2].dual_variables[0]]
    problem = cp.Problem(objective, constraints)
    theta = [rng.standard_normal((3, 4)), rng.standard_normal(3), rng.uniform(0, 1, 6)]
    return families.Case(problem, [a, b, w], [*outputs, problem.objective], theta)


CASES = {
    "least_squares": families.FAMILIES["least_squares"],
    "attributes": families.FAMILIES["attributes"],
    "geometric": families.FAMILIES["geometric"],
    "qp": families.FAMILIES["qp"],
    "rank_one": rank_one,
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:Reading from a sparse", "ignore:The problem has an expression with dim")
def test_on_and_off_agree(name, monkeypatch):
    case = CASES[name](np.random.default_rng(5))
    make = lambda: lc.compile(case.problem, parameters=case.parameters, variables=case.outputs)  # noqa: E731
    on = make()
    untouched(monkeypatch)
    off = make()
    assert on.elimination.active and not off.elimination.active
    assert on.structure.n < off.structure.n == on.program.structure.n
    theta = [np.stack([t, t + 0.01 * d]) for t, d in zip(case.theta, case.direction(0), strict=True)]
    one, two = on.evaluate(theta), off.evaluate(theta)
    assert one.info.ok.all() and two.info.ok.all()
    rng = np.random.default_rng(1)
    g = [rng.standard_normal(o.shape) for o in one.outputs]
    h, k = ([np.stack([a, b]) for a, b in zip(case.direction(s), case.direction(s + 1), strict=True)] for s in (2, 4))
    for a, b in (
        (one.outputs, two.outputs),
        (one.vjp(g), two.vjp(g)),
        (one.jvp(h), two.jvp(h)),
        (one.hvp(g, h), two.hvp(g, h)),
        (one.second(h, k), two.second(h, k)),
    ):
        for u, v in zip(a, b, strict=True):
            np.testing.assert_allclose(u, v, rtol=0, atol=1e-8 * (1 + np.abs(v).max(initial=0.0)))
    np.testing.assert_allclose(one.x, two.x, rtol=0, atol=1e-9 * (1 + np.abs(two.x).max()))
    np.testing.assert_allclose(one.y, two.y, rtol=0, atol=1e-9 * (1 + np.abs(two.y).max()))


def test_least_squares_becomes_a_problem_in_its_own_variables():
    """sum_squares(A x - b) keeps no residual variables: n is that of x, and P is A'A of the parameter."""
    A, b = cp.Parameter((30, 4), name="A"), cp.Parameter(30, name="b")
    x = cp.Variable(4)
    compiled = lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0]), parameters=[A, b])
    rng = np.random.default_rng(0)
    theta = [rng.standard_normal((2, 30, 4)), rng.standard_normal((2, 30))]
    data = compiled.evaluate(theta).bound.reduction.data
    s = compiled.structure
    assert (s.n, s.m) == (4, 4)
    P = np.zeros((2, 4, 4))
    P[:, s.P_rows, s.P_cols] = P[:, s.P_cols, s.P_rows] = data.P
    np.testing.assert_allclose(P, 2 * theta[0].swapaxes(1, 2) @ theta[0], atol=1e-12)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_nonzeros_never_grow(name):
    plan = families.compiled(name).elimination
    full, small = plan.full, plan.structure
    assert len(small.P_rows) + len(small.A_rows) <= len(full.P_rows) + len(full.A_rows)


def test_fill_that_costs_more_than_it_saves_is_left_alone():
    """Seven rows of 30 entries would fill a 30 x 30 matrix."""
    A, x = cp.Parameter((7, 30)), cp.Variable(30)
    plan = lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(A @ x) + cp.norm1(x)))).elimination
    assert len(plan.structure.P_rows) < 7 * 30 and not plan.active


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 15), st.booleans(), st.integers(1, 3)), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_linear_systems_reduce_and_expand(n, rows, seed):
    """The reduced system's solution, expanded, solves [[P, A'], [A, 0]] of the full program for any right-hand side."""
    rng = np.random.default_rng(seed)
    program, data = random_program(n, rows, rng)
    plan = presolve.eliminate(program)
    assert plan.active
    full, small = kkt(program.structure, data), plan.bind(data)
    r_x, r_y = rng.standard_normal((2, program.structure.n)), rng.standard_normal((2, program.structure.m))
    a, b = small.reduce_rhs(r_x, r_y)
    inner = [np.linalg.solve(K, np.r_[p, q]) for K, p, q in zip(kkt(plan.structure, small.data), a, b, strict=True)]
    m = plan.structure.n
    u, t = small.expand_step(np.stack([z[:m] for z in inner]), np.stack([z[m:] for z in inner]), r_x, r_y)
    for K, x, y, p, q in zip(full, u, t, r_x, r_y, strict=True):
        np.testing.assert_allclose(K @ np.r_[x, y], np.r_[p, q], atol=1e-8 * np.linalg.cond(K))
    # The objective, too, is the same number at corresponding points.
    x, _ = small.expand(inner_x := rng.standard_normal((2, m)), np.zeros((2, plan.structure.m)))
    np.testing.assert_allclose(objective(program.structure, data, x), objective(plan.structure, small.data, inner_x), atol=1e-9)


def random_program(n, rows, rng):
    """n free variables with a definite P, and one defined variable for each row: (which of the n it reads, quadratic or not, c)."""
    count = len(rows)
    x, d = cp.Variable(n), cp.Variable(count)
    constraints, objective = [], cp.sum_squares(x)
    for i, (support, quadratic, c) in enumerate(rows):
        a = np.array([bool(support >> j & 1) for j in range(n)]) * rng.uniform(1, 2, n)
        constraints.append(c * d[i] + a @ x == 1.5)
        objective += quadratic * 0.5 * cp.square(d[i]) + 0.3 * d[i]
    compiled = lc.compile(cp.Problem(cp.Minimize(objective), constraints), variables=[x])
    program = compiled.program
    one = program.bind([], 1)
    scale = rng.uniform(0.5, 1.5, (2, 1))
    return program, Data(
        one.P * scale, rng.standard_normal((2, program.structure.n)), one.d, one.A, rng.standard_normal((2, program.structure.m))
    )


def kkt(s, data):
    out = []
    for i in range(2):
        P, _, _, A, _ = data.one(i)
        H, E = np.zeros((s.n, s.n)), np.zeros((s.m, s.n))
        H[s.P_rows, s.P_cols] = H[s.P_cols, s.P_rows] = P
        E[s.A_rows, s.A_cols] = A
        out.append(np.block([[H, E.T], [E, np.zeros((s.m, s.m))]]))
    return out


def objective(s, data, x):
    values = []
    for i in range(2):
        P, q, d, _, _ = data.one(i)
        H = np.zeros((s.n, s.n))
        H[s.P_rows, s.P_cols] = H[s.P_cols, s.P_rows] = P
        values.append(0.5 * x[i] @ H @ x[i] + q @ x[i] + d[0])
    return np.array(values)
