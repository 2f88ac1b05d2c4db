"""The compiled simplex and branch and bound against HiGHS, on programs with every kind of row, bound and degeneracy."""

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sp

from layercompiler import kernels
from layercompiler.errors import BuildError, ShapeError
from layercompiler.kernels import simplex
from tests.discrete.problems import assignment, shortest_path

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not built")


def program(rng):
    """A random program: (A, low, high, lower, upper, integer); small whole coefficients make it degenerate half of the time."""
    n, m = int(rng.integers(1, 12)), int(rng.integers(0, 9))
    whole = rng.random() < 0.5
    A = rng.integers(-3, 4, (m, n)).astype(float) if whole else rng.standard_normal((m, n)) * 10.0 ** rng.integers(-2, 3, (m, 1))
    A[rng.random((m, n)) < 0.4] = 0.0
    if m > 1 and rng.random() < 0.3:
        A[-1] = A[0] * rng.choice([1.0, -2.0])  # rows that follow from others
    integer = rng.random(n) < rng.choice([0.0, 0.5, 1.0])
    lower, upper = rng.integers(-3, 1, n).astype(float), rng.integers(1, 4, n).astype(float)
    kind = rng.random(n)
    lower[kind < 0.1], upper[(kind > 0.05) & (kind < 0.2)] = -np.inf, np.inf
    upper[kind > 0.95] = lower[kind > 0.95]
    inside = np.clip(rng.integers(-1, 3, n), np.where(np.isfinite(lower), lower, -5), np.where(np.isfinite(upper), upper, 5)).astype(float)
    middle = A @ inside
    if rng.random() < 0.15:
        middle = middle + rng.choice([0.5, 7.0])  # perhaps infeasible
    width = rng.integers(0, 4, (2, m)) * rng.choice([0.5, 1.0, 2.0])
    low, high = middle - width[0], middle + width[1]
    sides = rng.random(m)
    low[sides < 0.3], high[sides > 0.7] = -np.inf, np.inf
    equal = rng.random(m) < 0.25
    low[equal] = high[equal] = middle[equal]
    return sp.csr_array(A), low, high, lower, upper, integer


def reference(parts, c):
    """HiGHS through scipy: (status, value)."""
    A, low, high, lower, upper, integer = parts
    rows = [scipy.optimize.LinearConstraint(A.toarray(), low, high)] if A.shape[0] else []
    found = scipy.optimize.milp(
        c, integrality=integer, bounds=scipy.optimize.Bounds(lower, upper), constraints=rows, options={"mip_rel_gap": 0.0}
    )
    return found.status, found.fun, found.x


def feasible_value(parts, c, x):
    """The best value with the whole variables of x at whole numbers, to 1e-10: HiGHS itself may be off a row or a whole number by 1e-6."""
    A, low, high, lower, upper, integer = parts
    lower, upper = np.where(integer, np.rint(x), lower), np.where(integer, np.rint(x), upper)
    ends = {"A_ub": np.concatenate([A.toarray(), -A.toarray()]), "b_ub": np.concatenate([high, -low])}
    keep = np.isfinite(ends["b_ub"])
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    found = scipy.optimize.linprog(
        c, ends["A_ub"][keep], ends["b_ub"][keep], bounds=np.stack([lower, upper], 1), method="highs", options=options
    )
    return found.fun if found.status == 0 else np.inf


def violation(parts, x):
    A, low, high, lower, upper, integer = parts
    r, size = A @ x, 1.0 + abs(A) @ np.abs(x)
    return max(
        *((low - r) / size).tolist(), *((r - high) / size).tolist(), *(lower - x), *(x - upper), *np.abs(x - np.rint(x))[integer], 0.0
    )


def check(seed):
    """Compare one program under several costs; counts of costs solved, and of those that were handed on."""
    rng = np.random.default_rng(seed)
    parts = program(rng)
    try:
        kernel = simplex.Simplex(*parts)
    except BuildError as error:
        if "infeasible" in str(error):  # then no cost has a solution
            assert reference((*parts[:5], np.zeros_like(parts[5])), np.zeros(len(parts[3])))[0] == 2, seed
        return 0, 0
    costs = rng.standard_normal((6, len(parts[3]))) if rng.random() < 0.5 else rng.integers(-2, 3, (6, len(parts[3]))).astype(float)
    found = kernel.solve(costs)
    for c, x, outcome in zip(costs, found.x, found.outcome, strict=True):
        if outcome == simplex.LOST:
            continue
        status, value, point = reference(parts, c)
        if outcome == simplex.SOLVED:
            assert status == 0, f"program {seed}: solved, and HiGHS says {status}"
            assert violation(parts, x) < 1e-7, seed
            slack = 1e-8 * max(1.0, abs(value))
            assert c @ x <= value + slack or c @ x <= feasible_value(parts, c, point) + slack, f"program {seed}: {c @ x} against {value}"
        elif outcome == simplex.INFEASIBLE:
            assert status in (2, 4), f"program {seed}: infeasible, and HiGHS says {status}, {value}"
        else:
            assert outcome == simplex.UNBOUNDED and status in (2, 3, 4), f"program {seed}: unbounded, and HiGHS says {status}"
    return int((found.outcome == simplex.SOLVED).sum()), int((found.outcome == simplex.LOST).sum())


