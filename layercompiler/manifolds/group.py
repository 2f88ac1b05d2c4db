"""What the Lie groups have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from layercompiler.manifolds.base import Manifold


class Group(Manifold):
    """Rotations or rigid motions: elements are multiplied, act on points, and are exponentials of tangents.

    Tangents are written in the frame of the element (right perturbations, x exp(v)), translation first.
    """

    points: int  # dimension of the points it acts on

    @abstractmethod
    def exp(self, xp: Any, v: Any) -> Any:
        """The element of a tangent (..., dof)."""

    @abstractmethod
    def log(self, xp: Any, x: Any) -> Any:
        """The tangent of an element, its angle at most pi."""

    @abstractmethod
    def compose(self, xp: Any, x: Any, y: Any) -> Any:
        """x y."""

    @abstractmethod
    def inverse(self, xp: Any, x: Any) -> Any:
        """The inverse element."""

    @abstractmethod
    def act(self, xp: Any, x: Any, p: Any) -> Any:
        """The image of a point (..., points)."""

    @abstractmethod
    def matrix(self, xp: Any, x: Any) -> Any:
        """The matrix of an element: a rotation, or a motion in homogeneous coordinates."""

    @abstractmethod
    def adjoint(self, xp: Any, x: Any) -> Any:
        """Ad (..., dof, dof): x exp(v) = exp(Ad v) x."""

    @abstractmethod
    def bracket(self, xp: Any, u: Any, v: Any) -> Any:
        """[u, v] (..., dof), how Ad turns v: Ad(exp(u)) v = v + [u, v] to first order."""

    @abstractmethod
    def jacobian(self, xp: Any, v: Any) -> Any:
        """Right Jacobian (..., dof, dof): exp(v + d) = exp(v) exp(J d) to first order."""

    @abstractmethod
    def inverse_jacobian(self, xp: Any, v: Any) -> Any:
        """Its inverse: log(exp(v) exp(d)) = v + J^-1 d to first order."""

    def retract(self, xp: Any, x: Any, v: Any) -> Any:
        """X exp(v)."""
        return self.compose(xp, x, self.exp(xp, v))

    def local(self, xp: Any, x: Any, y: Any) -> Any:
        """log(x^-1 y)."""
        return self.log(xp, self.compose(xp, self.inverse(xp, x), y))

    def interpolate(self, xp: Any, x: Any, y: Any, t: Any) -> Any:
        """X exp(t log(x^-1 y)), the point at t in [0, 1] of the geodesic from x to y."""
        return self.retract(xp, x, t * self.local(xp, x, y))

    def random(self, rng: np.random.Generator, shape: tuple[int, ...] = (), scale: float = 1.0) -> np.ndarray:
        """exp of normal tangents times `scale`, for examples and tests."""
        from layercompiler import arrays

        return self.exp(arrays.get("numpy"), scale * rng.standard_normal((*shape, self.dof)))


def parts(x: Any, *sizes: int) -> tuple[Any, ...]:
    """The last axis cut into pieces; pieces of one number lose the axis."""
    out, start = [], 0
    for size in sizes:
        out.append(x[..., start] if size == 1 else x[..., start : start + size])
        start += size
    return tuple(out)


def square(xp: Any, v: Any) -> Any:
    """Squared length, (...)."""
    return xp.sum(v * v, axis=-1)


def unlike_unit(xp: Any, v: Any) -> Any:
    """Where v (..., n) is not of length one to six digits, NaN included; by columns, for sums over few numbers take long in numpy."""
    total = v[..., 0] * v[..., 0]
    for k in range(1, v.shape[-1]):
        total = total + v[..., k] * v[..., k]
    return ~(xp.abs(total - 1) < 2e-6)


def cross(xp: Any, a: Any, b: Any) -> Any:
    """Cross product (..., 3)."""
    return turn(xp, a * turn(xp, b) - turn(xp, a) * b)


def turn(xp: Any, a: Any) -> Any:
    """(y, z, x)."""
    return xp.concat([a[..., 1:], a[..., :1]], axis=-1)


def hat(xp: Any, w: Any) -> Any:
    """The matrix of the cross product with w, (..., 3, 3)."""
    x, y, z = parts(w, 1, 1, 1)
    o = xp.zeros_like(x)
    return matrix(xp, [[o, -z, y], [z, o, -x], [-y, x, o]])


def matrix(xp: Any, rows: list[list[Any]]) -> Any:
    """(..., n, m) of entries (...)."""
    return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)
