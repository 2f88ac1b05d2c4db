"""Cones in R^3 whose boundary is one curve of rays: what the exponential and the power cone share.

Let x(rho) be the boundary rays of K, y(rho) the outer normals of K along them (the boundary rays of the polar cone), both of
unit length, and w = y x x. Then x' = p w, y' = q w and w' = -(p x + q y) with p, q > 0. A point n outside K and its polar is

    n = X x + Y y,   X, Y > 0,   at the one rho with   G(rho) = <n, w> = 0,   G' = -(p X + q Y),

so X x is the projection onto K and -Y y the one of -n onto K*. Differentiating both equations gives

    dProj_K = x x' + lambda w w',   lambda = p X / (p X + q Y),   dProj_{K*} = y y' + (1 - lambda) w w',

and, once more, the symmetric trilinear form of the second derivative, with H = p X + q Y and k = p q / H^2,

    D^2 Proj = k Y (x w w) - k X (y w w) + tau (w w w),   tau = lambda (1 - lambda) (log p / q)' / H.

All of it is in an orthonormal frame: nothing cancels, and an error of rho is turned into a residual G of the size of rounding.
Sources: Friberg 2021 (one root, exponential cone), Hien 2015 (power cone); the frame is ours.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from layercompiler.cones.base import KINK, Cone, Expansion, Projection, dense_expansion

_PATTERN = dense_expansion(3)
_EYE = np.eye(3)
_ROUNDING = 2e-15  # of G, for points of unit size


class SurfaceCone(Cone):
    """A cone in R^3 bounded by one curve of rays."""

    dim = 3

    @property
    def expansion(self) -> Expansion:
        """T = Q sqrt(Lambda) dense, N = -diag(1 - lambda), from the frame Q = (y, w, x) of D."""
        return _PATTERN


@dataclass(frozen=True)
class Frame:
    """The orthonormal frames of N points.

    Attributes:
        axes: (3, 3, N); axes[:, 0] is y, axes[:, 1] is w, axes[:, 2] is x.
        p: (N,) rate of turn of x; `q` of y; both positive.
        q: See `p`.
        bend: (N,) derivative of log(p / q).
    """

    axes: np.ndarray
    p: np.ndarray
    q: np.ndarray
    bend: np.ndarray

    def coordinates(self, n: np.ndarray) -> np.ndarray:
        """(<n, y>, <n, w>, <n, x>) of points (3, N)."""
        return n[0] * self.axes[0] + n[1] * self.axes[1] + n[2] * self.axes[2]


class SurfaceProjection(Projection):
    """Projection onto the dual of a `SurfaceCone`, through the points n = -v.

    Subclasses fill in `_flat` (the regions where D is diagonal in the coordinates at hand and y = D v), `_start` (rho to a
    relative 1e-6 or so) and `_frame` (the rays at rho).

    Args:
        v: (B, count, 3).
    """

    def __init__(self, v: np.ndarray) -> None:
        self.v, self.shape = v, v.shape[:2]
        with np.errstate(all="ignore"):
            n = np.ascontiguousarray(-v.reshape(-1, 3).T)
            size = np.abs(n).max(axis=0)
            # Powers of two: exact, and squares neither overflow nor vanish.
            self.exponent = np.frexp(size)[1]
            self.n = np.ldexp(n, -self.exponent)
            self.flat, self.gap, curved = self._flat(self.n)
            finite = np.isfinite(size)
            self.index = np.flatnonzero(curved & finite)
            self.points = self.n[:, self.index]
            if len(self.index):
                self._solve()
            y = self.flat.T * v.reshape(-1, 3)
            if len(self.index):
                y[self.index] = np.ldexp(self._dual(), self.exponent[self.index]).T
            if not finite.all():
                y[~finite] = np.nan
            self.y = y.reshape(v.shape)

    @abstractmethod
    def _flat(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Regions of n (3, N): (diagonal of D (3, N), distance to the next kink (N,), mask of the curved region (N,))."""

    @abstractmethod
    def _start(self, n: np.ndarray) -> np.ndarray:
        """rho of points (3, N) of the curved region, nearly."""

    @abstractmethod
    def _frame(self, rho: np.ndarray) -> Frame:
        """Frames at rho (N,)."""

    def _keep(self, mask: np.ndarray) -> None:
        """Take points out of the curved region that turn out to be flat in double precision."""
        self.index, self.points = self.index[mask], self.points[:, mask]

    def _solve(self) -> None:
        """Newton on G, each point until its own G is rounding, so that no point depends on its neighbors."""
        rho = self._start(self.points)
        for _ in range(8):
            frame = self._frame(rho)
            Y, G, X = frame.coordinates(self.points)
            X, Y = np.maximum(X, 0.0), np.maximum(Y, 0.0)
            H = frame.p * X + frame.q * Y
            step = G / H
            move = (np.abs(G) > _ROUNDING) & np.isfinite(step)
            if not move.any():
                break
            rho = np.where(move, rho + step, rho)
        self.rho, self.frame = rho, frame
        self.G, self.X, self.Y, self.H = G, X, Y, H

    def _dual(self) -> np.ndarray:
        """-(Y y + (1 - lambda) G w): one more step to first order, of the size of the rounding left in G."""
        axes = self.frame.axes
        return -(self.Y * axes[:, 0] + self._split[1] * self.G * axes[:, 1])

    @property
    def smooth(self) -> np.ndarray:
        """(B, count) bool, False within a relative `KINK` of where D jumps."""
        gap = self.gap.copy()
        if len(self.index):
            gap[self.index] = np.minimum(gap[self.index], np.minimum(self.X, self.Y))
        # gap is in units of the power of two above |v|.
        return ((gap > KINK) & (np.abs(self.v).reshape(-1, 3).max(axis=1) > KINK)).reshape(self.shape)

    @cached_property
    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        """(lambda, 1 - lambda) of the curved points, each without cancellation."""
        with np.errstate(all="ignore"):
            lam, rest = self.frame.p * self.X / self.H, self.frame.q * self.Y / self.H
        lost = ~(self.H > 0)
        return (np.where(lost, 1.0, lam), np.where(lost, 0.0, rest)) if lost.any() else (lam, rest)

    @cached_property
    def _spectrum(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Eigenvectors (B, count, 3, 3) of D in columns, eigenvalues of D and of I - D (B, count, 3)."""
        N = self.n.shape[1]
        Q = np.empty((N, 3, 3))
        Q[:] = _EYE
        D = self.flat.T.copy()
        rest = 1.0 - D
        if len(self.index):
            Q[self.index] = self.frame.axes.transpose(2, 0, 1)
            lam, one_minus = self._split
            D[self.index] = 0.0
            D[self.index, 0], D[self.index, 1] = 1.0, one_minus
            rest[self.index] = 1.0
            rest[self.index, 0], rest[self.index, 1] = 0.0, lam
        return Q.reshape(*self.shape, 3, 3), D.reshape(*self.shape, 3), rest.reshape(*self.shape, 3)

    def apply(self, u: np.ndarray) -> np.ndarray:
        """D u in the frame."""
        Q, D, _ = self._spectrum
        return np.einsum("...ij,...j->...i", Q, D * np.einsum("...ji,...j->...i", Q, u))

    def expansion_values(self) -> tuple[np.ndarray, np.ndarray]:
        """T = Q sqrt(Lambda), N = -(1 - lambda)."""
        Q, D, rest = self._spectrum
        return (Q * np.sqrt(D)[..., None, :]).reshape(*self.shape, 9), -rest

    def second(self, u: np.ndarray, w: np.ndarray) -> np.ndarray:
        """The trilinear form of the module at -v: the sign of Moreau's identity cancels the one of -v."""
        Q = self._spectrum[0]
        a, b = np.einsum("...ji,...j->...i", Q, u), np.einsum("...ji,...j->...i", Q, w)
        kY, kX, tau = self._third
        both = a[..., 1] * b[..., 1]
        out = np.empty(np.broadcast_shapes(a.shape, b.shape))
        out[..., 0] = -kX * both
        out[..., 1] = (
            kY * (a[..., 2] * b[..., 1] + a[..., 1] * b[..., 2]) - kX * (a[..., 0] * b[..., 1] + a[..., 1] * b[..., 0]) + tau * both
        )
        out[..., 2] = kY * both
        return np.einsum("...ij,...j->...i", Q, out)

    @cached_property
    def _third(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coefficients k Y, k X and tau (B, count) of the second derivative, 0 in the flat regions."""
        out = np.zeros((3, self.n.shape[1]))
        if len(self.index):
            lam, rest = self._split
            f = self.frame
            with np.errstate(all="ignore"):
                parts = np.stack([f.p / self.H * rest, f.q / self.H * lam, lam * rest / self.H * f.bend])
                out[:, self.index] = np.ldexp(np.where(np.isfinite(parts), parts, 0.0), -self.exponent[self.index])
        kY, kX, tau = out.reshape(3, *self.shape)
        return kY, kX, tau
