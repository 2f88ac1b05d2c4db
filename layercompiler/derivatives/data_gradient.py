"""Gradients with respect to the data (P, q, d, A, b) of a cone program, and their derivatives along a tangent.

For the Lagrangian of the adjoint, G(x, y, u, t) = dq = -u, db = t, dA = -(y u' + t x'), dP = -(u x' + x u') / 2; where the optimal
value is an output with cotangent g, x'Px / 2 + q'x + d adds g x x' / 2, g x and g.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from layercompiler.programs.cone import Structure

Gradients = tuple[Callable[[], np.ndarray], ...]


@dataclass(frozen=True)
class Adjoint:
    """A point with the adjoint solution at it: all that data gradients are made of.

    Attributes:
        x: (B, n) and `y` (B, m), the primal-dual point.
        u: (B, n) and `t` (B, m), the solution of the linear system for the cotangents.
        value: (B, 1) cotangent of the objective, or None.
    """

    x: np.ndarray
    y: np.ndarray
    u: np.ndarray
    t: np.ndarray
    value: np.ndarray | None

    def gradients(self, s: Structure) -> Gradients:
        """Gradients of (P, q, d, A, b) as functions of no argument, so that only what parameters enter is formed."""
        x, y, u, t, g = self.x, self.y, self.u, self.t, self.value
        i, j = s.P_rows, s.P_cols

        def P() -> np.ndarray:
            out = -(u[:, i] * x[:, j] + x[:, i] * u[:, j])
            return _half(s, out if g is None else out + g * (x[:, i] * x[:, j]))

        def A() -> np.ndarray:
            out, other = y[:, s.A_rows], t[:, s.A_rows]  # in place: these are the largest arrays of a backward pass
            out *= u[:, s.A_cols]
            other *= x[:, s.A_cols]
            out += other
            return np.negative(out, out=out)

        def q() -> np.ndarray:
            return -u if g is None else g * x - u

        def d() -> np.ndarray:
            return np.zeros((len(x), 1)) if g is None else g

        return P, q, d, A, lambda: t

    def along(self, s: Structure, moved: Adjoint) -> Gradients:
        """Derivative of `gradients` where x, y, u, t and the cotangent of the objective move by `moved`."""
        x, y, u, t, g = self.x, self.y, self.u, self.t, self.value
        dx, dy, du, dt, dg = moved.x, moved.y, moved.u, moved.t, moved.value
        i, j = s.P_rows, s.P_cols

        def P() -> np.ndarray:
            out = -(du[:, i] * x[:, j] + x[:, i] * du[:, j] + u[:, i] * dx[:, j] + dx[:, i] * u[:, j])
            if g is not None:
                out = out + g * (dx[:, i] * x[:, j] + x[:, i] * dx[:, j])
            return _half(s, out if dg is None else out + dg * (x[:, i] * x[:, j]))

        def A() -> np.ndarray:
            i, j = s.A_rows, s.A_cols
            return -(dy[:, i] * u[:, j] + y[:, i] * du[:, j] + dt[:, i] * x[:, j] + t[:, i] * dx[:, j])

        def q() -> np.ndarray:
            out = -du if g is None else g * dx - du
            return out if dg is None else out + dg * x

        def d() -> np.ndarray:
            return np.zeros((len(x), 1)) if dg is None else dg

        return P, q, d, A, lambda: dt


def _half(s: Structure, entries: np.ndarray) -> np.ndarray:
    """Gradient of the stored triangle: an off-diagonal entry stands for two, a diagonal one for one half of the outer product."""
    return np.where(s.P_rows == s.P_cols, 0.5, 1.0) * entries
