"""Projections and their derivatives against 50 digits."""

import mpmath as mp
import numpy as np
import pytest

from layercompiler.cones import PSD, Exponential, Power, SecondOrder
from tests.cones import points, reference

EPS = 2.0**-52
# Rounding of a few three-term products in an orthonormal frame; seen 1.2e-15 in millions of points.
BOUND = 8 * EPS


def cases(kind, count, seed):
    rng = np.random.default_rng(seed)
    if kind == "exponential":
        v = points.exponential(rng, count)
        return Exponential(), v, [reference.Exponential()] * count
    v, alpha = points.power(rng, count)
    return Power(tuple(alpha)), v, [reference.Power(a) for a in alpha]


def bends(p):
    """Largest entry of the second derivative times |v|: how much a relative change of v moves the derivative."""
    u = np.broadcast_to(np.eye(3)[:, None, None, None], (3, 3, *p.y.shape))
    second = p.second(np.broadcast_to(np.eye(3)[:, None, None], u.shape), u)[:, :, 0]
    return np.abs(second).max(axis=(0, 1, 3)) * np.linalg.norm(p.v[0], axis=1)


def error(y, exact):
    """Largest difference of a row of floats and one of mpf."""
    return max(abs(float(mp.mpf(float(a)) - b)) for a, b in zip(y, exact, strict=True))


@pytest.mark.parametrize("kind", ["exponential", "power"])
@pytest.mark.parametrize("seed", [0, 1])
def test_projection_and_derivative(kind, seed):
    cone, v, references = cases(kind, 1500, seed)
    p = cone.project_dual(v[None])
    D = p.apply(np.broadcast_to(np.eye(3)[:, None, None], (3, *p.y.shape)))[:, 0]
    bend, smooth = bends(p), p.smooth[0]
    curved = 0
    for i in range(len(v)):
        y, exact = reference.project(references[i], v[i], p.y[0, i])
        assert error(p.y[0, i], y) <= BOUND * np.linalg.norm(v[i]), (v[i], cone)
        if exact is not None and smooth[i]:
            curved += 1
            off = max(abs(float(exact[j][k]) - D[j, i, k]) for j in range(3) for k in range(3))
            assert off <= BOUND * (1 + bend[i]), (v[i], references[i])
    assert curved > 500


def extremes(rng, count):
    """Every magnitude a double has, and zeros."""
    return np.exp(rng.uniform(-700, 700, (count, 3))) * rng.choice([-1, 1, 0], (count, 3), p=[0.45, 0.45, 0.1])


@pytest.mark.parametrize("kind", ["exponential", "power"])
@pytest.mark.parametrize("extreme", [False, True])
def test_moreau_on_many_points(kind, extreme):
    """v = y - s with y in K*, s in K, <y, s> = 0, so that y is the projection: a certificate without a reference."""
    rng = np.random.default_rng(4)
    count = 40000
    if kind == "exponential":
        v, cone = points.exponential(rng, count), Exponential()
    else:
        v, alpha = points.power(rng, count)
        if extreme:  # exponents down to the smallest double, and up to the largest below 1
            alpha = np.where(rng.random(count) < 0.5, np.exp(rng.uniform(-740, -0.7, count)), 1 - np.exp(rng.uniform(-36, -0.7, count)))
        cone = Power(tuple(alpha))
    v = extremes(rng, count)[None] if extreme else v[None]
    p = cone.project_dual(v)
    y, s = p.y, p.y - v
    size = np.abs(v).max(axis=-1)
    scale = np.where(size > 0, size, 1.0)
    assert np.isfinite(y).all()
    assert np.all(np.abs(cone.project_dual(y).y - y).max(axis=-1) <= BOUND * size)
    assert np.all(np.abs(cone.project_dual(-s).y).max(axis=-1) <= BOUND * size)
    assert np.all(np.abs(np.sum(y / scale[..., None] * (s / scale[..., None]), axis=-1)) <= 2 * BOUND)
    T, N = p.expansion_values()
    assert np.isfinite(T).all() and N.min() >= -1 - EPS and N.max() <= 0


