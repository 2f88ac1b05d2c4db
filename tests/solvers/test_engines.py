"""Every engine, on programs of every cone it accepts with a known solution: points, certificates, limits, workers, the registry."""

import numpy as np
import pytest

from layercompiler import errors
from layercompiler.cones import PSD, Nonnegative, Product, SecondOrder, Zero
from layercompiler.cones.psd import vector
from layercompiler.programs.cone import Data, Structure
from layercompiler.solvers import Engine, Options, engine, engine_names, register
from layercompiler.solvers.order import upper_order
from layercompiler.status import Status
from tests.derivatives import programs

ALL = ("lanes", "clarabel", "scs", "ecos", "diffcp")
QUADRATIC = ("lanes", "clarabel", "scs")
# What the engines reach at a tolerance of 1e-8; SCS and diffcp's SCS measure it differently.
REACH = {"lanes": 1e-5, "clarabel": 1e-5, "scs": 1e-4, "ecos": 1e-5, "diffcp": 1e-4}


def get(name, structure):
    try:
        kind = engine(name)
    except errors.MissingDependencyError:
        pytest.skip(f"{name} is not installed")
    return kind(structure) if kind.accepts(structure) else pytest.skip("not its cones")


def solved(name, quadratic, batch=3, seed=0):
    """A program with a known strictly complementary solution (x, v): q and b are made to fit."""
    rng = np.random.default_rng(seed)
    blocks = programs.CONES[name]
    m = sum(c.dim * k for c, k in blocks)
    s = programs.structure(blocks, m + 2 if quadratic else max(m // 3, 1), rng, density=0.6)
    d = programs.data(s, batch, rng)
    if not quadratic:
        none = np.zeros(0, np.intp)
        s, d = Structure(s.n, none, none, s.A_rows, s.A_cols, s.cones), Data(np.zeros((1, 0)), d.q, d.d, d.A, d.b)
    x, v = rng.standard_normal((batch, s.n)), rng.standard_normal((batch, s.m))
    y = s.cones.project_dual(v).y
    parts = [programs.dense(s, d, i) for i in range(batch)]
    q = np.stack([-P @ a - A.T @ b for (P, A), a, b in zip(parts, x, y, strict=True)])
    b = np.stack([A @ a for (_, A), a in zip(parts, x, strict=True)]) + y - v
    return s, Data(d.P, q, d.d, d.A, b), parts, x, v


@pytest.mark.parametrize("quadratic", [True, False], ids=["quadratic", "linear"])
@pytest.mark.parametrize("cones", programs.CONES)
@pytest.mark.parametrize("name", ALL)
def test_points_satisfy_the_optimality_conditions_in_our_order(name, cones, quadratic):
    """Px + A'y + q = 0, Ax + s = b, s in K, y in K*, y's = 0, with rows as `programs.cone` orders them."""
    s, d, parts, x, _ = solved(cones, quadratic)
    raw = get(name, s).solve(d, 1e-8, Options(), None)
    assert raw.status.tolist() == [Status.SOLVED] * 3 and np.all(raw.iterations >= 0)
    tolerance = REACH[name] * (1 + np.abs(raw.y).max() + np.abs(x).max())
    for i, (P, A) in enumerate(parts):
        np.testing.assert_allclose(P @ raw.x[i] + A.T @ raw.y[i] + d.q[i], 0, atol=tolerance)
        np.testing.assert_allclose(A @ raw.x[i] + raw.s[i] - d.b[i], 0, atol=tolerance)
        assert abs(raw.y[i] @ raw.s[i]) <= tolerance * (1 + np.abs(raw.y[i]).max())
    assert s.cones.dual_violation(raw.y).max() <= tolerance and s.cones.primal_violation(raw.s).max() <= tolerance
    if quadratic:
        np.testing.assert_allclose(raw.x, x, atol=30 * tolerance)


def trivial():
    """min q'x, x_0 + x_1 = 1, x >= lower: infeasible for a large lower, unbounded in x_2 for q_2 < 0."""
    cones = Product(((Zero(), 1), (Nonnegative(), 3)))
    none = np.zeros(0, np.intp)
    s = Structure(3, none, none, np.array([0, 0, 1, 2, 3]), np.array([0, 1, 0, 1, 2]), cones)
    q = np.array([[1.0, 2, 1], [1, 2, 1], [1, 2, -1]])
    b = np.array([[1.0, 0, 0, 0], [1, -2, -2, 0], [1, 0, 0, 0]])
    return s, Data(np.zeros((1, 0)), q, np.zeros((1, 1)), np.array([[1.0, 1, -1, -1, -1]]), b)


@pytest.mark.parametrize("name", ALL)
def test_infeasible_and_unbounded(name):
    """Beside a status, a certificate that holds: A'y = 0, y in K*, b'y < 0; or -Ax in K, q'x < 0."""
    s, d = trivial()
    raw = get(name, s).solve(d, 1e-8, Options(), None)
    assert raw.status.tolist() == [Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE]
    np.testing.assert_allclose(raw.x[0], [1, 0, 0], atol=1e-5)
    if name == "diffcp":  # says no more than the status
        return
    _, A = programs.dense(s, d, 0)
    y, x = raw.y[1] / -(d.b[1] @ raw.y[1]), raw.x[2] / -(d.q[2] @ raw.x[2])
    assert d.b[1] @ raw.y[1] < 0 and np.abs(A.T @ y).max() < 1e-6 and s.cones.dual_violation(y[None])[0] < 1e-6
    assert d.q[2] @ raw.x[2] < 0 and s.cones.primal_violation((-A @ x)[None])[0] < 1e-6


@pytest.mark.parametrize("name", ["lanes", "clarabel", "scs", "ecos"])
def test_iteration_limit(name):
    s, d, *_ = solved("nonnegative", name in QUADRATIC)
    raw = get(name, s).solve(d, 1e-12, Options(max_iterations=2), None)
    assert raw.status.tolist() == [Status.ITERATION_LIMIT] * 3 and np.all(raw.iterations <= 2)


@pytest.mark.parametrize("name", ALL)
def test_a_deadline_that_has_passed(name):
    s, d, *_ = solved("nonnegative", name in QUADRATIC)
    raw = get(name, s).solve(d, 1e-8, Options(), 0.0)
    assert raw.status.tolist() == [Status.TIME_LIMIT] * 3


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_no_bit(name, workers):
    s, d, *_ = solved("second_order", False, batch=5)
    solver = get(name, s)
    one, many = solver.solve(d, 1e-8, Options(workers=2), None), solver.solve(d, 1e-8, Options(workers=workers), None)
    for a in ("x", "y", "s", "status", "iterations"):
        np.testing.assert_array_equal(getattr(one, a), getattr(many, a))
    part = np.array([3, 1])
    some = solver.solve(d.take(part), 1e-8, Options(workers=workers), None)
    np.testing.assert_array_equal(some.x, one.x[part])
    np.testing.assert_array_equal(some.y, one.y[part])


@pytest.mark.parametrize("name", QUADRATIC)
def test_no_constraints(name):
    """A program without rows: the unconstrained minimum, or a word that it cannot."""
    s = Structure(2, np.arange(2), np.arange(2), np.zeros(0, np.intp), np.zeros(0, np.intp), Product(()))
    d = Data(np.array([[2.0, 4.0]]), np.array([[1.0, -2.0]]), np.zeros((1, 1)), np.zeros((1, 0)), np.zeros((1, 0)))
    raw = get(name, s).solve(d, 1e-9, Options(), None)
    if raw.status[0] == Status.SOLVED:
        np.testing.assert_allclose(raw.x[0], [-0.5, 0.5], atol=1e-6)
        assert raw.y.shape == raw.s.shape == (1, 0)
    else:
        assert name == "scs" and raw.status[0] == Status.FAILED


@pytest.mark.parametrize("orders", [(1, 2), (3,), (4, 4, 5)])
def test_upper_triangles(orders):
    """The permutation takes our lower triangles by column to upper ones by column, also from order 4 on, where it is no involution."""
    rng = np.random.default_rng(0)
    blocks = ((Nonnegative(), 2), (SecondOrder(3), 1), *((PSD(k), 1) for k in orders))
    s = Structure(1, *(np.zeros(0, np.intp) for _ in range(4)), Product(blocks))
    ours, theirs = [np.arange(5.0)], [np.arange(5.0)]
    for k in orders:
        M = rng.standard_normal((k, k))
        M = M + M.T
        weight = np.where(np.eye(k, dtype=bool), 1.0, np.sqrt(2.0)) * M
        ours.append(vector(M, k))
        theirs.append(np.concatenate([weight[: j + 1, j] for j in range(k)]))
    np.testing.assert_allclose(np.concatenate(ours)[upper_order(s)], np.concatenate(theirs), atol=1e-15)


# The registry ------------------------------------------------------------------------------------------------------------


def test_names():
    assert set(ALL) <= set(engine_names())
    assert engine("Clarabel") is engine("clarabel") is engine("CLARABEL")
    with pytest.raises(errors.OptionError, match="unknown solver 'nothing'"):
        engine("nothing")


def test_an_engine_whose_package_is_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(engine.__globals__["_registry"], "absent", None)

    @register
    class Absent(Engine):
        name = "absent"
        package = "no_such_package_here"
        extra = "absentee"
        cones = frozenset()

        def solve_one(self, *_):
            raise NotImplementedError

    with pytest.raises(errors.MissingDependencyError, match=r"pip install 'layercompiler\[absentee\]'"):
        engine("absent")


@pytest.mark.parametrize("name", ALL)
def test_what_an_engine_accepts(name):
    try:
        kind = engine(name)
    except errors.MissingDependencyError:
        pytest.skip(f"{name} is not installed")
    for cones in programs.CONES:
        s, *_ = solved(cones, True)
        linear, *_ = solved(cones, False)
        if kind.accepts(s):
            assert kind.quadratic and kind.accepts(linear)
        if kind.accepts(linear):
            assert {cone.name for cone, _ in linear.cones.blocks} <= kind.cones
