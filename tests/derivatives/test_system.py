"""The linear system on its fixed pattern against the dense [[P, A'S], [S A, -(I - D)]], by every linear solve."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layercompiler import kernels
from layercompiler.derivatives.lanes import LanesMap
from layercompiler.derivatives.products import Products
from layercompiler.derivatives.residual_map import ResidualMap
from layercompiler.derivatives.rotation import Rotation
from layercompiler.derivatives.system import System
from layercompiler.programs.cone import Data
from tests.derivatives import programs

LINEAR = [pytest.param("lanes", marks=pytest.mark.skipif(not kernels.available(), reason="kernels not built")), "dense", "qdldl"]


def check(linear, s, d, v, rng, tolerance=1e-8):
    r_x, h = rng.standard_normal((d.batch, s.n)), rng.standard_normal((d.batch, s.m))
    u, t, residual = linear.solve(r_x, h)
    assert residual.max() < 1e-11
    for i in range(d.batch):
        expected = programs.solution(*programs.dense(s, d, i), programs.derivative(s.cones, v[i]), r_x[i], h[i])
        size = 1 + max(np.abs(e).max() for e in expected)
        np.testing.assert_allclose(u[i], expected[0], rtol=0, atol=tolerance * size)
        np.testing.assert_allclose(t[i], expected[1], rtol=0, atol=tolerance * size)


def check_equations(linear, s, d, v, rng):
    """P u + A't = r_x and t = D (A u + t - h), for right-hand sides that have a solution; the system may be singular."""
    parts = [(*programs.dense(s, d, i), programs.derivative(s.cones, v[i])) for i in range(d.batch)]
    x, w = rng.standard_normal((d.batch, s.n)), rng.standard_normal((d.batch, s.m))
    r_x = np.stack([P @ a + A.T @ D @ b for (P, A, D), a, b in zip(parts, x, w, strict=True)])
    h = np.stack([A @ a - b + D @ b for (P, A, D), a, b in zip(parts, x, w, strict=True)])
    u, t, residual = linear.solve(r_x, h)
    for i, (P, A, D) in enumerate(parts):
        if not residual[i] <= 1e-9:
            u[i], t[i] = linear.solve_least_squares(i, r_x[i], h[i])
        size = 1 + max(np.abs(u[i]).max(), np.abs(t[i]).max())
        np.testing.assert_allclose(P @ u[i] + A.T @ t[i], r_x[i], rtol=0, atol=1e-7 * size)
        np.testing.assert_allclose(D @ (A @ u[i] + t[i] - h[i]), t[i], rtol=0, atol=1e-7 * size)


@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.parametrize("cones", programs.CONES)
def test_solutions_are_those_of_the_dense_system(cones, linear):
    """P definite, so that the system is regular wherever the projection is; n above m, so that equalities are, too."""
    rng = np.random.default_rng(0)
    blocks = programs.CONES[cones]
    s = programs.structure(blocks, sum(c.dim * k for c, k in blocks) + 2, rng)
    d = programs.data(s, 6, rng)
    system = System(s, d, linear)
    assert system.linear.name == linear
    v = rng.standard_normal((6, s.m)) * np.array([1, 1, 1, 1, 0.01, 100])[:, None]
    check(system.factor(d, s.cones.project_dual(v)), s, d, v, rng)


@pytest.mark.parametrize("shared", ["P", "A", "PA"])
def test_data_shared_by_the_batch(shared):
    rng = np.random.default_rng(1)
    s = programs.structure(programs.CONES["all"], 30, rng)
    d = programs.data(s, 3, rng, shared)
    v = rng.standard_normal((3, s.m))
    check(System(s, d).factor(d, s.cones.project_dual(v)), s, d, v, rng)


