"""Cones in R^3 bounded by a smooth surface: what the exponential and the power cone share.

At a point v outside K and outside its polar, the projection p lies on the surface and v - p = mu n with the outer normal n.
The surface is ruled by rays, so its second fundamental form has one nonzero direction w (orthogonal to p) with weight kappa per unit
of n, and the derivative of the projection is diagonal in the basis n, q = n x p, p:

    dProj_K(v) = p^ p^' + lambda q^ q^',     lambda = 1 / (1 + kappa (w'q^)^2),   kappa > 0.

For the dual, Proj_{K*}(v) = v + Proj_K(-v) (Moreau) has the eigenvalues 1, 1 - lambda, 0 in the same basis.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from layercompiler.cones.base import Cone, Expansion, Projection, dense_expansion

_EXPANSION = dense_expansion(3)


class SurfaceCone(Cone):
    """A cone in R^3 with a smooth boundary."""

    dim = 3

    @property
    def expansion(self) -> Expansion:
        """T dense, N diagonal."""
        return _EXPANSION


@dataclass(frozen=True)
class Rays:
    """The boundary point of each projection as directions: p and n (any positive length), w and kappa; all (..., 3) or (...)."""

    p: np.ndarray
    n: np.ndarray
    w: np.ndarray
    kappa: np.ndarray


class SurfaceProjection(Projection):
    """Projection onto the dual of a `SurfaceCone`.

    Subclasses set `v`, `y`, and `flat`: (..., 3) eigenvalues of dProj_{K*} for the regions where it is diagonal in the
    standard basis (NaN elsewhere), and give `rays` and their derivatives on the curved region.
    """

    flat: np.ndarray
    rays: Rays
    near_kink: np.ndarray

    @abstractmethod
    def _move(self, d: np.ndarray) -> Rays:
        """Derivatives of `rays` along a step d of -v."""

    @property
    def smooth(self) -> np.ndarray:  # type: ignore[override]
        """(B, count) bool, False at a kink."""
        return ~self.near_kink

    @cached_property
    def curved(self) -> np.ndarray:
        """(...,) bool: the projection lies on the curved surface."""
        return np.isnan(self.flat[..., 0])

    @cached_property
    def _basis(self) -> np.ndarray:
        """(..., 3, 3), columns n^, q^, p^; the identity in the flat regions."""
        n, p = _unit(self.rays.n), _unit(self.rays.p)
        q = _unit(np.cross(n, p))
        Q = np.stack([n, q, p], axis=-1)
        return np.where(self.curved[..., None, None], Q, np.eye(3))

    @cached_property
    def _lambda(self) -> np.ndarray:
        """(..., 2): (lambda, 1 - lambda), each without cancellation."""
        with np.errstate(all="ignore"):
            bend = self.rays.kappa * np.sum(self.rays.w * self._basis[..., 1], axis=-1) ** 2
            return np.stack([1.0 / (1.0 + bend), np.where(np.isinf(bend), 1.0, bend / (1.0 + bend))], axis=-1)

    @cached_property
    def _eigenvalues(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues of D and of I - D in the basis."""
        lam, rest = self._lambda[..., 0], self._lambda[..., 1]
        one, zero = np.ones_like(lam), np.zeros_like(lam)
        curved = self.curved[..., None]
        D = np.where(curved, np.stack([one, rest, zero], axis=-1), self.flat)
        return D, np.where(curved, np.stack([zero, lam, one], axis=-1), 1.0 - self.flat)

    def apply(self, u: np.ndarray) -> np.ndarray:
        """D u in the eigenbasis."""
        Q = self._basis
        return np.einsum("...ij,...j->...i", Q, self._eigenvalues[0] * np.einsum("...ji,...j->...i", Q, u))

    def expansion_values(self) -> tuple[np.ndarray, np.ndarray]:
        """T = basis sqrt(eigenvalues), N = -(1 - eigenvalues)."""
        D, rest = self._eigenvalues
        T = self._basis * np.sqrt(D)[..., None, :]
        return T.reshape(*T.shape[:-2], 9), -rest

    def second(self, u: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Differentiate p^ p^' + lambda q^ q^' along -w; the sign of Moreau's identity cancels the one of -v."""
        with np.errstate(all="ignore"):
            moved = self._move(w)
            n, q, p = (self._basis[..., i] for i in range(3))
            lam = self._lambda[..., 0]
            dp, dn = _unit_along(self.rays.p, moved.p), _unit_along(self.rays.n, moved.n)
            dq = np.cross(dn, p) + np.cross(n, dp)
            along = np.sum(self.rays.w * q, axis=-1)
            dalong = np.sum(moved.w * q, axis=-1) + np.sum(self.rays.w * dq, axis=-1)
            dlam = -(lam**2) * (moved.kappa * along**2 + 2 * self.rays.kappa * along * dalong)
            pu, qu = np.sum(p * u, axis=-1)[..., None], np.sum(q * u, axis=-1)[..., None]
            dpu, dqu = np.sum(dp * u, axis=-1)[..., None], np.sum(dq * u, axis=-1)[..., None]
            out = dp * pu + p * dpu + dlam[..., None] * q * qu + lam[..., None] * (dq * qu + q * dqu)
        return np.where(self.curved[..., None] & np.isfinite(out), out, 0.0)


def _unit(a: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        scale = np.abs(a).max(axis=-1, keepdims=True)
        b = a / scale
        return b / np.sqrt(np.sum(b * b, axis=-1, keepdims=True))


def _unit_along(a: np.ndarray, da: np.ndarray) -> np.ndarray:
    """Derivative of a / |a| along da."""
    size = np.sqrt(np.sum(a * a, axis=-1, keepdims=True))
    e = a / size
    return (da - e * np.sum(e * da, axis=-1, keepdims=True)) / size


def monotone_root(function: object, low: np.ndarray, high: np.ndarray, start: np.ndarray, iterations: int = 80) -> np.ndarray:
    """Roots of increasing functions by Newton's method, kept inside a shrinking bracket.

    Args:
        function: x -> (value, slope), elementwise.
        low: Points with value <= 0; `high`: with value >= 0.
        high: See `low`.
        start: First guess.
        iterations: Most steps; each bisects at least where Newton leaves the bracket.
    """
    first, final = low, high
    x = np.clip(start, low, high)
    last = np.full_like(x, np.inf)
    open_ = np.ones(x.shape, bool)  # finished elements stay as they are, so that no instance depends on its neighbors
    for _ in range(iterations):
        value, slope = function(x)  # type: ignore[operator]
        low, high = np.where(value <= 0, x, low), np.where(value >= 0, x, high)
        with np.errstate(all="ignore"):
            step = -value / slope
            trial = x + step
            # Newton converges quadratically: after a step this short, measured by the distance to the ends, the next one is
            # below rounding.
            near = 1e-7 * np.minimum(1.0 + np.abs(x), np.minimum(x - first, final - x)) + 1e-16 * np.abs(x)
            short = np.abs(step) <= near
        # Newton must stay inside and shrink its steps, else bisect.
        bad = ~short & (~np.isfinite(trial) | (trial <= low) | (trial >= high) | (np.abs(step) > 0.9 * last))
        new = np.where(bad, 0.5 * (low + high), trial)
        x = np.where(open_, new, x)
        last = np.where(bad, np.inf, np.abs(step))
        open_ &= ~short & (high - low > 2e-16 * np.abs(x))
        if not open_.any():
            break
    return x
