"""What every cone promises, whatever it is."""

import itertools
import pickle
import warnings

import numpy as np
import pytest

from layercompiler.cones import PSD, Exponential, Nonnegative, Power, SecondOrder, Zero

CONES = [
    Zero(),
    Nonnegative(),
    SecondOrder(1),
    SecondOrder(2),
    SecondOrder(3),
    SecondOrder(7),
    PSD(1),
    PSD(2),
    PSD(4),
    PSD(5),
    Exponential(),
    Power(0.5),
    Power(0.3),
    Power((0.9, 0.01, 0.5, 0.2, 0.99)),
]
COUNT = 5
EPS = 2.0**-52

every_cone = pytest.mark.parametrize("cone", CONES, ids=repr)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def draw(cone, batch=40, seed=0, spread=3.0):
    """Points (batch, COUNT, dim) of several magnitudes; some cones at integer points, where ties and kinks are."""
    rng = np.random.default_rng(seed)
    v = rng.standard_normal((batch, COUNT, cone.dim)) * np.exp(rng.uniform(-spread, spread, (batch, COUNT, 1)))
    v[: batch // 4] = rng.integers(-2, 3, (batch // 4, COUNT, cone.dim))
    return v


def size(v):
    return np.linalg.norm(v, axis=-1)


def dense(p):
    """(B, count, dim, dim) D by columns."""
    identity = np.eye(p.y.shape[-1])
    return np.stack([p.apply(np.broadcast_to(e, p.y.shape)) for e in identity], axis=-1)


@every_cone
def test_projection_is_characterized_by_moreau(cone):
    """y in K*, s = y - v in K (-s projects onto 0), <y, s> = 0."""
    v = draw(cone)
    y = cone.project_dual(v).y
    s = y - v
    bound = 30 * EPS * size(v)
    assert np.all(size(cone.project_dual(y).y - y) <= bound)
    assert np.all(size(cone.project_dual(-s).y) <= bound)
    assert np.all(np.abs(np.sum(y * s, axis=-1)) <= bound * size(v))


@every_cone
@pytest.mark.parametrize("factor", [2.0**-60, 2.0**60, 2.0**-500, 2.0**500])
def test_projection_is_homogeneous(cone, factor):
    """Powers of two commute with every rounding."""
    v = draw(cone)
    p, q = cone.project_dual(v), cone.project_dual(v * factor)
    np.testing.assert_allclose(q.y, p.y * factor, rtol=0, atol=30 * EPS * factor * size(v).max())
    np.testing.assert_allclose(dense(q), dense(p), rtol=0, atol=1e-13)


@every_cone
def test_derivative_is_symmetric_between_zero_and_one(cone):
    v = draw(cone)
    p = cone.project_dual(v)
    D = dense(p)
    np.testing.assert_allclose(D, D.swapaxes(-1, -2), rtol=0, atol=20 * EPS)
    w = np.linalg.eigvalsh(D)
    assert w.min() >= -20 * EPS and w.max() <= 1 + 20 * EPS
    assert np.all(size(p.apply(v) - p.y) <= 40 * EPS * size(v))  # Euler: degree one


@every_cone
def test_derivative_is_that_of_the_projection(cone):
    v, p, smooth = smooth_points(cone)
    u = np.random.default_rng(1).standard_normal(v.shape)
    exact = p.apply(u)
    error = differences(lambda h: cone.project_dual(v + h * u).y) - exact
    assert np.abs(error)[smooth].max(initial=0.0) < 1e-7
    assert smooth.sum() > smooth.size / 2


@every_cone
def test_second_derivative_is_that_of_the_derivative(cone):
    v, p, smooth = smooth_points(cone)
    u, w = np.random.default_rng(1).standard_normal((2, *v.shape))
    error = differences(lambda h: cone.project_dual(v + h * w).apply(u)) - p.second(u, w)
    scale = 1 + np.abs(p.second(u, w)).max(axis=-1)
    assert (np.abs(error).max(axis=-1) / scale)[smooth].max(initial=0.0) < 1e-5


@every_cone
def test_second_derivative_is_a_symmetric_trilinear_form(cone):
    v, p, smooth = smooth_points(cone)
    u, w, z = np.random.default_rng(1).standard_normal((3, *v.shape))
    scale = np.abs(p.second(u, w)).max() + 1
    np.testing.assert_allclose(p.second(u, w), p.second(w, u), rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(np.sum(z * p.second(u, w), -1), np.sum(u * p.second(z, w), -1), rtol=0, atol=1e-12 * scale)
    # D has degree zero: nothing changes along v.
    assert np.abs(p.second(u, v))[smooth].max(initial=0.0) < 1e-12 * scale


@every_cone
def test_expansion_is_equivalent_to_the_square_root(cone):
    """[[P, A'T, 0], [T'A, N]] and [[P, A'S], [S A, -(I - D)]] give the same dx and dy = T tau = S sigma."""
    rng = np.random.default_rng(2)
    v = draw(cone, batch=16, spread=1.0)
    p = cone.project_dual(v)
    e, (T, N), D = cone.expansion, p.expansion_values(), dense(p)
    assert T.shape == (*v.shape[:2], len(e.T_rows)) and N.shape == (*v.shape[:2], len(e.N_rows))
    assert len(e.signs) == e.size and e.signs.dtype == np.int8 and np.all(e.N_rows <= e.N_cols)
    n = cone.dim + 2
    for b in range(v.shape[0]):
        for c in range(v.shape[1]):
            P, A = np.eye(n), rng.standard_normal((cone.dim, n))
            r, h = rng.standard_normal(n), rng.standard_normal(cone.dim)
            t, nn = np.zeros((cone.dim, e.size)), np.zeros((e.size, e.size))
            t[e.T_rows, e.T_cols] = T[b, c]
            nn[e.N_rows, e.N_cols] = nn[e.N_cols, e.N_rows] = N[b, c]
            full = np.block([[P, A.T @ t], [t.T @ A, nn]])
            ours = np.linalg.lstsq(full, np.concatenate([r, t.T @ h]), rcond=1e-12)[0]
            lam, Q = np.linalg.eigh(D[b, c])
            S = Q * np.sqrt(np.clip(lam, 0, 1)) @ Q.T
            theirs = np.linalg.lstsq(
                np.block([[P, A.T @ S], [S @ A, D[b, c] - np.eye(cone.dim)]]), np.concatenate([r, S @ h]), rcond=1e-12
            )[0]
            np.testing.assert_allclose(ours[:n], theirs[:n], rtol=0, atol=1e-7 * (1 + np.abs(theirs).max()))
            np.testing.assert_allclose(t @ ours[n:], S @ theirs[n:], rtol=0, atol=1e-7 * (1 + np.abs(theirs).max()))
            regular = full + 1e-7 * np.diag(np.concatenate([np.ones(n), e.signs]))
            assert np.sum(np.linalg.eigvalsh(regular) < 0) == np.sum(e.signs < 0)


@every_cone
def test_batch_equals_singles(cone):
    """To the bit: no cone and no instance depends on its neighbors."""
    v = draw(cone, batch=12)
    u, w = np.random.default_rng(1).standard_normal((2, *v.shape))
    p = cone.project_dual(v)
    T, N = p.expansion_values()
    for b in range(len(v)):
        q = cone.project_dual(v[b : b + 1])
        assert np.array_equal(q.y[0], p.y[b]) and np.array_equal(q.smooth[0], p.smooth[b])
        assert np.array_equal(q.expansion_values()[0][0], T[b]) and np.array_equal(q.expansion_values()[1][0], N[b])
        np.testing.assert_allclose(q.apply(u[b : b + 1])[0], p.apply(u)[b], rtol=0, atol=1e-13)
        np.testing.assert_allclose(q.second(u[b : b + 1], w[b : b + 1])[0], p.second(u, w)[b], rtol=1e-12, atol=1e-12)


@every_cone
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_instance_is_alone(cone, bad):
    v = draw(cone, batch=8)
    good = cone.project_dual(v)
    spoiled = v.copy()
    spoiled[3, 2, -1] = bad
    with np.errstate(invalid="ignore"):
        p = cone.project_dual(spoiled)
        p.apply(v), p.second(v, v), p.expansion_values()
    rest = np.arange(8) != 3
    assert np.array_equal(p.y[rest], good.y[rest]) and np.array_equal(p.y[3, :2], good.y[3, :2])
    if np.isnan(bad):
        assert not np.isfinite(p.y[3, 2]).all()


@every_cone
def test_empty_and_extra_axes(cone):
    for shape in ((0, COUNT), (3, 0)) if not isinstance(getattr(cone, "alpha", 0), tuple) else ((0, COUNT),):
        p = cone.project_dual(np.zeros((*shape, cone.dim)))
        assert p.y.shape == (*shape, cone.dim) and p.smooth.shape == shape
        assert p.apply(p.y).shape == p.y.shape and p.second(p.y, p.y).shape == p.y.shape
        assert p.expansion_values()[0].shape == (*shape, len(cone.expansion.T_rows))
    v = draw(cone, batch=4)
    p = cone.project_dual(v)
    u, w = np.random.default_rng(0).standard_normal((2, 2, 3, *v.shape))
    np.testing.assert_allclose(p.apply(u)[1, 2], p.apply(u[1, 2]), rtol=0, atol=1e-14)
    np.testing.assert_allclose(p.second(u, w)[1, 2], p.second(u[1, 2], w[1, 2]), rtol=1e-13, atol=1e-13)


@every_cone
def test_cones_are_values(cone):
    twin = pickle.loads(pickle.dumps(cone))
    assert twin == cone and hash(twin) == hash(cone) and isinstance(cone.name, str)
    v = draw(cone, batch=2)
    p = cone.project_dual(v)
    assert np.array_equal(pickle.loads(pickle.dumps(p)).y, p.y)
    before = v.copy()
    p.apply(v), p.second(v, v), p.expansion_values()
    assert np.array_equal(v, before)


@every_cone
def test_zero_is_a_kink(cone):
    p = cone.project_dual(np.zeros((1, COUNT, cone.dim)))
    assert not p.y.any() and (cone == Zero() or not p.smooth.any())


KINKS = [
    (Nonnegative(), [0.0]),
    (SecondOrder(3), [5.0, 3.0, 4.0]),
    (SecondOrder(3), [-5.0, 3.0, 4.0]),
    (PSD(2), [1.0, 0.0, 0.0]),
    (PSD(2), [1.0, np.sqrt(2.0), 1.0]),
    (Exponential(), [-1.0, -1.0, -np.e]),  # -v on the boundary of K
    (Exponential(), [-1.0, 0.0, np.exp(-1.0)]),  # on the boundary of K*
    (Exponential(), [1.0, 2.0, 0.0]),  # c = 0 with -v = (-1, -2, 0)
    (Exponential(), [0.0, 2.0, -1.0]),  # a = 0
    (Exponential(), [1.0, 0.0, -1.0]),  # b = 0
    (Power(0.5), [-1.0, -1.0, 1.0]),  # -v on the boundary of K
    (Power(0.5), [0.5, 0.5, 1.0]),  # on the boundary of K*
    (Power(0.3), [0.0, -1.0, 0.0]),
]


@pytest.mark.parametrize(("cone", "v"), KINKS, ids=repr)
def test_kinks_are_flagged(cone, v):
    v = np.array(v)
    near = v + 1e-12 * np.random.default_rng(0).standard_normal((1, 50, cone.dim))
    assert not cone.project_dual(near).smooth.any()
    assert cone.project_dual(v + 0.1 * np.random.default_rng(0).standard_normal((1, 50, cone.dim))).smooth.mean() > 0.9


@pytest.mark.parametrize("cone", [Exponential(), Power(0.3), Power(0.5)], ids=repr)
def test_interiors_are_smooth(cone):
    inside = {"exponential": [0.3, 1.0, 2.0], "power": [1.0, 2.0, 0.5]}[cone.name]
    v = -np.array([[inside]])
    p = cone.project_dual(v)
    assert p.smooth.all() and not p.y.any()


def smooth_points(cone):
    v = draw(cone, batch=40, spread=0.5)[10:]
    p = cone.project_dual(v)
    # Differences must not reach over a kink: every point of the stencil keeps to one side where the derivative is continuous.
    rng = np.random.default_rng(5)
    smooth = p.smooth.copy()
    D = dense(p)
    for _ in range(4):
        near = dense(cone.project_dual(v + 2e-3 * rng.standard_normal(v.shape)))
        smooth &= np.abs(near - D).max(axis=(-1, -2)) < 0.05
    return v, p, smooth


def differences(f, h=1e-3):
    """Derivative at 0 by three levels of Richardson extrapolation."""
    table = [(f(s) - f(-s)) / (2 * s) for s in (h, h / 2, h / 4)]
    first = [(4 * b - a) / 3 for a, b in itertools.pairwise(table)]
    return (16 * first[1] - first[0]) / 15
