"""Rotations and rigid motions of the plane."""

from __future__ import annotations

from typing import Any

import numpy as np

from layercompiler.manifolds.group import Group, matrix, parts, unlike_unit
from layercompiler.manifolds.series import NEAR, cotangent, cotangent_rest, sinc, third, versine


class Rotation2(Group):
    """Rotations of the plane, stored as (cos, sin); the tangent is the angle."""

    name, ambient, dof, points = "SO2", 2, 1, 2

    def identity(self) -> np.ndarray:
        """(1, 0)."""
        return np.array([1.0, 0.0])

    def exp(self, xp: Any, v: Any) -> Any:
        """See `Group.exp`."""
        return xp.concat([xp.cos(v), xp.sin(v)], axis=-1)

    def tangent(self, xp: Any, x: Any, v: Any) -> Any:
        """See `Manifold.tangent`."""
        return xp.concat([-x[..., 1:], x[..., :1]], axis=-1) * v

    def log(self, xp: Any, x: Any) -> Any:
        """See `Group.log`."""
        return xp.atan2(x[..., 1:], x[..., :1])

    def compose(self, xp: Any, x: Any, y: Any) -> Any:
        """See `Group.compose`."""
        (c, s), (e, f) = parts(x, 1, 1), parts(y, 1, 1)
        return xp.stack([c * e - s * f, s * e + c * f], axis=-1)

    def inverse(self, xp: Any, x: Any) -> Any:
        """See `Group.inverse`."""
        return xp.concat([x[..., :1], -x[..., 1:]], axis=-1)

    def act(self, xp: Any, x: Any, p: Any) -> Any:
        """See `Group.act`."""
        return self.compose(xp, x, p)

    def matrix(self, xp: Any, x: Any) -> Any:
        """See `Group.matrix`."""
        c, s = parts(x, 1, 1)
        return matrix(xp, [[c, -s], [s, c]])

    def adjoint(self, xp: Any, x: Any) -> Any:
        """One: the group commutes."""
        return xp.ones_like(x[..., :1, None])

    def bracket(self, xp: Any, u: Any, v: Any) -> Any:
        """Zero."""
        return 0 * (u * v)

    def jacobian(self, xp: Any, v: Any) -> Any:
        """One."""
        return xp.ones_like(v[..., None])

    def inverse_jacobian(self, xp: Any, v: Any) -> Any:
        """One."""
        return xp.ones_like(v[..., None])

    def normalize(self, xp: Any, x: Any) -> Any:
        """Of length one."""
        return x / xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True))

    def invalid(self, xp: Any, x: Any) -> Any:
        """Not of length one to six digits."""
        return unlike_unit(xp, x)