@pytest.mark.skipif(not kernels.available(), reason="kernels not built")
@pytest.mark.parametrize("cones", [c for c in programs.CONES if c not in ("psd", "all")])
def test_the_compiled_map_solves_the_same_system(cones):
    rng = np.random.default_rng(2)
    blocks = programs.CONES[cones]
    s = programs.structure(blocks, sum(c.dim * k for c, k in blocks) + 2, rng)
    d = programs.data(s, 5, rng)
    compiled = LanesMap(s, d)
    v = rng.standard_normal((5, s.m))
    point = compiled.point(d, Products.of(s, d), rng.standard_normal((5, s.n)), v)
    check(compiled.linearize(d, point), s, d, v, rng)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(2, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_random_structures(kinds, n, seed):
    """Any product of cones in the standard order, any sparsity, also with more rows than columns."""
    rng = np.random.default_rng(seed)
    names = ["zero", "nonnegative", "second_order", "psd", "exponential", "power"]
    blocks = [b for k in sorted(set(kinds)) for b in programs.CONES[names[k]]]
    s = programs.structure(tuple(blocks), n, rng, density=rng.uniform(0.1, 0.9))
    d = programs.data(s, 2, rng)
    v = rng.standard_normal((2, s.m))
    check_equations(System(s, d).factor(d, s.cones.project_dual(v)), s, d, v, rng)


def test_singular_systems_get_the_solution_of_least_norm():
    """Two equal equality rows: the multiplier is split evenly, and the system says that it is singular."""
    rng = np.random.default_rng(3)
    blocks = ((programs.Zero(), 4),)
    s = programs.structure(blocks, 6, rng, density=1.0)
    d = programs.data(s, 2, rng)
    A = d.A.reshape(2, 4, 6).copy()
    A[0, 3] = A[0, 1]
    d = Data(d.P, d.q, d.d, A.reshape(2, -1), d.b)
    linear = System(s, d).factor(d, s.cones.project_dual(np.zeros((2, 4))))
    assert linear.singular().tolist() == [True, False]
    r_x, h = rng.standard_normal((2, 6)), rng.standard_normal((2, 4))
    h[:, 3] = h[:, 1]
    u, t, residual = linear.solve(r_x, h)
    v, w = linear.solve_least_squares(0, r_x[0], h[0])
    assert residual.max() < 1e-11
    np.testing.assert_allclose(u[0], v, atol=1e-9)
    np.testing.assert_allclose(t[0], w, atol=1e-9)
    assert abs(t[0, 1] - t[0, 3]) < 1e-9 and abs(t[1, 1] - t[1, 3]) > 1e-3
    P, A = programs.dense(s, d, 0)
    z = np.linalg.lstsq(np.block([[P, A.T], [A, np.zeros((4, 4))]]), np.r_[r_x[0], h[0]], rcond=1e-12)[0]
    np.testing.assert_allclose(np.r_[u[0], t[0]], z, atol=1e-9)
    # A right-hand side that cannot be reached leaves a residual that says so.
    h[0, 3] += 1.0
    assert linear.solve(r_x, h)[2][0] > 1e-3


def psd_program(rng, weight):
    """A PSD variable X (order 4, rows -X), two other rows on it, other variables, P = weight times the identity on X."""
    blocks = ((programs.Zero(), 2), (programs.Nonnegative(), 1), (programs.PSD(4), 2))
    cones = programs.Product(blocks)
    n = 20 + 3
    mask = np.zeros((cones.m, n), bool)
    mask[:3] = True
    mask[3 + np.arange(20), np.arange(20)] = True
    A_rows, A_cols = np.nonzero(mask)
    s = programs.Structure(n, np.arange(n), np.arange(n), A_rows, A_cols, cones)
    A = rng.standard_normal((2, len(A_rows)))
    A[:, A_rows >= 3] = -np.array([2.0 if i % 10 in (0, 4, 7, 9) else np.sqrt(2.0) for i in range(20)])
    entries = np.r_[weight * A[0, A_rows >= 3] ** 2, np.ones(3)]
    return s, Data(np.tile(entries, (2, 1)), rng.standard_normal((2, n)), np.zeros((1, 1)), A, rng.standard_normal((2, cones.m)))


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_rotation_changes_nothing(weight, monkeypatch):
    """PSD variables in their eigenbasis: the same solutions as without, for P zero and P a multiple of the identity."""
    rng = np.random.default_rng(4)
    s, d = psd_program(rng, weight)
    on = System(s, d)
    assert len(on.rotation.turns) == 1 and on.rotation.rotates(2)
    v = rng.standard_normal((2, s.m))
    projection = s.cones.project_dual(v)
    one = on.factor(d, projection)
    check_equations(one, s, d, v, rng)
    everything = np.arange(len(s.A_rows))
    plain = Rotation(s.A_rows, s.A_cols, everything, (), everything, ())
    monkeypatch.setattr(Rotation, "of", classmethod(lambda *_: plain))
    two = System(s, d).factor(d, projection)
    check_equations(two, s, d, v, rng)
    if weight:  # else the solution is one of many
        r_x, h = rng.standard_normal((2, s.n)), rng.standard_normal((2, s.m))
        for a, b in zip(one.solve(r_x, h)[:2], two.solve(r_x, h)[:2], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-8 * (1 + np.abs(b).max()))


@pytest.mark.parametrize("spoil", ["a varying entry", "P not isotropic", "P coupled", "two entries in a row"])
def test_rotation_is_left_where_it_would_be_wrong(spoil):
    rng = np.random.default_rng(5)
    s, d = psd_program(rng, 0.7)
    A, P = d.A.copy(), d.P.copy()
    if spoil == "a varying entry":
        A[1, -1] *= 1.01
    elif spoil == "P not isotropic":
        P[:, 3] *= 1.01
    elif spoil == "P coupled":
        order = np.lexsort((np.r_[s.P_rows, 2], np.r_[s.P_cols, 5]))
        s = programs.Structure(s.n, np.r_[s.P_rows, 2][order], np.r_[s.P_cols, 5][order], s.A_rows, s.A_cols, s.cones)
        P = np.c_[P, [0.1, 0.1]][:, order]
    else:
        order = np.lexsort((np.r_[s.A_cols, 21], np.r_[s.A_rows, 7]))
        s = programs.Structure(s.n, s.P_rows, s.P_cols, np.r_[s.A_rows, 7][order], np.r_[s.A_cols, 21][order], s.cones)
        A = np.c_[A, [0.5, 0.5]][:, order]
    d = Data(P, d.q, d.d, A, d.b)
    system = System(s, d)
    assert not system.rotation.turns
    v = rng.standard_normal((2, s.m))
    check(system.factor(d, s.cones.project_dual(v)), s, d, v, rng)


@pytest.mark.parametrize("cones", programs.CONES)
def test_a_newton_step_is_one(cones):
    """The system's solution (dx, dv) satisfies F'(x, v) (dx, dv) = -F for F differenced numerically."""
    rng = np.random.default_rng(6)
    blocks = programs.CONES[cones]
    s = programs.structure(blocks, sum(c.dim * k for c, k in blocks) + 2, rng)
    d = programs.data(s, 2, rng)
    residual_map, products = ResidualMap(s, d), Products.of(s, d)
    x, v = rng.standard_normal((2, s.n)), rng.standard_normal((2, s.m))
    point = residual_map.point(d, products, x, v)
    assert point.smooth().all()
    linear = residual_map.linearize(d, point)
    dx, dy, _ = linear.solve(-point.F_x, -point.F_y)
    dv = products.A(dx) + dy + point.F_y
    size = max(np.abs(dx).max(), np.abs(dv).max())
    h = 1e-5 / size
    ends = [residual_map.point(d, products, x + sign * h * dx, v + sign * h * dv) for sign in (1, -1)]
    for name in ("F_x", "F_y"):
        slope = (getattr(ends[0], name) - getattr(ends[1], name)) / (2 * h)
        np.testing.assert_allclose(slope, -getattr(point, name), atol=1e-7 * (1 + size))
