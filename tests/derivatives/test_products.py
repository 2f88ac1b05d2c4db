"""Products with P, A and A', equilibration, and linear solves, on random structures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layercompiler import kernels
from layercompiler.cones import Nonnegative, Product, Zero
from layercompiler.derivatives.linear import linear_solve
from layercompiler.derivatives.products import Products
from layercompiler.derivatives.residual_map import ResidualMap
from layercompiler.derivatives.scaling import Equilibrator
from layercompiler.programs.cone import Data, Structure
from tests.derivatives import programs

SOLVES = [pytest.param("lanes", marks=pytest.mark.skipif(not kernels.available(), reason="kernels not built")), "dense", "qdldl"]


@given(st.booleans(), st.sampled_from(["", "P", "A", "PA"]), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_products(large, shared, seed):
    """Dense and sparse storage, shared and batched numbers."""
    rng = np.random.default_rng(seed)
    blocks = ((Zero(), 30), (Nonnegative(), 50)) if large else programs.CONES["all"]
    s = programs.structure(blocks, 70 if large else 5, rng, density=0.02 if large else 0.5)
    d = programs.data(s, 3, rng, shared)
    products = Products.of(s, d)
    x, y = rng.standard_normal((3, s.n)), rng.standard_normal((3, s.m))
    for i in range(3):
        P, A = programs.dense(s, d, i)
        for bound, at in ((products, i), (products.take(np.array([2, i])), 1)):
            part = slice(None) if bound is products else np.array([2, i])
            np.testing.assert_allclose(bound.P(x[part])[at], P @ x[i], atol=1e-12)
            np.testing.assert_allclose(bound.A(x[part])[at], A @ x[i], atol=1e-12)
            np.testing.assert_allclose(bound.AT(y[part])[at], A.T @ y[i], atol=1e-12)


def test_no_quadratic_term():
    s = Structure(3, np.zeros(0, int), np.zeros(0, int), np.arange(2), np.arange(2), Product(((Zero(), 2),)))
    d = Data(np.zeros((1, 0)), np.ones((2, 3)), np.zeros((1, 1)), np.ones((1, 2)), np.ones((1, 2)))
    assert not Products.of(s, d).P(np.ones((2, 3))).any()


# Equilibration -----------------------------------------------------------------------------------------------------------


def rough(s, rng, batch=4):
    """Data with rows, columns and sides of very different sizes in all instances but the first."""
    d = programs.data(s, batch, rng)
    rows, cols = 10.0 ** rng.uniform(-6, 6, (batch, s.m)), 10.0 ** rng.uniform(-4, 4, (batch, s.n))
    rows[0] = cols[0] = 1.0
    start = 0
    for cone, count in s.cones.blocks:  # cones that are no rays are scaled as wholes
        if cone.name not in ("zero", "nonnegative"):
            block = rows[:, start : start + count * cone.dim].reshape(batch, count, cone.dim)
            block[:] = block[:, :, :1]
        start += count * cone.dim
    A, P = d.A * rows[:, s.A_rows] * cols[:, s.A_cols], d.P * cols[:, s.P_rows] * cols[:, s.P_cols]
    size = np.where(np.arange(batch) > 0, 1e3, 1.0)[:, None]
    return Data(P * size, d.q * cols * size**2, d.d, A, d.b * rows / size)


def powers_of_two(a):
    return np.array_equal(np.exp2(np.rint(np.log2(a))), a)


@pytest.mark.parametrize("cones", programs.CONES)
def test_scaling_costs_no_rounding_and_calms(cones):
    rng = np.random.default_rng(0)
    blocks = programs.CONES[cones]
    s = programs.structure(blocks, sum(c.dim * k for c, k in blocks), rng)
    d = rough(s, rng)
    scaled, factors = Equilibrator(s)(d)
    assert all(powers_of_two(a) for a in (factors.x, factors.y, factors.s, factors.r_x, factors.r_y))
    assert all(np.all(a[0] == 1.0) for a in (factors.x, factors.y, factors.s)), "the first instance is calm"
    largest = np.abs(scaled.A).max(axis=1)
    assert largest.max() < 64 and np.abs(scaled.q).max() < 64 and np.abs(scaled.b).max() < 64
    assert np.abs(d.A[1:]).max() / np.abs(d.A[1:]).min() > 1e3 * np.abs(scaled.A[1:]).max() / np.abs(scaled.A[1:]).min()


@pytest.mark.parametrize("cones", programs.CONES)
def test_residuals_scale_with_their_factors(cones):
    """F of the scaled program at the scaled point is the scaled F, and the scaled point lies in the cones as the point does."""
    rng = np.random.default_rng(1)
    blocks = programs.CONES[cones]
    s = programs.structure(blocks, sum(c.dim * k for c, k in blocks), rng)
    d = rough(s, rng)
    scaled, f = Equilibrator(s)(d)
    x = rng.standard_normal((4, s.n)) * f.x
    projection = s.cones.project_dual(rng.standard_normal((4, s.m)))
    y_hat, s_hat = projection.y, projection.y - projection.v
    y, slack = y_hat * f.y, s_hat * f.s
    point = ResidualMap(s, d).point(scaled, Products.of(s, scaled), x / f.x, y_hat - s_hat)
    for i in range(4):
        P, A = programs.dense(s, d, i)
        F_x, F_y = P @ x[i] + A.T @ y[i] + d.q[i], A @ x[i] + slack[i] - d.b[i]
        size_x = np.abs(f.r_x[i]) * (np.abs(P) @ np.abs(x[i]) + np.abs(A).T @ np.abs(y[i]) + np.abs(d.q[i]))
        size_y = np.abs(f.r_y[i]) * (np.abs(A) @ np.abs(x[i]) + np.abs(slack[i]) + np.abs(d.b[i]))
        assert np.all(np.abs(point.F_x[i] - F_x * f.r_x[i]) <= 1e-13 * size_x)
        assert np.all(np.abs(point.F_y[i] - F_y * f.r_y[i]) <= 1e-13 * size_y)
    assert np.all(s.cones.dual_violation(y) <= 1e-12 * np.abs(y).max(axis=1))
    assert np.all(s.cones.primal_violation(slack) <= 1e-12 * np.abs(slack).max(axis=1))


def test_calm_data_are_left_as_they_are():
    rng = np.random.default_rng(2)
    s = programs.structure(programs.CONES["all"], 12, rng)
    d = programs.data(s, 3, rng)
    scaled, factors = Equilibrator(s)(d)
    assert scaled is d and factors is None


# Linear solves -----------------------------------------------------------------------------------------------------------


def quasidefinite(rng, size=12, batch=5):
    """[[H, B'], [B, -G]] with H, G positive definite: (rows, cols, signs, values, dense)."""
    half = size // 2
    signs = np.r_[np.ones(half), -np.ones(size - half)].astype(np.int8)
    mask = np.triu(rng.random((size, size)) < 0.5, 1) | np.eye(size, dtype=bool)
    mask[half:, half:] = np.eye(size - half, dtype=bool)
    rows, cols = np.nonzero(mask)
    values = rng.uniform(-0.2, 0.2, (batch, len(rows)))
    values[:, rows == cols] = signs[rows[rows == cols]] * rng.uniform(1, 2, (batch, size))
    K = np.zeros((batch, size, size))
    K[:, rows, cols] = K[:, cols, rows] = values
    return rows, cols, signs, values, K


@pytest.mark.parametrize("name", SOLVES)
def test_solutions_and_honest_residuals(name):
    rng = np.random.default_rng(3)
    rows, cols, signs, values, K = quasidefinite(rng)
    factor = linear_solve(12, rows, cols, signs, name).factor(values)
    rhs = rng.standard_normal((5, 12))
    x, residual = factor.solve(rhs)
    np.testing.assert_allclose(x, np.linalg.solve(K, rhs[:, :, None])[:, :, 0], atol=1e-11)
    true = np.abs(np.einsum("bij,bj->bi", K, x) - rhs).max(axis=1) / np.abs(rhs).max(axis=1)
    assert residual.max() < 1e-13 and np.all(np.abs(true - residual) < 1e-14)


@pytest.mark.parametrize("name", SOLVES)
def test_a_matrix_that_is_not_finite_is_alone(name):
    rng = np.random.default_rng(4)
    rows, cols, signs, values, _ = quasidefinite(rng)
    solve = linear_solve(12, rows, cols, signs, name)
    rhs = rng.standard_normal((5, 12))
    good, _ = solve.factor(values).solve(rhs)
    bad = values.copy()
    bad[2, 3] = np.nan
    x, residual = solve.factor(bad).solve(rhs)
    rest = np.arange(5) != 2
    np.testing.assert_array_equal(x[rest], good[rest])
    assert residual[rest].max() < 1e-13 and not residual[2] < 1e-6
    x, residual = solve.factor(values).solve(np.where(np.arange(5)[:, None] == 1, np.nan, rhs))
    np.testing.assert_array_equal(x[[0, 2, 3, 4]], good[[0, 2, 3, 4]])
    assert not residual[1] < 1e-6


@pytest.mark.parametrize("name", SOLVES)
def test_zero_matrices_say_that_they_were_not_solved(name):
    rng = np.random.default_rng(5)
    rows, cols, signs, values, _ = quasidefinite(rng)
    factor = linear_solve(12, rows, cols, signs, name).factor(0 * values)
    assert np.all(factor.solve(rng.standard_normal((5, 12)))[1] > 0.5)
    x, residual = factor.solve(np.zeros((5, 12)))
    assert not x.any() and not residual.any()