def test_random_programs_agree_with_highs():
    solved, lost = np.sum([check(seed) for seed in range(60)], axis=0)
    assert solved > 150 and lost < 0.02 * solved


@pytest.mark.slow
def test_many_random_programs_agree_with_highs():
    solved, lost = np.sum([check(seed) for seed in range(1000, 3000)], axis=0)
    assert solved > 5_000 and lost < 0.01 * solved


def fixed(make):
    import layercompiler as lc

    problem, c, x = make()
    p = lc.compile(problem, parameters=[c], variables=[x], estimator=lc.DBB()).problem.fixed
    return p.A, p.low, p.high, p.lower, p.upper, p.integer


@pytest.mark.parametrize("make", [lambda: shortest_path(6), lambda: assignment(6)])
def test_degenerate_programs_with_equal_costs_end(make):
    parts = fixed(make)
    kernel = simplex.Simplex(*parts)
    rng = np.random.default_rng(0)
    costs = np.concatenate([np.ones((2, kernel.n)), np.zeros((1, kernel.n)), rng.integers(0, 3, (40, kernel.n)).astype(float)])
    found = kernel.solve(costs)
    assert (found.outcome == simplex.SOLVED).all()
    for c, x in zip(costs, found.x, strict=True):
        assert c @ x == pytest.approx(reference(parts, c)[1], abs=1e-9)


def test_answers_are_the_same_bits_again_and_on_every_instruction_set():
    parts = fixed(lambda: assignment(5))
    costs = np.random.default_rng(1).standard_normal((60, 25))
    first = simplex.Simplex(*parts)
    for kernel in (first, *(simplex.Simplex(*parts, isa=isa) for isa in ("scalar", kernels.instruction_set()))):
        np.testing.assert_array_equal(kernel.solve(costs).x, first.solve(costs).x)


def test_units_of_rows_and_costs_do_not_matter():
    rng = np.random.default_rng(3)
    A, low, high, lower, upper, integer = (
        sp.csr_array(rng.uniform(1, 9, (3, 20))), np.full(3, -np.inf), np.full(3, 40.0), np.zeros(20), np.ones(20), np.ones(20, bool)
    )  # fmt: skip
    costs = -rng.uniform(1, 2, (10, 20))
    plain = simplex.Simplex(A, low, high, lower, upper, integer).solve(costs)
    scale = np.array([1e-6, 1.0, 1e7])
    other = simplex.Simplex(sp.csr_array(A * scale[:, None]), low, high * scale, lower, upper, integer).solve(1e-9 * costs)
    np.testing.assert_allclose((other.x * costs).sum(1), (plain.x * costs).sum(1), rtol=1e-12)


def test_limits_are_kept():
    rng = np.random.default_rng(0)
    weights = rng.uniform(3, 8, (5, 100))
    kernel = simplex.Simplex(sp.csr_array(weights), np.full(5, -np.inf), np.full(5, 100.0), np.zeros(100), np.ones(100), np.ones(100, bool))
    costs = -rng.uniform(1, 1.1, (200, 100))
    assert (kernel.solve(costs[:2], nodes=20).outcome == simplex.LOST).all()
    late = kernel.solve(costs, time_limit=0.05)
    assert late.outcome[-1] == simplex.LATE


def test_programs_without_a_start_say_so():
    with pytest.raises(BuildError, match="infeasible"):
        simplex.Simplex(
            sp.csr_array(np.ones((2, 2))), np.array([3.0, -np.inf]), np.array([np.inf, 1.0]), np.zeros(2), np.ones(2), np.zeros(2, bool)
        )
    with pytest.raises(BuildError, match="fit"):
        simplex.Simplex(sp.csr_array(np.ones((2, 2))), np.zeros(2), np.zeros(3), np.zeros(2), np.ones(2), np.zeros(2, bool))
    empty = simplex.Simplex(sp.csr_array((0, 3)), np.zeros(0), np.zeros(0), -np.ones(3), np.ones(3), np.ones(3, bool))
    np.testing.assert_array_equal(empty.solve(np.array([[1.0, -1.0, 2.0]])).x, [[-1.0, 1.0, -1.0]])
    for wrong in (np.zeros((2, 4)), np.full((1, 3), np.nan), np.zeros(3)):
        with pytest.raises(ShapeError):
            empty.solve(wrong)
    assert empty.solve(np.zeros((0, 3))).x.shape == (0, 3)
