"""Projections in 50 digits, certified by their optimality conditions and independent of the package's formulas.

A point p of a cone K in R^3 is the projection of n exactly when p is in K, p - n is in K* and <p, p - n> = 0. The references
look for p on the boundary ray x(rho) with the outer normal y(rho), by Newton on <n, x(rho) x y(rho)> = 0 from a start that may be
anything, else from bisection of an equation of the literature; they raise where the conditions do not hold to 36 digits.
"""

import mpmath as mp
import numpy as np

DIGITS = 50


def dot(a, b):
    return mp.fdot(zip(a, b, strict=True))


def cross(a, b):
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


def along(n, d):
    """The part of n along d."""
    scale = dot(n, d) / dot(d, d)
    return [scale * e for e in d]


class Exponential:
    """Boundary rays of cl{(a, b, c): b exp(a / b) <= c} and their outer normals."""

    def rays(self, rho):
        e = mp.exp(-abs(rho))
        if rho >= 0:
            return (rho * e, e, mp.mpf(1)), (mp.mpf(1), 1 - rho, -e), (e, mp.mpf(0), mp.mpf(1)), (mp.mpf(0), mp.mpf(-1), e)
        # The derivatives hold up to multiples of the rays themselves, which do not turn anything.
        return (rho, mp.mpf(1), e), (e, (1 - rho) * e, mp.mpf(-1)), (mp.mpf(1), mp.mpf(0), e), (mp.mpf(0), -e, mp.mpf(1))

    def flat(self, n):
        a, b, c = n
        if (b > 0 and b * mp.exp(a / b) <= c) or (b == 0 and a <= 0 and c >= 0):
            return [a, b, c]
        if (a > 0 and a * mp.exp(b / a - 1) <= -c) or (a == 0 and b <= 0 and c <= 0):
            return [mp.mpf(0)] * 3
        if a <= 0 and b <= 0:
            return [a, mp.mpf(0), max(c, mp.mpf(0))]
        return None

    def start(self, y):
        return None if y[0] == 0 or not np.isfinite(y[1] / y[0]) else mp.mpf(1) - mp.mpf(float(y[1])) / mp.mpf(float(y[0]))

    def search(self, n):
        """rho by bisection between the ends 1 - b / a and a / b, where the two parts of n vanish (Friberg 2021)."""
        a, b, c = n

        def side(rho):
            square = rho * rho - rho + 1
            return ((rho - 1) * a + b) / square * mp.exp(rho) - (a - rho * b) / square * mp.exp(-rho) - c

        lo, hi = (1 - b / a if a > 0 else None), (a / b if b > 0 else None)
        step = mp.mpf(1)
        while lo is None or hi is None:
            step *= 2
            if lo is None and side(hi - step) < 0:
                lo = hi - step
            if hi is None and side(lo + step) > 0:
                hi = lo + step
        return bisect(side, lo, hi)


class Power:
    """Boundary rays of {(a, b, c): a^alpha b^(1 - alpha) >= |c|} and their outer normals, c >= 0; rho = log(a / b)."""

    def __init__(self, alpha):
        with mp.workdps(DIGITS):
            self.alpha = mp.mpf(float(alpha))
            self.beta = 1 - self.alpha

    def rays(self, rho):
        A, B = self.alpha, self.beta
        e, f = mp.exp(-B * rho), mp.exp(A * rho)
        x, dx = (1 / e, 1 / f, mp.mpf(1)), (B / e, -A / f, mp.mpf(0))
        return x, (-A * e, -B * f, mp.mpf(1)), dx, (A * B * e, -A * B * f, mp.mpf(0))

    def flat(self, n):
        a, b, c = n
        A, B = self.alpha, self.beta
        if a >= 0 and b >= 0 and (c == 0 or (a > 0 and b > 0 and A * mp.log(a) + B * mp.log(b) >= mp.log(c))):
            return [a, b, c]
        if a <= 0 and b <= 0 and (c == 0 or (a < 0 and b < 0 and A * mp.log(-a / A) + B * mp.log(-b / B) >= mp.log(c))):
            return [mp.mpf(0)] * 3
        if c == 0:
            return [max(a, mp.mpf(0)), max(b, mp.mpf(0)), c]
        return None

    def start(self, y):
        if y[0] <= 0 or y[1] <= 0:
            return None
        return mp.log(mp.mpf(float(y[1])) / self.beta) - mp.log(mp.mpf(float(y[0])) / self.alpha)

    def search(self, n):
        """rho by bisection for r in the product equation of Hien 2015, in log(r / (c - r))."""
        a, b, c = n

        def sides(t):
            product = c * c / (2 + mp.exp(t) + mp.exp(-t))
            return [
                (e + mp.sqrt(e * e + 4 * k * product)) / 2 if e > 0 else 2 * k * product / (mp.sqrt(e * e + 4 * k * product) - e)
                for e, k in ((a, self.alpha), (b, self.beta))
            ]

        def side(t):
            p = sides(t)
            return mp.log(c / (1 + mp.exp(-t))) - self.alpha * mp.log(p[0]) - self.beta * mp.log(p[1])

        far = 2000 / min(self.alpha, self.beta)
        p = sides(bisect(side, -far, far))
        return mp.log(p[0] / p[1])


