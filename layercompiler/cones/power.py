"""The power cone K = {(x, y, z): x^a y^(1-a) >= |z|, x, y >= 0} and the projection onto its dual.

A boundary point with r = |z| satisfies x = (x0 + sqrt(x0^2 + 4 a r (|z0| - r))) / 2 and the same for y with 1 - a; the root of
x^a y^(1-a) = r in (0, |z0|) is sought in tau = log(r / (|z0| - r)), where both ends keep their relative precision
(source: Hien 2015).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercompiler.cones.base import Projection
from layercompiler.cones.surface import Rays, SurfaceCone, SurfaceProjection, monotone_root


@dataclass(frozen=True)
class Power(SurfaceCone):
    """Power cones of three rows each.

    Attributes:
        alpha: One exponent in (0, 1) for all cones of a block, or one per cone.
    """

    alpha: float | tuple[float, ...]
    name = "power"

    def alphas(self, count: int) -> np.ndarray:
        """(count,) exponents."""
        return np.broadcast_to(np.asarray(self.alpha, dtype=float), (count,))

    def project_dual(self, v: np.ndarray) -> Projection:
        """Proj_{K*}(v) = v + Proj_K(-v)."""
        return _PowerProjection(v, self.alphas(v.shape[-2]))


class _PowerProjection(SurfaceProjection):
    def __init__(self, v: np.ndarray, alpha: np.ndarray) -> None:
        self.v, self.a = v, alpha
        scale = np.abs(v).max(axis=-1)
        finite = np.isfinite(scale)
        self.unit = unit = np.where(finite & (scale > 0), scale, 1.0)
        x0, y0, z0 = (np.where(finite, -v[..., i], 0.0) / unit for i in range(3))
        size = np.abs(z0)
        zero = np.zeros_like(x0)
        in_K = (x0 >= 0) & (y0 >= 0) & (_mean(x0, y0, alpha) >= size)
        in_polar = ~in_K & (x0 <= 0) & (y0 <= 0) & (_mean(-x0 / alpha, -y0 / (1 - alpha), alpha) >= size)
        corner = ~in_K & ~in_polar & (size == 0)
        curved = ~(in_K | in_polar | corner) & finite
        self.x0, self.y0, self.size = (np.where(curved, c, 0.0) for c in (x0, y0, size))
        self.size = np.where(curved, size, 1.0)
        self.sign = np.where(z0 < 0, -1.0, 1.0)
        tau = self._root()
        self.r, self.mu, self.x, self.y_, self.x_rest, self.y_rest, _ = self._point(tau)
        on_surface = np.stack([self.x_rest, self.y_rest, -self.mu * self.sign], -1)
        at_corner = np.stack([np.maximum(-x0, 0.0), np.maximum(-y0, 0.0), zero], -1)
        y = np.where(
            curved[..., None],
            on_surface,
            np.where(corner[..., None], at_corner, np.where(in_polar[..., None], -np.stack([x0, y0, z0], -1), 0.0)),
        )
        self.y = np.where(finite[..., None], y * unit[..., None], np.nan)
        # At a corner (z0 = 0) the projection of z is 0 for K if x or y is clipped, so the dual keeps it.
        self.flat = np.where(
            curved[..., None],
            np.nan,
            np.where(
                corner[..., None],
                np.stack([(x0 < 0).astype(float), (y0 < 0).astype(float), zero + 1.0], -1),
                in_polar[..., None].astype(float),
            ),
        )
        self.near_kink = np.where(curved, np.minimum(self.r, self.mu) < 1e-14, scale == 0)
        self.left = self.x <= self.y_
        with np.errstate(all="ignore"):  # w = (1/x, -1/y, 0) times the smaller of x and y, with a (z0 - r) r / x = x - x0
            self.rays = Rays(
                np.stack([self.x, self.y_, self.sign * self.r], -1),
                -on_surface,
                np.where(
                    self.left[..., None],
                    np.stack([zero + 1.0, -self.x / self.y_, zero], -1),
                    np.stack([self.y_ / self.x, zero - 1.0, zero], -1),
                ),
                np.where(self.left, (1 - alpha) * self.x_rest / self.x, alpha * self.y_rest / self.y_),
            )

    def _point(self, tau: np.ndarray) -> tuple[np.ndarray, ...]:
        """(r, |z0| - r, x, y, x - x0, y - y0, d/dtau of a log x + (1 - a) log y - log r) at tau."""
        with np.errstate(over="ignore", under="ignore"):
            share, rest = 1.0 / (1.0 + np.exp(-tau)), 1.0 / (1.0 + np.exp(tau))
        r, mu = self.size * share, self.size * rest
        x, x_rest, root_x = _side(self.x0, self.a * r * mu)
        y, y_rest, root_y = _side(self.y0, (1 - self.a) * r * mu)
        with np.errstate(all="ignore"):
            inner = r * (mu - r) * rest  # d(r mu)/dtau = (mu - r) dr/dtau, dr/dtau = r rest
            slope = self.a * self.a * inner / (root_x * x) + (1 - self.a) ** 2 * inner / (root_y * y) - rest
        return r, mu, x, y, x_rest, y_rest, slope

    def _root(self) -> np.ndarray:
        def h(tau: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            r, _, x, y, _, _, slope = self._point(tau)
            with np.errstate(all="ignore"):
                return -(self.a * np.log(x) + (1 - self.a) * np.log(y) - np.log(r)), -slope

        low, high = np.full_like(self.size, -1.0), np.full_like(self.size, 1.0)
        for _ in range(10):
            wrong_low, wrong_high = h(low)[0] > 0, h(high)[0] < 0
            if not (wrong_low.any() or wrong_high.any()):
                break
            low, high = np.where(wrong_low, 2 * low, low), np.where(wrong_high, 2 * high, high)
        return monotone_root(h, low, high, np.zeros_like(low))

    def _move(self, d: np.ndarray) -> Rays:
        """Along a step d of -v: dp = dProj_K d moves x, y, r; mu = |z0| - r."""
        d = d / self.unit[..., None]
        dp = d - self.apply(d)
        dx, dy = dp[..., 0], dp[..., 1]
        dr = self.sign * dp[..., 2]
        dmu = self.sign * d[..., 2] - dr
        x, y, zero = self.x, self.y_, np.zeros_like(dr)
        dx_rest, dy_rest = dx - d[..., 0], dy - d[..., 1]
        w = np.where(
            self.left[..., None],
            np.stack([zero, (x * dy / y - dx) / y, zero], -1),
            np.stack([(dy - y * dx / x) / x, zero, zero], -1),
        )
        by_x, by_y = (dx_rest - self.x_rest * dx / x) / x, (dy_rest - self.y_rest * dy / y) / y
        kappa = np.where(self.left, (1 - self.a) * by_x, self.a * by_y)
        return Rays(np.stack([dx, dy, self.sign * dr], -1), np.stack([-dx_rest, -dy_rest, self.sign * dmu], -1), w, kappa)


def _mean(x: np.ndarray, y: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        out = np.maximum(x, 0.0) ** alpha * np.maximum(y, 0.0) ** (1 - alpha)
    return np.where(np.isfinite(out), out, 0.0)


def _side(x0: np.ndarray, product: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The positive root x of x (x - x0) = product, the factor x - x0, and 2 x - x0, none with cancellation."""
    root = np.sqrt(x0 * x0 + 4.0 * product)
    large = 0.5 * (np.abs(x0) + root)
    with np.errstate(all="ignore"):
        small = np.where(large > 0, product / large, 0.0)
    return np.where(x0 >= 0, large, small), np.where(x0 >= 0, small, large), root
