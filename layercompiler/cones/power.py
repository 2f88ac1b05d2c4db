"""The power cone K = {(a, b, c): a^alpha b^beta >= |c|, a, b >= 0}, beta = 1 - alpha, and the projection onto its dual.

With rho = log(a / b) and c >= 0 the boundary rays are (e^(beta rho), e^(-alpha rho), 1) and their outer normals
(-alpha e^(-beta rho), -beta e^(alpha rho), 1). A point n = mu x + nu y of the curved region has mu + nu = c and, with
2 tau = log(mu / nu), A = a / (c sqrt alpha), B = b / (c sqrt beta),

    F(tau) = log(alpha^alpha beta^beta) / 2 - tau + alpha asinh(A cosh tau) + beta asinh(B cosh tau) = 0,
    rho = log(alpha / beta) / 2 + asinh(A cosh tau) - asinh(B cosh tau).

F is strictly decreasing, neither cancels nor overflows, and is the equation of Hien 2015 (a product of powers in mu) in other
variables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercompiler.cones.surface import Frame, SurfaceCone, SurfaceProjection
from layercompiler.errors import BuildError

_FLAT = 1e-100  # below this share of |v|, c counts as zero
_SMALLEST = 1e-40  # exponents below change no double
_END = 340.0  # |tau| beyond which mu or nu vanishes in double precision


@dataclass(frozen=True)
class Power(SurfaceCone):
    """Power cones of three rows each.

    Attributes:
        alpha: Exponent in (0, 1) of all cones of a block, or one per cone.

    Raises:
        BuildError: An exponent is not in (0, 1).
    """

    alpha: float | tuple[float, ...]
    name = "power"

    def __post_init__(self) -> None:
        alphas = np.asarray(self.alpha, dtype=float)
        if alphas.ndim > 1 or not np.all((alphas > 0) & (alphas < 1)):
            raise BuildError(
                "the exponent of a power cone is out of range", where="Power.alpha", expected="0 < alpha < 1", got=repr(self.alpha)
            )
        object.__setattr__(self, "alpha", tuple(alphas.tolist()) if alphas.ndim else float(alphas))

    def alphas(self, count: int) -> np.ndarray:
        """(count,) exponents."""
        return np.broadcast_to(np.asarray(self.alpha, dtype=float), (count,))

    def project_dual(self, v: np.ndarray) -> SurfaceProjection:
        """Project v (B, count, 3) onto K* = {(a / alpha)^alpha (b / beta)^beta >= |c|, a, b >= 0}.

        Differentiability: not at the boundary of K* and of -K; there, the derivative of a neighboring region.
        Cost: about 300 numpy calls on the cones outside K* and -K, of any number.
        """
        return _PowerProjection(v, self.alphas(v.shape[-2]))


class _PowerProjection(SurfaceProjection):
    def __init__(self, v: np.ndarray, alpha: np.ndarray) -> None:
        self.alpha = np.broadcast_to(np.maximum(alpha, _SMALLEST), v.shape[:2]).reshape(-1)
        super().__init__(v)
        if not v[..., 2].all():
            self.y[..., 2] *= v[..., 2] != 0

    def _flat(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a, b, c = n
        alpha, size = self.alpha, np.abs(c)
        beta = 1.0 - alpha
        inside, primal = _membership(a, b, size, alpha, 1.0, 1.0)
        polar, dual = _membership(-a, -b, size, alpha, alpha, beta)
        polar &= ~inside
        level = ~(inside | polar) & (size <= _FLAT)
        # alpha = 1/2 is a second-order cone, smooth at c = 0; its frame is that of any small c.
        if level.any():
            n[2] = np.where(level & (alpha == 0.5), _FLAT, c)
            level &= alpha != 0.5
        flat = np.zeros_like(n)
        flat[:, polar] = 1.0
        gap = np.where(inside, primal, np.where(polar, dual, np.inf))
        if level.any():
            # Where one of a, b is positive the slope of the projection of c tends, for c -> 0, to 1 if its exponent is above 1/2
            # (the surface is flat across c = 0), and to 0 if it is below (the surface is sharp).
            slope = np.where(a > 0, (b > 0) | (alpha > 0.5), (b > 0) & (beta > 0.5))
            flat[:, level] = np.stack([a <= 0, b <= 0, ~slope])[:, level]
            gap = np.where(level, np.minimum(np.abs(a), np.abs(b)), gap)
        return flat, gap, ~(inside | polar | level)

    def _start(self, n: np.ndarray) -> np.ndarray:
        a, b, c = n[0], n[1], np.abs(n[2])
        alpha = self.alpha[self.index]
        beta = 1.0 - alpha
        tau, S, T = _root(a / (c * np.sqrt(alpha)), b / (c * np.sqrt(beta)), alpha, beta)
        faces = np.abs(tau) >= _END
        if faces.any():
            i = self.index[faces]
            self.flat[:, i] = np.stack([a[faces] <= 0, b[faces] <= 0, tau[faces] < 0])
            self.gap[i] = np.minimum(np.abs(a), np.abs(b))[faces]
            self._keep(~faces)
            alpha, beta, S, T = alpha[~faces], beta[~faces], S[~faces], T[~faces]
        rho = 0.5 * np.log(alpha / beta) + S - T
        # With a and b swapped where rho < 0, no exponential in the frame grows.
        self.swap = rho < 0
        self.exponents = np.where(self.swap, beta, alpha), np.where(self.swap, alpha, beta)
        self.sign = np.where(self.points[2] < 0, -1.0, 1.0)
        return np.abs(rho)

    def _frame(self, rho: np.ndarray) -> Frame:
        alpha, beta = self.exponents
        e, f, g = np.exp(-rho), np.exp(-beta * rho), np.exp(-alpha * rho)
        bow = beta - alpha * (e * e)
        xx, yy = 1.0 + e * e + f * f, (alpha * e) ** 2 + beta * beta + g * g
        x, y = np.sqrt(xx), np.sqrt(yy)
        xy = x * y
        axes = np.empty((3, 3, len(rho)))
        axes[0] = -alpha * e / y, (e * g + beta * f) / xy, 1.0 / x
        axes[1] = -beta / y, -(alpha * e * f + g) / xy, e / x
        axes[2] = self.sign * g / y, -self.sign * bow / xy, self.sign * f / x
        if self.swap.any():
            axes[:2] = np.where(self.swap, axes[1::-1], axes[:2])
        # 2 (beta - alpha) + 3 bow (alpha beta / yy - 1 / xx), without the cancellation at alpha = beta.
        tilt, area = beta - alpha, xx * yy
        bend = tilt * (2.0 - 3.0 * bow * bow / area) + 3.0 * bow * (alpha * beta * f * f - g * g) / area
        return Frame(axes, f * y / xx, alpha * beta * g * x / yy, bend)


def _membership(a: np.ndarray, b: np.ndarray, size: np.ndarray, alpha: np.ndarray, ka: object, kb: object) -> tuple[np.ndarray, np.ndarray]:
    """Whether (a / ka)^alpha (b / kb)^beta >= size, and a lower bound of the distance to where it is not (the margin is concave)."""
    beta = 1.0 - alpha
    mean = np.maximum(a / ka, 0.0) ** alpha * np.maximum(b / kb, 0.0) ** beta
    gradient = np.sqrt((alpha * mean / a) ** 2 + (beta * mean / b) ** 2 + 1.0)
    gap = np.fmin(np.minimum(a, b), (mean - size) / gradient)
    return (a >= 0) & (b >= 0) & (mean >= size), gap


def _root(A: np.ndarray, B: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tau, asinh(A cosh tau), asinh(B cosh tau)) at the root of F, +-_END where it is farther out.

    Newton in tau; where A and B have one sign F levels off exponentially on one side, so there the step is taken in e^(-2 |tau|).
    """
    level = 0.5 * (alpha * np.log(alpha) + beta * np.log(beta))
    side = np.where((A > 0) & (B > 0), 1.0, np.where((A < 0) & (B < 0), -1.0, 0.0))
    tau = np.zeros_like(A)
    lo, hi = np.full_like(A, -_END), np.full_like(A, _END)
    open_ = np.ones(A.shape, bool)
    for _ in range(200):
        cosh, tanh = np.cosh(tau), np.tanh(tau)
        s, t = A * cosh, B * cosh
        S, T = np.arcsinh(s), np.arcsinh(t)
        F = level - tau + alpha * S + beta * T
        slope = tanh * (alpha * s / np.hypot(1.0, s) + beta * t / np.hypot(1.0, t)) - 1.0
        if not open_.any():
            return tau, S, T
        lo, hi = np.where(F >= 0, tau, lo), np.where(F <= 0, tau, hi)
        step = -F / slope
        # In z = e^(-2 side tau): z + dz with dz = -2 side z step.
        shrink = 1.0 - 2.0 * side * step
        bent = (side * tau > 0.5) & (side * step > 0)
        step = np.where(bent, np.where(shrink > 0, -0.5 * side * np.log(shrink), side * 5.0), step)
        trial = np.clip(tau + step, -_END, _END)
        outside = ~((trial >= lo) & (trial <= hi))
        trial = np.where(outside, 0.5 * (lo + hi), trial)
        moved = np.where(open_, np.abs(trial - tau), 0.0)
        tau = np.where(open_, trial, tau)
        open_ &= (moved > 1e-8 * (1.0 + np.abs(tau))) & (np.abs(F) > 1e-15 * (1.0 + np.abs(tau)))
    return tau, S, T
