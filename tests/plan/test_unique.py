"""`info.unique` against linear programs.

The solutions are x + d with Q d = A d = 0, G d = 0 in rows with a multiplier, G d <= 0 in weakly active ones.
"""

import cvxpy as cp
import numpy as np
import pytest
from scipy.optimize import linprog

import layercompiler as lc
from layercompiler import kernels, plan
from layercompiler.status import Status


def program(rng, rank_of):
    """A QP made around a solution: (operands, whether there are other solutions)."""
    n = int(rng.integers(2, 9))
    draw = (lambda *s: rng.integers(-3, 4, s).astype(float)) if rng.random() < 0.5 else (lambda *s: rng.standard_normal(s))
    M = draw(rank_of(rng, n), n)
    p, strong, weak, idle = (int(rng.integers(0, k)) for k in (3, n, 4, 4))
    Q, A, S, W, x = M.T @ M, draw(p, n), draw(strong, n), draw(weak, n), draw(n)
    if weak > 1 and rng.random() < 0.3:
        W[1] = -W[0]
    if strong and weak and rng.random() < 0.3:
        W[0] = S[0]
    if strong > 1 and rng.random() < 0.3:
        S[1] = 2 * S[0]
    q = -Q @ x - A.T @ draw(p) - S.T @ (np.abs(draw(strong)) + 0.5)
    G = np.vstack([S, W, draw(idle, n)])
    h, order = G @ x + np.r_[np.zeros(strong + weak), np.ones(idle)], rng.permutation(len(G))
    return (Q, q, G[order], h[order], A, A @ x), others(np.vstack([Q, A, S]), W)


def others(equal, below):
    n = equal.shape[1]
    for c in np.vstack([np.eye(n), -np.eye(n)]):
        found = linprog(c, below, np.zeros(len(below)), equal, np.zeros(len(equal)), (-1, 1))
        if found.status == 0 and found.fun < -1e-6:
            return True
    return False


RANKS = {"linear": lambda rng, n: 0, "singular": lambda rng, n: int(rng.integers(0, n)), "nearly full": lambda rng, n: n - 1}


@pytest.mark.parametrize("kind", RANKS)
def test_unique_is_exact_for_quadratic_programs(kind):
    for seed in range(25):
        (Q, q, G, h, A, b), many = program(np.random.default_rng([seed, len(kind)]), RANKS[kind])
        given = [Q, q, *([G, h] if len(h) else []), *([A, b] if len(b) else [])]
        for solver in ("auto", "interior_point"):
            info = lc.compile(lc.QP(len(q), len(h), len(b)), variables=["x"], solver=solver).evaluate(given).info
            assert info.unique != many, (kind, seed, solver)
            assert info.degenerate or not many, (kind, seed, solver)


def test_weakly_active_rows_from_one_side_and_from_both():
    """min over x >= 0 of nothing, ended at the bound: one of many. With x <= 0 too: the only one."""
    for G, unique in (([[-1.0]], False), ([[-1.0], [1.0]], True)):
        compiled = lc.compile(lc.QP(1, len(G)), variables=["x"], solver="interior_point")
        given = [np.zeros((1, 1)), np.zeros(1), np.array(G), np.zeros(len(G))]
        v = np.zeros((1, len(G)))
        assert compiled.judge(given, np.zeros((1, 1)), v, np.ones((), bool))[1] == unique


@pytest.mark.parametrize("solver", ["auto", "lanes", "clarabel"])
@pytest.mark.parametrize("scales", [(1e-3, 1e-3), (1e-3, 1e3), (1.0, 1.0), (1e3, 1e-3)])
def test_null_vectors_of_both_parts_do_not_hide_each_other(solver, scales):
    """Two copies of an equality, each with its own right-hand side, beside variables that nothing decides."""
    if solver == "lanes" and not kernels.available():
        pytest.skip("the kernels are not built")
    p, b, x, w = cp.Parameter(3, name="p"), cp.Parameter(2, name="b"), cp.Variable(3, name="x"), cp.Variable(2, name="w")
    free, tie = scales
    rows = [tie * x[0] == tie * b[0], tie * x[0] == tie * b[1], free * w <= free, -free * w <= free]
    problem, values = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), rows), [np.array([1.0, 2.0, 3.0]), np.full(2, 0.5)]
    for outputs, unique in (([x], True), ([x, w], False)):
        info = lc.compile(problem, parameters=[p, b], variables=outputs, solver=solver).evaluate(values).info
        assert info.ok and info.degenerate and info.unique == unique