class Motion2(Group):
    """Rigid motions of the plane, stored as (cos, sin, x, y); the tangent is (translation, angle)."""

    name, ambient, dof, points = "SE2", 4, 3, 2

    def identity(self) -> np.ndarray:
        """(1, 0, 0, 0)."""
        return np.array([1.0, 0.0, 0.0, 0.0])

    def exp(self, xp: Any, v: Any) -> Any:
        """See `Group.exp`."""
        x, y, t = parts(v, 1, 1, 1)
        square = t * t
        a, b = sinc(xp, square), t * versine(xp, square)
        return xp.stack([xp.cos(t), xp.sin(t), a * x - b * y, b * x + a * y], axis=-1)

    def tangent(self, xp: Any, x: Any, v: Any) -> Any:
        """See `Manifold.tangent`."""
        (c, s), (a, b, t) = parts(x[..., :2], 1, 1), parts(v, 1, 1, 1)
        return xp.stack([-s * t, c * t, c * a - s * b, s * a + c * b], axis=-1)

    def log(self, xp: Any, x: Any) -> Any:
        """See `Group.log`."""
        c, s, x, y = parts(x, 1, 1, 1, 1)
        t = xp.atan2(s, c)
        h, square = t / 2, t * t
        sign = xp.where(s < 0, -xp.ones_like(s), xp.ones_like(s))
        # |cot(t / 2)| from sine and cosine, whatever their length: sums of positive numbers, harmless near zero, where it is not looked at
        a, r = sign * s, xp.sqrt(c * c + s * s)
        below = xp.where(square < NEAR, xp.ones_like(s), a + r - c)
        k = 1 - square * cotangent_rest(xp, square, sign * h * (a + r + c) / below)
        return xp.stack([k * x + h * y, k * y - h * x, t], axis=-1)

    def compose(self, xp: Any, x: Any, y: Any) -> Any:
        """See `Group.compose`."""
        (c, s, a, b), (e, f, p, q) = parts(x, 1, 1, 1, 1), parts(y, 1, 1, 1, 1)
        return xp.stack([c * e - s * f, s * e + c * f, a + c * p - s * q, b + s * p + c * q], axis=-1)

    def inverse(self, xp: Any, x: Any) -> Any:
        """See `Group.inverse`."""
        c, s, a, b = parts(x, 1, 1, 1, 1)
        return xp.stack([c, -s, -(c * a + s * b), s * a - c * b], axis=-1)

    def act(self, xp: Any, x: Any, p: Any) -> Any:
        """See `Group.act`."""
        (c, s, a, b), (p, q) = parts(x, 1, 1, 1, 1), parts(p, 1, 1)
        return xp.stack([a + c * p - s * q, b + s * p + c * q], axis=-1)

    def matrix(self, xp: Any, x: Any) -> Any:
        """See `Group.matrix`."""
        c, s, a, b = parts(x, 1, 1, 1, 1)
        o = xp.zeros_like(c)
        return matrix(xp, [[c, -s, a], [s, c, b], [o, o, xp.ones_like(c)]])

    def adjoint(self, xp: Any, x: Any) -> Any:
        """See `Group.adjoint`."""
        c, s, a, b = parts(x, 1, 1, 1, 1)
        o = xp.zeros_like(c)
        return matrix(xp, [[c, -s, b], [s, c, -a], [o, o, xp.ones_like(c)]])

    def bracket(self, xp: Any, u: Any, v: Any) -> Any:
        """See `Group.bracket`."""
        (x, y, t), (a, b, s) = parts(u, 1, 1, 1), parts(v, 1, 1, 1)
        return xp.stack([s * y - t * b, t * a - s * x, 0 * (t * s)], axis=-1)

    def jacobian(self, xp: Any, v: Any) -> Any:
        """See `Group.jacobian`."""
        x, y, t = parts(v, 1, 1, 1)
        square = t * t
        a, d, c, o = sinc(xp, square), versine(xp, square), t * third(xp, square), xp.zeros_like(t)
        b = t * d
        return matrix(xp, [[a, b, c * x - d * y], [-b, a, c * y + d * x], [o, o, xp.ones_like(t)]])

    def inverse_jacobian(self, xp: Any, v: Any) -> Any:
        """See `Group.inverse_jacobian`."""
        x, y, t = parts(v, 1, 1, 1)
        q = t * cotangent(xp, t * t)
        h, k, o = t / 2, 1 - t * q, xp.zeros_like(t)
        return matrix(xp, [[k, -h, q * x + y / 2], [h, k, q * y - x / 2], [o, o, xp.ones_like(t)]])

    def normalize(self, xp: Any, x: Any) -> Any:
        """Its rotation of length one."""
        length = xp.sqrt(xp.sum(x[..., :2] * x[..., :2], axis=-1, keepdims=True))
        return xp.concat([x[..., :2] / length, x[..., 2:]], axis=-1)

    def invalid(self, xp: Any, x: Any) -> Any:
        """Its rotation not of length one to six digits."""
        return ROTATION.invalid(xp, x[..., :2])


ROTATION = Rotation2()
