"""Cones in array functions: Nesterov-Todd scaling, steps, projections, against their definitions and differences."""

import numpy as np

from layercompiler import arrays, cones
from layercompiler.solvers.interior_point.symmetric import Symmetric

XP = arrays.get("numpy")
CONE = Symmetric(3, ((2, 4), (1, 3)))


def inside(r, batch=7):
    v = r.standard_normal((batch, CONE.m))
    return v + (CONE.shift(XP, v) + 0.3)[:, None] * CONE.identity


def test_scaling_takes_one_to_the_other_and_its_matrix_is_the_same():
    r = np.random.default_rng(0)
    s, z, x = inside(r), inside(r), r.standard_normal((7, CONE.m))
    W = CONE.scaling(XP, s, z)
    np.testing.assert_allclose(CONE.square(XP, W, z), s, atol=1e-12)
    np.testing.assert_allclose(CONE.square(XP, W, s, inverse=True), z, atol=1e-12)
    M = CONE.add_square(XP, np.zeros((7, CONE.m, CONE.m)), W)
    np.testing.assert_allclose(np.einsum("bij,bj->bi", M, x), CONE.square(XP, W, x), atol=1e-12)
    np.testing.assert_allclose(CONE.corrector(XP, W, s, z, 0 * s, 0 * z, np.zeros((7, 1))), s, atol=1e-12)


def test_the_longest_step_ends_on_the_boundary():
    r = np.random.default_rng(1)
    s, d = inside(r), r.standard_normal((7, CONE.m))
    inverse = CONE.inverse_step(XP, s, d)
    bounded = inverse > 0
    assert bounded.any()
    end = s[bounded] + d[bounded] / inverse[bounded][:, None]
    np.testing.assert_allclose(CONE.shift(XP, end), 0.0, atol=1e-12)


def test_projection_and_derivatives_are_those_of_the_cones():
    r = np.random.default_rng(2)
    v, a, b = (r.standard_normal((40, CONE.m)) for _ in range(3))
    theirs = cones.Product(((cones.Nonnegative(), 3), (cones.SecondOrder(4), 2), (cones.SecondOrder(3), 1))).project_dual(v)
    D = CONE.derivative(XP, v)
    np.testing.assert_allclose(CONE.project(XP, v), theirs.y, atol=1e-13)
    np.testing.assert_allclose(CONE.traceable(XP, v), theirs.y, atol=1e-13)
    np.testing.assert_allclose(CONE.apply(XP, D, a), theirs.apply(a), atol=1e-13)
    np.testing.assert_allclose(CONE.second(XP, v, a, b), theirs.second(a, b), atol=1e-12)
    np.testing.assert_allclose(CONE.apply(XP, D, v), theirs.y, atol=1e-13)  # projections onto cones are positively homogeneous
    root = D.map(np.sqrt)
    np.testing.assert_allclose(CONE.apply(XP, root, CONE.apply(XP, root, a)), theirs.apply(a), atol=1e-13)


def test_at_a_kink_units_do_not_decide():
    u = np.array([0.6, -0.3, 0.2])
    v = np.concatenate([[-np.linalg.norm(u)], u])[None]
    cone = Symmetric(0, ((1, 4),))
    for scale in (1.0, 1 / 3, 7e-5, 123.4):
        d0, d1, d2, _ = cone.derivative(XP, scale * v).groups[0]
        assert d0 == d1 == d2 == 0.0