def test_power_next_to_the_plane_c_0():
    """Tiny c beside each sign of a and b, where rounding decides the region."""
    for a, b in ((1e-260, 0.8), (-1e-260, -0.8), (0.8, 1e-260), (-0.8, -1e-260), (0.8, -0.5), (-0.8, 0.5)):
        for c in (0.0, 1e-300, -1e-267, 1e-99):
            for alpha in (0.01, 0.3, 0.5, 0.7, 0.999):
                v = np.array([[[a, b, c]]])
                p = Power(alpha).project_dual(v)
                exact, _ = reference.project(reference.Power(alpha), v[0, 0], p.y[0, 0])
                assert error(p.y[0, 0], exact) <= BOUND, (v, alpha)


@pytest.mark.parametrize("kind", ["exponential", "power"])
def test_second_derivative(kind):
    """Central differences of the derivative in 50 digits, with steps of 1e-22: their own error is below 1e-16."""
    cone, v, references = cases(kind, 300, 2)
    rng = np.random.default_rng(3)
    u, w = rng.standard_normal((2, 1, *v.shape))
    p = cone.project_dual(v[None])
    S, smooth, bend = p.second(u, w)[0], p.smooth[0], bends(p)
    tested = 0
    for i in np.flatnonzero(smooth):
        size = np.abs(v[i]).max()
        if kind == "power" and abs(v[i, 2]) < 1e-6 * size:
            continue  # the projection has terms like |c|^(1/alpha), with unbounded higher derivatives at c = 0
        with mp.workdps(reference.DIGITS):
            h = mp.mpf(10) ** -22 * float(size)
            ends = [[mp.mpf(float(a)) + sign * h * float(b) for a, b in zip(v[i], w[0, i], strict=True)] for sign in (1, -1)]
            D = [reference.derivative(references[i], end, p.y[0, i]) for end in ends]
            if D[0] is None or D[1] is None:
                assert not S[i].any()
                continue
            exact = [mp.fsum((D[0][j][k] - D[1][j][k]) * float(u[0, i, k]) for k in range(3)) / (2 * h) for j in range(3)]
        # Relative to the largest entry of the form, and as sensitive as the form itself; exponentials of rho, up to 40, are right to
        # 40 EPS; a power cone with a small exponent has an edge, sharp to its width.
        width = 1.0 if kind == "exponential" else float(min(references[i].alpha, references[i].beta))
        scale = (1 + bend[i]) / size * np.linalg.norm(u[0, i]) * np.linalg.norm(w[0, i])
        assert error(S[i], exact) <= 16 * BOUND * (1 + bend[i]) / width * scale, (v[i], references[i])
        tested += 1
    assert tested > 100


def test_second_order():
    rng = np.random.default_rng(0)
    for dim in (1, 2, 3, 8):
        z = points.magnitudes(rng, 300, dim)
        length = np.linalg.norm(z[:, 1:], axis=1)
        z[::3, 0] = length[::3] * rng.choice([-1, 1], 100) * (1 + rng.choice([0, 1e-16, -1e-16, 1e-12, 1e-8], 100))
        y = SecondOrder(dim).project_dual(z[None]).y[0]
        for i in range(len(z)):
            with mp.workdps(reference.DIGITS):
                t, *x = (mp.mpf(float(e)) for e in z[i])
                n = mp.sqrt(mp.fdot(x, x)) if x else mp.mpf(0)
                if n <= t:
                    exact = [t, *x]
                elif n <= -t:
                    exact = [mp.mpf(0)] * dim
                else:
                    exact = [(t + n) / 2, *((t + n) / 2 * e / n for e in x)]
                assert error(y[i], exact) <= 8 * EPS * np.linalg.norm(z[i])


def test_psd():
    rng = np.random.default_rng(0)
    for k in (1, 2, 3, 4):
        cone = PSD(k)
        v = rng.standard_normal((20, cone.dim)) * np.exp(rng.uniform(-18, 18, (20, 1)))
        y = cone.project_dual(v[None]).y[0]
        at = [(i, j) for j in range(k) for i in range(j, k)]
        for row, mine in zip(v, y, strict=True):
            with mp.workdps(30):
                M = mp.zeros(k)
                for (i, j), e in zip(at, row, strict=True):
                    M[i, j] = M[j, i] = mp.mpf(float(e)) / (1 if i == j else mp.sqrt(2))
                w, Q = mp.eigsy(M)
                Y = Q * mp.diag([max(e, 0) for e in w]) * Q.T
                exact = [Y[i, j] * (1 if i == j else mp.sqrt(2)) for i, j in at]
            # LAPACK's eigenvectors are orthogonal to a few k units.
            assert error(mine, exact) <= 10 * k * EPS * np.linalg.norm(row)
