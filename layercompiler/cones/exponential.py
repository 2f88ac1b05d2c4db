"""The exponential cone K = cl{(a, b, c): b > 0, b exp(a/b) <= c} and the projection onto its dual.

With rho = a/b a boundary point is p = b (rho, 1, e^rho), the outer normal (1, 1 - rho, -e^-rho). The first two coordinates of
v = p + m (1, 1 - rho, -e^-rho) give b and m in closed form,

    b = ((rho - 1) r + s) / (rho^2 - rho + 1),    m = (r - rho s) / (rho^2 - rho + 1),

and the third is one increasing equation in rho, b e^rho - m e^-rho = t (source: Friberg 2021, univariate root).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercompiler.cones.base import Projection
from layercompiler.cones.surface import Rays, SurfaceCone, SurfaceProjection, monotone_root

_FAR = 100.0
_STEEPEST = 800.0  # e^rho leaves the range of double precision before


@dataclass(frozen=True)
class Exponential(SurfaceCone):
    """One exponential cone, three rows."""

    name = "exponential"

    def project_dual(self, v: np.ndarray) -> Projection:
        """Proj_{K*}(v) = v + Proj_K(-v)."""
        return _ExponentialProjection(v)


class _ExponentialProjection(SurfaceProjection):
    def __init__(self, v: np.ndarray) -> None:
        self.v = v
        scale = np.abs(v).max(axis=-1)
        finite = np.isfinite(scale)
        unit = np.where(finite & (scale > 0), scale, 1.0)
        r, s, t = (np.where(finite, -v[..., i], 0.0) / unit for i in range(3))
        with np.errstate(all="ignore"):
            tiny = 4e-16
            growth = np.where(s > 0, s * np.exp(np.minimum(r / np.where(s > 0, s, 1.0), 700.0)), np.inf)
            in_K = ((s > 0) & (growth <= t)) | ((s == 0) & (r <= 0) & (t >= 0))
            # The polar: -(r, s, t) in K*, i.e. r > 0 and r exp(s/r) <= -e t, or r = 0, s <= 0, t <= 0.
            decay = np.where(r > 0, r * np.exp(np.minimum(s / np.where(r > 0, r, 1.0) - 1.0, 700.0)), np.inf)
            in_polar = ~in_K & (((r > 0) & (decay <= -t)) | ((r == 0) & (s <= 0) & (t <= 0)))
            corner = ~in_K & ~in_polar & (r <= 0) & (s <= 0)
            # Where |rho| > 100 the surface is its asymptote to far below rounding: c >= 0, or the plane a <= 0, b <= 0 of the polar.
            level = ~in_K & (s > 0) & (r < -_FAR * s)
            steep = ~in_polar & ~in_K & (r > 0) & (s < -_FAR * r)
            curved = ~(in_K | in_polar | corner | level | steep) & finite
        self.plain = ~curved  # the others carry (1, 2, 0), whose root is 0
        self.r, self.s, self.t = (np.where(curved, x, d) for x, d in ((r, 1.0), (s, 2.0), (t, 0.0)))
        rho = self._root()
        self.rho = rho
        square = rho * rho - rho + 1.0
        self.b, self.m = ((rho - 1.0) * self.r + self.s) / square, (self.r - rho * self.s) / square
        zero = np.zeros_like(r)
        with np.errstate(all="ignore"):
            third = np.where(rho > 0, self.m * np.exp(-rho), self.b * np.exp(rho) - self.t)
            on_surface = np.stack([-self.m, (rho - 1.0) * self.m, third], axis=-1)
        below = np.maximum(-t, 0.0)
        regions = (
            (curved, on_surface, np.nan),
            (in_K, np.zeros_like(v), 0.0),
            (in_polar, -np.stack([r, s, t], axis=-1), 1.0),
            (corner, np.stack([zero, -s, below], axis=-1), np.stack([zero, zero + 1.0, below > 0], axis=-1)),
            (level, np.stack([zero, zero, below], axis=-1), np.stack([zero, zero, below > 0], axis=-1)),
            (steep, np.stack([-r, -s, below], axis=-1), np.stack([zero + 1.0, zero + 1.0, below > 0], axis=-1)),
        )
        y, flat = np.full_like(v, np.nan), np.zeros_like(v)
        for where, value, eigenvalues in regions:
            y, flat = np.where(where[..., None], value, y), np.where(where[..., None], eigenvalues, flat)
        self.flat = flat
        self.y = np.where(finite[..., None], y * unit[..., None], np.nan)
        self.unit = unit
        grown, shrunk = np.exp(np.minimum(-np.abs(rho), 0.0)), np.exp(-np.abs(rho))
        up = rho > 0  # directions divided by the larger of 1 and e^|rho|, so that nothing overflows
        p = np.where(up[..., None], np.stack([rho * grown, grown, zero + 1.0], -1), np.stack([rho, zero + 1.0, shrunk], -1))
        n = np.where(up[..., None], np.stack([zero + 1.0, 1.0 - rho, -shrunk], -1), np.stack([grown, (1.0 - rho) * grown, zero - 1.0], -1))
        self.up, self.shrunk = up, shrunk
        with np.errstate(all="ignore"):
            kappa = self.m / self.b
            self.near_kink = np.where(
                curved, np.minimum(np.abs(self.b), np.abs(self.m)) < 10 * tiny, np.abs(np.stack([r, s, t], -1)).max(-1) == 0
            )
        self.rays = Rays(p, n, np.stack([zero + 1.0, -rho, zero], -1), kappa)

    def _root(self) -> np.ndarray:
        """rho of the curved instances, and 0 for the others."""
        r, s, t = self.r, self.s, self.t
        with np.errstate(all="ignore"):
            low = np.where(r > 0, 1.0 - s / r, -np.inf)  # b > 0
            high = np.where(s > 0, r / s, np.inf)  # m > 0

            below = t < 0

            def h(rho: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                """Logarithm of both sides, b e^rho = t + m e^-rho or (t < 0) b e^rho - t = m e^-rho: nearly linear in rho."""
                square = rho * rho - rho + 1.0
                b, m = np.maximum((rho - 1.0) * r + s, 0.0) / square, np.maximum(r - rho * s, 0.0) / square
                e, f = np.exp(np.clip(rho, -700, 700)), np.exp(np.clip(-rho, -700, 700))
                turn = 2.0 * rho - 1.0
                db, dm = (r - turn * b) / square, (-s - turn * m) / square
                other = np.where(below, b * e - t, t + m * f)
                value = np.where(below, np.log(other) - np.log(m) + rho, np.log(b) + rho - np.log(other))
                slope = np.where(below, (b + db) * e / other - dm / m + 1.0, db / b + 1.0 - (dm - m) * f / other)
                return value, slope

            # Infinite ends move out from the finite one until the sign is right.
            width = np.ones_like(r)
            for _ in range(12):
                a = np.where(np.isinf(low), high - width, low)
                c = np.where(np.isinf(high), low + width, high)
                wrong = (np.isinf(low) & (h(a)[0] > 0)) | (np.isinf(high) & (h(c)[0] < 0))
                if not wrong.any():
                    break
                width = np.where(wrong, 2.0 * width, width)
            a = np.maximum(np.where(np.isinf(low), high - width, low), -_STEEPEST)
            c = np.minimum(np.where(np.isinf(high), low + width, high), _STEEPEST)
            return monotone_root(h, a, c, np.where(self.plain, 0.0, 0.5 * (a + c)))

    def _move(self, d: np.ndarray) -> Rays:
        """Along a step d of -v: dp = dProj_K d, then the coordinates rho, b, m of p and of -v - p."""
        d = d / self.unit[..., None]
        dp = d - self.apply(d)
        db = dp[..., 1]
        dm = d[..., 0] - dp[..., 0]
        # rho moves by (dp_a - rho dp_b) / b or, where b is small, by the normal's turn (dn_b = (1 - rho) dm - m drho).
        by_b = (dp[..., 0] - self.rho * db) / self.b
        by_m = ((1.0 - self.rho) * dm - (d[..., 1] - dp[..., 1])) / self.m
        drho = np.where(self.b >= self.m, by_b, by_m)
        zero = np.zeros_like(drho)
        e = self.shrunk
        rho, up = self.rho, self.up[..., None]
        p = np.where(up, np.stack([(1.0 - rho) * e * drho, -e * drho, zero], -1), np.stack([drho, zero, e * drho], -1))
        n = np.where(up, np.stack([zero, -drho, e * drho], -1), np.stack([e * drho, -rho * e * drho, zero], -1))
        kappa = (dm - self.rays.kappa * db) / self.b
        return Rays(p, n, np.stack([zero, -drho, zero], -1), kappa)
