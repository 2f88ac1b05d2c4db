"""The catalogue of optimality maps: residuals F(y) whose roots are the solutions of a problem, over flat arrays (batch..., event...).

All are written for a batch: functions give one value per instance, (batch...), and a gradient is that of their sum. Newton's map and a
linear system are roots as they stand. The cone path of this package is one more instance: for min 1/2 x'Px + q'x, Ax + s = b, s in K, with
y = project(w) onto K* and s = y - w, its residual is F = (P x + A'y + q, A x + s - b) in (x, w), with theta = (P, A, q, b) and a fused
adjoint of its own in `derivatives.residual_map`.

Source: Blondel et al. 2022, section 2.2 and table 1; Busseti, Moursi & Boyd 2019 for the residual map of a cone program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from layercompiler.arrays import Arrays
from layercompiler.implicit.descent import kl_step

Map = Callable[..., Any]


def gradient(xp: Arrays, f: Map) -> Map:
    """y, *theta -> the gradient of f by y, instance by instance."""
    return lambda y, *theta: xp.grad(lambda v: xp.sum(f(v, *theta)))(y)


def stationary(xp: Arrays, f: Map) -> Map:
    """F = grad f: a stationary point."""
    return gradient(xp, f)


def fixed_point(T: Map) -> Map:
    """F = y - T(y)."""
    return lambda y, *theta: y - T(y, *theta)


def proximal_gradient(xp: Arrays, f: Map, prox: Map, step: float = 1.0) -> Map:
    """F = y - prox(y - t grad f(y), t): a minimiser of f + g, where prox(v, t, *theta) is that of g.

    The derivative does not depend on the step length t.
    """
    slope = gradient(xp, f)
    return lambda y, *theta: y - prox(y - step * slope(y, *theta), step, *theta)


def mirror_descent(xp: Arrays, f: Map, step: float = 1.0) -> Map:
    """F = y - softmax(log y - t grad f(y)): a minimiser over simplices (last dimension), in the Kullback-Leibler geometry."""
    slope = gradient(xp, f)
    return lambda y, *theta: y - kl_step(xp, y, slope(y, *theta), step)


def kkt(xp: Arrays, f: Map, eq: Map | None, ineq: Map | None, sizes: tuple[int, int, int]) -> Map:
    """Stationarity, feasibility and complementary slackness of min f(x) s.t. eq(x) = 0, ineq(x) <= 0.

    The unknown is (batch..., n + p + q): x, the multipliers of eq and those of ineq, which are outputs like x. Derivatives are
    those of the active set, and exist under strict complementarity.
    """
    n, p, _ = sizes

    def F(z: Any, *theta: Any) -> Any:
        x, nu, lam = z[..., :n], z[..., n : n + p], z[..., n + p :]

        def lagrangian(v: Any) -> Any:
            value = xp.sum(f(v, *theta))
            value = value + xp.sum(nu * eq(v, *theta)) if eq else value
            return value + xp.sum(lam * ineq(v, *theta)) if ineq else value

        parts = [xp.grad(lagrangian)(x)]
        parts += [eq(x, *theta)] if eq else []
        parts += [lam * ineq(x, *theta)] if ineq else []
        return parts[0] if len(parts) == 1 else xp.concat(parts, axis=-1)

    return F


def smoothed_kkt(xp: Arrays, f: Map, eq: Map | None, ineq: Map | None, sizes: tuple[int, int, int], mu: Any) -> Map:
    """As `kkt`, with complementarity by the Fischer-Burmeister function a + b - sqrt(a^2 + b^2 + 2 mu), a = lam, b = -ineq.

    It also keeps multipliers and slacks nonnegative, so solvers use it; for mu = 0 its roots are exactly the KKT points.
    """
    n, p, _ = sizes
    exact = kkt(xp, f, eq, ineq, sizes)

    def F(z: Any, *theta: Any) -> Any:
        if not ineq:
            return exact(z, *theta)
        a, b = z[..., n + p :], -ineq(z[..., :n], *theta)
        return xp.concat([exact(z, *theta)[..., : n + p], a + b - xp.sqrt(a * a + b * b + 2 * mu + 1e-300)], axis=-1)

    return F
