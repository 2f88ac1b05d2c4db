"""The exponential cone K = cl{(a, b, c): b > 0, b exp(a / b) <= c} and the projection onto its dual.

With rho = a / b the boundary rays are (rho, 1, e^rho) and their outer normals (1, 1 - rho, -e^-rho). The first two coordinates of
n = mu (rho, 1, e^rho) + nu (1, 1 - rho, -e^-rho) give, with Delta = rho^2 - rho + 1,

    mu = ((rho - 1) a + b) / Delta,   nu = (a - rho b) / Delta,

positive between the ends rho = 1 - b / a and rho = a / b, and the third is c = 2 sqrt(mu nu) sinh(rho + log(mu / nu) / 2), so

    Phi(rho) = rho + log(mu / nu) / 2 - asinh(c / (2 sqrt(mu nu))) = 0.

Phi is increasing, and nearly linear in rho plus the logarithm of the distance to an end: a handful of Newton steps from the Lambert
function of the nearer end reaches every root. Source: Friberg 2021 (the univariate equation in rho); its asinh form is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercompiler.cones.surface import Frame, SurfaceCone, SurfaceProjection

_FACE = 1e-100  # below this share of |v|, a and b count as not positive
_TINY = 1e-290


@dataclass(frozen=True)
class Exponential(SurfaceCone):
    """One exponential cone, three rows."""

    name = "exponential"

    def project_dual(self, v: np.ndarray) -> SurfaceProjection:
        """Project v (B, count, 3) onto K* = cl{(a, b, c): a < 0, -a exp(b / a) <= e c}.

        Differentiability: not at the boundary of K*, of -K, and where two of a = 0, b <= 0, c = 0 meet in -v; there, the
        derivative of a neighboring region. Cost: about 200 numpy calls on the cones outside K* and -K, of any number.
        """
        return _ExponentialProjection(v)


class _ExponentialProjection(SurfaceProjection):
    def _flat(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a, b, c = n
        growth, decay = np.exp(a / b), np.exp(b / a - 1.0)
        primal, dual = c - b * growth, -c - a * decay
        inside, polar = (b > 0) & (primal >= 0), (a > 0) & (dual >= 0)
        corner = (a <= _FACE) & (b <= _FACE)
        curved = ~(inside | polar | corner)
        flat = np.zeros_like(n)
        flat[:, polar] = 1.0
        flat[1, corner], flat[2, corner] = 1.0, c[corner] <= 0
        # Both margins are concave, so margin / |gradient| bounds the distance to the boundary from below.
        primal = np.minimum(b, primal / np.sqrt(growth * growth * (1.0 + (1.0 - a / b) ** 2) + 1.0))
        dual = np.minimum(a, dual / np.sqrt(decay * decay * (1.0 + (1.0 - b / a) ** 2) + 1.0))
        gap = np.where(inside, primal, np.where(polar, dual, np.maximum(a, b)))
        return flat, np.where(corner, np.minimum(np.minimum(-a, -b), np.abs(c)), gap), curved

    def _frame(self, rho: np.ndarray) -> Frame:
        """x = (rho h, h, f), y = (f, (1 - rho) f, -h) with (f, h) = (1, e^-rho) or (e^rho, 1), whichever does not overflow."""
        e, up, one = np.exp(-np.abs(rho)), rho >= 0, 1.0 - rho
        f, h = np.where(up, 1.0, e), np.where(up, e, 1.0)
        ff, hh = f * f, h * h
        xx, yy = hh * (1.0 + rho * rho) + ff, ff * (1.0 + one * one) + hh
        x, y = np.sqrt(xx), np.sqrt(yy)
        xy = x * y
        axes = np.empty((3, 3, len(rho)))
        axes[0] = f / y, (one * ff + hh) / xy, rho * h / x
        axes[1] = one * f / y, -(ff + rho * hh) / xy, h / x
        axes[2] = -h / y, e * (rho * rho + one) / xy, f / x
        bend = 2.0 - 3.0 * ((one * ff + hh) / yy + (rho * hh + ff) / xx)
        return Frame(axes, h * y / xx, f * x / yy, bend)

    def _start(self, n: np.ndarray) -> np.ndarray:
        """Newton on Phi in delta, the distance of rho from the end (or 0) that lies towards zero from the root."""
        a, b, c = n
        low, high = np.where(a > 0, 1.0 - b / a, -np.inf), np.where(b > 0, a / b, np.inf)
        down = (a <= 0) | ((b > a) & (b - 2.0 * a > c))  # Phi(0) > 0
        sign = np.where(down, -1.0, 1.0)
        end = np.where(down, np.minimum(high, 0.0), np.maximum(low, 0.0))
        width = np.where(down, end - low, high - end)
        # mu Delta = mu0 + mu1 delta, nu Delta = nu0 + nu1 delta, with what vanishes at the end exactly zero.
        mu = np.where(end == low, 0.0, (end - 1.0) * a + b), sign * a
        nu = np.where(end == high, 0.0, a - end * b), -sign * b
        delta = np.minimum(_guess(c, end, sign, mu, nu), width)
        lo, hi = np.zeros_like(delta), np.nextafter(width, np.inf)
        open_ = np.ones(delta.shape, bool)
        for _ in range(80):
            phi, slope = _phi(c, end, sign, mu, nu, delta)
            lo, hi = np.where(phi <= 0, delta, lo), np.where(phi >= 0, delta, hi)
            trial = np.minimum(delta - phi / slope, width)
            outside = ~((trial > lo) & (trial < hi))
            if outside.any():
                trial = np.where(outside, np.where(np.isinf(hi), 2.0 * lo + 1.0, 0.5 * (lo + hi)), trial)
            moved = np.abs(trial - delta)
            delta = np.where(open_, trial, delta)
            open_ &= moved > 1e-8 * np.minimum(delta, 1.0) + 4e-16 * np.abs(end)
            if not open_.any():
                break
        return end + sign * delta


_Line = tuple[np.ndarray, np.ndarray]


def _phi(c: np.ndarray, end: np.ndarray, sign: np.ndarray, mu: _Line, nu: _Line, delta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sign * Phi, increasing in delta, and its slope."""
    rho = end + sign * delta
    square = rho * (rho - 1.0) + 1.0
    M, V = np.maximum(mu[0] + mu[1] * delta, _TINY), np.maximum(nu[0] + nu[1] * delta, _TINY)
    z = c * square / (2.0 * np.sqrt(M) * np.sqrt(V))
    phi = sign * (rho + 0.5 * np.log(M / V) - np.arcsinh(z))
    share = z / np.hypot(1.0, z)
    turn = (2.0 * rho - 1.0) / square
    slope = 1.0 + 0.5 * ((sign * mu[1] / M - turn) * (1.0 + share) - (sign * nu[1] / V - turn) * (1.0 - share))
    return phi, slope


def _guess(c: np.ndarray, end: np.ndarray, sign: np.ndarray, mu: _Line, nu: _Line) -> np.ndarray:
    """delta from delta + log(offset + slope delta) = level, what Phi is near an end, with one correction for Delta."""
    square = end * (end - 1.0) + 1.0
    up, far = sign > 0, np.exp(-np.abs(end))
    offset, slope = np.where(up, mu[0], nu[0]), np.where(up, mu[1], nu[1])
    reach = np.where(up, c * square + nu[0] * far, mu[0] * far - c * square)
    level = np.log(np.maximum(reach, _TINY)) - np.abs(end)
    log_offset, log_slope, log_square = np.log(offset), np.log(slope), np.log(square)
    delta = np.zeros_like(level)
    for _ in range(2):
        rho = end + sign * delta
        grown = level + np.log(rho * (rho - 1.0) + 1.0) - log_square
        w = np.log1p(np.exp(np.minimum(grown - log_slope, 700.0)))
        w *= 1.0 - np.log1p(w) / (2.0 + w)  # the Lambert function to 2 %
        delta = np.where(offset > 0, np.minimum(np.maximum(grown - log_offset, 0.0), w), w)
    return delta
