"""The residual map: what F is, how Newton refines it, and that the compiled map is the numpy one."""

import numpy as np
import pytest

from layercompiler import kernels
from layercompiler.derivatives import rotation
from layercompiler.derivatives.lanes import LanesMap, residual_map
from layercompiler.derivatives.products import Products
from layercompiler.derivatives.residual_map import TARGET, ResidualMap
from layercompiler.programs.cone import Data
from tests.derivatives import programs

needs_kernels = pytest.mark.skipif(not kernels.available(), reason="kernels not built")
MAPS = [ResidualMap, pytest.param(LanesMap, marks=needs_kernels)]


def solved(name, batch=5, seed=0):
    """A program with a known, strictly complementary solution (x, v): q and b are made to fit."""
    rng = np.random.default_rng(seed)
    blocks = programs.CONES[name]
    s = programs.structure(blocks, sum(c.dim * k for c, k in blocks) + 2, rng)
    d = programs.data(s, batch, rng)
    x, v = rng.standard_normal((batch, s.n)), rng.standard_normal((batch, s.m))
    y = s.cones.project_dual(v).y
    products = Products.of(s, d)
    d = Data(d.P, -products.P(x) - products.AT(y), d.d, d.A, products.A(x) + y - v)
    return s, d, x, v, rng


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("name", programs.CONES)
def test_newton_reaches_rounding_quadratically_and_never_rises(kind, name):
    """From 1e-3 away: within six steps, each residual at most a constant times the square of the last, up to rounding."""
    s, d, x, v, rng = solved(name)
    start = x + 1e-3 * rng.standard_normal(x.shape), v + 1e-3 * rng.standard_normal(v.shape)
    norms = []
    for steps in range(7):
        point, taken, _ = kind(s, d).refine(d, Products.of(s, d), *start, steps)
        assert np.all(taken <= steps)
        norms.append(point.norm)
    norms = np.array(norms)
    assert np.all(np.diff(norms, axis=0) <= 0) and np.all(norms[-1] < TARGET)
    assert np.all(norms[2] <= 100 * norms[1] ** 2 + 1e-12)
    np.testing.assert_allclose(point.x, x, atol=1e-10 * (1 + np.abs(x).max()))
    np.testing.assert_allclose(point.v, v, atol=1e-10 * (1 + np.abs(v).max()))
    np.testing.assert_allclose(point.y, s.cones.project_dual(v).y, atol=1e-10 * (1 + np.abs(v).max()))


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("name", programs.CONES)
def test_instances_are_refined_on_their_own(kind, name):
    """The same bits alone, in a batch, and beside one that is not finite; what is solved is left as it is."""
    s, d, x, v, rng = solved(name)
    away = 10.0 ** np.array([-16.0, -2, -4, -1, -3])[:, None]
    start = x + away * rng.standard_normal(x.shape), v + away * rng.standard_normal(v.shape)
    plan = kind(s, d)
    whole, taken, _ = plan.refine(d, Products.of(s, d), *start, 12)
    assert taken[0] == 0 and np.array_equal(whole.x[0], start[0][0])
    for i in range(5):
        one = np.array([i])
        part = d.take(one)
        alone, steps, _ = plan.refine(part, Products.of(s, part), start[0][one], start[1][one], 12)
        assert np.array_equal(alone.x[0], whole.x[i]) and np.array_equal(alone.v[0], whole.v[i]) and steps[0] == taken[i]
    b = d.b.copy()
    b[3, 0] = np.nan
    spoiled = Data(d.P, d.q, d.d, d.A, b)
    beside, _, _ = plan.refine(spoiled, Products.of(s, spoiled), *start, 12)
    rest = [0, 1, 2, 4]
    np.testing.assert_array_equal(beside.x[rest], whole.x[rest])
    np.testing.assert_array_equal(beside.norm[rest], whole.norm[rest])
    assert np.isinf(beside.norm[3])


@pytest.mark.parametrize("name", programs.CONES)
def test_f_is_the_optimality_conditions(name):
    """Zero exactly at solutions: F_x = Px + A'y + q and F_y = Ax + s - b with v = y - s split by the projection."""
    s, d, x, v, rng = solved(name)
    plan, products = ResidualMap(s, d), Products.of(s, d)
    assert plan.point(d, products, x, v).norm.max() < 1e-14
    x, v = rng.standard_normal(x.shape), rng.standard_normal(v.shape)
    point = plan.point(d, products, x, v)
    for i in range(5):
        P, A = programs.dense(s, d, i)
        y = s.cones.project_dual(v[i : i + 1]).y[0]
        np.testing.assert_allclose(point.F_x[i], P @ x[i] + A.T @ y + d.q[i], atol=1e-12)
        np.testing.assert_allclose(point.F_y[i], A @ x[i] + y - v[i] - d.b[i], atol=1e-12)
    assert np.all(point.norm > 1e-3)


@needs_kernels
@pytest.mark.parametrize("name", programs.CONES)
def test_the_compiled_map_is_the_numpy_one(name):
    s, d, x, v, rng = solved(name)
    ours, theirs = LanesMap(s, d), ResidualMap(s, d)
    assert isinstance(residual_map(s, d), LanesMap)
    products = Products.of(s, d)
    start = x + 0.01 * rng.standard_normal(x.shape), v + 0.01 * rng.standard_normal(v.shape)
    one, _, linear = ours.refine(d, products, *start, 0)
    two = theirs.point(d, products, *start)
    for a in ("x", "v", "y", "F_x", "F_y", "norm"):
        np.testing.assert_allclose(getattr(one, a), getattr(two, a), rtol=1e-12, atol=1e-13)
    r_x, h = rng.standard_normal(x.shape), rng.standard_normal(v.shape)
    for a, b in zip(linear.solve(r_x, h)[:2], theirs.linearize(d, two).solve(r_x, h)[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9 * (1 + np.abs(b).max()))
    assert not linear.singular().any() and not theirs.linearize(d, two).singular().any()


@needs_kernels
def test_systems_of_psd_cones_that_would_be_too_large_stay_in_numpy(monkeypatch):
    s, d, *_ = solved("psd")
    assert type(residual_map(s, d)) is LanesMap
    monkeypatch.setattr(rotation, "LARGEST", 30)
    assert type(residual_map(s, d)) is ResidualMap


@pytest.mark.parametrize("name", programs.CONES)
def test_kinks_are_seen_at_points_and_only_there(name):
    s, d, x, v, _ = solved(name)
    plan, products = ResidualMap(s, d), Products.of(s, d)
    assert plan.point(d, products, x, v).smooth().all()
    v[2, :] = 0.0
    assert plan.point(d, products, x, v).smooth().tolist() == [True, True, name == "zero", True, True]