def turn(cone, n, rho):
    """(<n, w>, its slope, <n, x^>, <n, y^>) with w = y^ x x^ the third axis of the orthonormal frame at rho."""
    x, y, dx, dy = cone.rays(rho)
    w = cross(y, x)
    size_x, size_y = mp.sqrt(dot(x, x)), mp.sqrt(dot(y, y))
    size = size_x * size_y
    X, Y, G = dot(n, x) / size_x, dot(n, y) / size_y, dot(n, w) / size
    p, q = dot(dx, w) / size / size_x, dot(dy, w) / size / size_y
    return G, -(p * X + q * Y), X, Y


def root(cone, n, start):
    """rho with <n, w> = 0 and both parts positive, certified."""
    size = mp.sqrt(dot(n, n))
    for first in (start, None):
        rho = first if first is not None else cone.search(n)
        for _ in range(12 if first is not None else 100):
            G, slope, X, Y = turn(cone, n, rho)
            if abs(G) < mp.mpf(10) ** -36 * size or slope == 0:
                break
            rho -= G / slope
        if X > 0 and Y > 0 and abs(G) < mp.mpf(10) ** -36 * size:
            return rho
    raise ArithmeticError(f"no certified root at {n}")


def bisect(function, lo, hi):
    """Root of an increasing function."""
    for _ in range(mp.mp.prec):
        mid = (lo + hi) / 2
        if function(mid) < 0:
            lo = mid
        else:
            hi = mid
        if abs(hi - lo) < mp.mpf(10) ** -44 * (abs(lo) + abs(hi)):
            break
    return (lo + hi) / 2


def derivative(cone, v, y):
    """dProj_{K*}(v) as nested lists of mpf, None where it is diagonal; v of mpf. Call it with the working precision set."""
    n, mirror = folded(cone, v)
    return None if cone.flat(n) is not None else derivative_at(cone, n, mirror, root(cone, n, cone.start(y)))


def folded(cone, v):
    """-v, for the power cone with c >= 0, and whether c changed its sign."""
    n = [-e for e in v]
    mirror = isinstance(cone, Power) and n[2] < 0
    if mirror:
        n[2] = -n[2]
    return n, mirror


def derivative_at(cone, n, mirror, rho):
    x, normal, dx, dy = cone.rays(rho)
    w = cross(normal, x)
    size_x, size_y = mp.sqrt(dot(x, x)), mp.sqrt(dot(normal, normal))
    size = size_x * size_y
    turn_x, turn_y = dot(dx, w) / size / size_x, dot(dy, w) / size / size_y
    X, Y = dot(n, x) / size_x, dot(n, normal) / size_y
    rest = turn_y * Y / (turn_x * X + turn_y * Y)
    sign = (1, 1, -1) if mirror else (1, 1, 1)
    return [[sign[i] * sign[j] * (normal[i] * normal[j] / size_y**2 + rest * w[i] * w[j] / size**2) for j in range(3)] for i in range(3)]


def project(cone, v, y):
    """(Proj_{K*}(v), its derivative or None) of a row v of floats; `y`, any approximation of the projection, is only a start."""
    with mp.workdps(DIGITS):
        n, mirror = folded(cone, [mp.mpf(float(e)) for e in v])
        p = cone.flat(n)
        D = None
        if p is None:
            rho = root(cone, n, cone.start(y))
            p = along(n, cone.rays(rho)[0])
            D = derivative_at(cone, n, mirror, rho)
        out = [a - b for a, b in zip(p, n, strict=True)]
        if mirror:
            out[2] = -out[2]
        return out, D