def test_faces_of_curved_cones():
    """A ray of a second-order cone, and a face of the semidefinite one; beside them, cones that pin the solution down."""
    x = cp.Variable(3, name="x")
    c = cp.Parameter(3, name="c")
    ray = lc.compile(cp.Problem(cp.Minimize(c @ x), [cp.SOC(x[0], x[1:]), x[0] <= 1]), variables=[x])
    info = ray.evaluate([np.array([[1.0, -0.6, -0.8], [1.0, -0.5, -0.5], [0.5, -0.6, -0.8]])]).info
    assert info.ok.all() and info.unique.tolist() == [False, True, True]
    X, C = cp.Variable((3, 3), symmetric=True, name="X"), cp.Parameter((3, 3), symmetric=True, name="C")
    face = lc.compile(cp.Problem(cp.Minimize(cp.trace(C @ X)), [X >> 0, cp.trace(X) == 1]), variables=[X])
    info = face.evaluate([np.stack([np.diag([1.0, 1.0, 2.0]), np.diag([1.0, 1.5, 2.0])])]).info
    assert info.ok.all() and info.unique.tolist() == [False, True]


def test_a_cost_in_the_span_of_the_rows_does_not_fall_without_end():
    """Along 6 of 8 directions the objective is constant: a step of 1e17 on such a line gains 150 by rounding."""
    q = np.array([-10.5, -11.0, 4.5, -9.0, -8.5, -5.0, -3.0, -4.5])
    G = np.array([[0.0, 1, -2, -3, 3, 3, -1, 2], [3.0, 3, -1, 3, 2, 1, 1, 1]])
    found = lc.compile(lc.QP(8, 2), variables=["x", "z"]).evaluate([np.zeros((8, 8)), q, G, np.array([-7.0, 12.0])])
    assert found.info.ok and not found.info.unique
    np.testing.assert_allclose(found.outputs[1], [0.5, 3.5], rtol=1e-9)
    downhill = lc.compile(lc.QP(8, 2), variables=["x"], on_error="flag").evaluate([np.zeros((8, 8)), q + 1e-6, G, np.array([-7.0, 12.0])])
    assert downhill.info.status == Status.DUAL_INFEASIBLE


def test_programs_too_large_for_dense_null_spaces(monkeypatch):
    monkeypatch.setattr(plan.uniqueness, "LARGEST", 0)
    c, x = cp.Parameter(3, name="c"), cp.Variable(3, name="x")
    compiled = lc.compile(cp.Problem(cp.Minimize(c @ x), [x >= 0, cp.sum(x) == 1]))
    info = compiled.evaluate([np.array([[1.0, 1.0, 2.0], [1.0, 1.5, 2.0]])]).info
    assert info.ok.all() and info.unique.tolist() == [False, True]


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_flags_of_layers_that_solve_on_the_device(framework):
    pytest.importorskip(framework)
    layer = lc.export(lc.QP(2, 3), framework, variables=["x"], solver="interior_point")
    G, h = np.array([[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]), np.array([1.0, 0.0, 0.0])
    given = [np.zeros((2, 2)), np.array([[-1.0, -1.0], [-1.0, -2.0], [-2.0, 1.0]]), G, h]
    if framework == "jax":
        import jax

        with jax.enable_x64(True):
            info = layer.solve(*given).info
    else:
        info = layer.solve(*given).info
    assert info.ok.all() and set(map(str, info.engine)) == {"interior_point"}
    assert info.unique.tolist() == [False, True, True] and info.degenerate.tolist() == [True, False, False]
