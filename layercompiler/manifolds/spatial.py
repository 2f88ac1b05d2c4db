"""Rotations and rigid motions of space."""

from __future__ import annotations

from typing import Any

import numpy as np

from layercompiler.manifolds.group import Group, cross, hat, matrix, parts, square, unlike_unit
from layercompiler.manifolds.series import angle_over_sine, cotangent, cotangent_rest, sinc, third, versine


class Rotation3(Group):
    """Rotations of space, stored as unit quaternions (w, x, y, z); q and -q are the same. The tangent is axis times angle."""

    name, ambient, dof, points = "SO3", 4, 3, 3

    def identity(self) -> np.ndarray:
        """(1, 0, 0, 0)."""
        return np.array([1.0, 0.0, 0.0, 0.0])

    def exp(self, xp: Any, v: Any) -> Any:
        """See `Group.exp`."""
        quarter = square(xp, v) / 4
        half = sinc(xp, quarter)
        # cos(t) = 1 - t^2 versine(t^2) would cancel for large angles; the square root is safe where the angle is not small
        cosine = xp.where(
            quarter < 0.25, 1 - quarter * versine(xp, quarter), xp.cos(xp.sqrt(xp.where(quarter < 0.25, xp.ones_like(quarter), quarter)))
        )
        return xp.concat([cosine[..., None], v / 2 * half[..., None]], axis=-1)

    def tangent(self, xp: Any, x: Any, v: Any) -> Any:
        """See `Manifold.tangent`."""
        w, u, h = x[..., :1], x[..., 1:], v / 2
        return xp.concat([-xp.sum(u * h, axis=-1, keepdims=True), w * h + cross(xp, u, h)], axis=-1)

    def log(self, xp: Any, x: Any) -> Any:
        """See `Group.log`; at pi, where two tangents have one element, either may come."""
        return self.log_rest(xp, x)[0]

    def log_rest(self, xp: Any, x: Any) -> tuple[Any, Any]:
        """The tangent, and `series.cotangent` of its squared length."""
        w, v = parts(x, 1, 3)
        sign = xp.where(w < 0, -xp.ones_like(w), xp.ones_like(w))
        length, cosine = square(xp, v), sign * w
        ratio = angle_over_sine(xp, length, cosine)
        return (2 * sign * ratio)[..., None] * v, cotangent_rest(xp, 4 * ratio * ratio * length, ratio * cosine)

    def compose(self, xp: Any, x: Any, y: Any) -> Any:
        """See `Group.compose`."""
        (w, a, b, c), (o, p, q, r) = parts(x, 1, 1, 1, 1), parts(y, 1, 1, 1, 1)
        return xp.stack(
            [
                w * o - a * p - b * q - c * r,
                w * p + a * o + b * r - c * q,
                w * q - a * r + b * o + c * p,
                w * r + a * q - b * p + c * o,
            ],
            axis=-1,
        )

    def inverse(self, xp: Any, x: Any) -> Any:
        """See `Group.inverse`."""
        return xp.concat([x[..., :1], -x[..., 1:]], axis=-1)

    def act(self, xp: Any, x: Any, p: Any) -> Any:
        """See `Group.act`."""
        w, v = x[..., :1], x[..., 1:]
        twice = 2 * cross(xp, v, p)
        return p + w * twice + cross(xp, v, twice)

    def matrix(self, xp: Any, x: Any) -> Any:
        """See `Group.matrix`."""
        w, a, b, c = parts(x, 1, 1, 1, 1)
        return matrix(
            xp,
            [
                [1 - 2 * (b * b + c * c), 2 * (a * b - w * c), 2 * (a * c + w * b)],
                [2 * (a * b + w * c), 1 - 2 * (a * a + c * c), 2 * (b * c - w * a)],
                [2 * (a * c - w * b), 2 * (b * c + w * a), 1 - 2 * (a * a + b * b)],
            ],
        )

    def adjoint(self, xp: Any, x: Any) -> Any:
        """The rotation's matrix."""
        return self.matrix(xp, x)

    def bracket(self, xp: Any, u: Any, v: Any) -> Any:
        """The cross product."""
        return cross(xp, u, v)

    def jacobian(self, xp: Any, v: Any) -> Any:
        """See `Group.jacobian`."""
        t, W = square(xp, v), hat(xp, v)
        return xp.eye_like(v, 3) - versine(xp, t)[..., None, None] * W + third(xp, t)[..., None, None] * xp.matmul(W, W)

    def inverse_jacobian(self, xp: Any, v: Any) -> Any:
        """See `Group.inverse_jacobian`."""
        W = hat(xp, v)
        return xp.eye_like(v, 3) + W / 2 + cotangent(xp, square(xp, v))[..., None, None] * xp.matmul(W, W)

    def normalize(self, xp: Any, x: Any) -> Any:
        """Of length one."""
        return x / xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True))

    def invalid(self, xp: Any, x: Any) -> Any:
        """Not of length one to six digits."""
        return unlike_unit(xp, x)


class Motion3(Group):
    """Rigid motions of space, stored as (w, x, y, z, translation); the tangent is (translation, axis times angle)."""

    name, ambient, dof, points = "SE3", 7, 6, 3

    def identity(self) -> np.ndarray:
        """(1, 0, 0, 0, 0, 0, 0)."""
        return np.array([1.0, 0, 0, 0, 0, 0, 0])

    def exp(self, xp: Any, v: Any) -> Any:
        """See `Group.exp`."""
        u, w = parts(v, 3, 3)
        t, first = square(xp, w), cross(xp, w, u)
        moved = u + versine(xp, t)[..., None] * first + third(xp, t)[..., None] * cross(xp, w, first)
        return xp.concat([ROTATION.exp(xp, w), moved], axis=-1)

    def tangent(self, xp: Any, x: Any, v: Any) -> Any:
        """See `Manifold.tangent`."""
        q = x[..., :4]
        return xp.concat([ROTATION.tangent(xp, q, v[..., 3:]), ROTATION.act(xp, q, v[..., :3])], axis=-1)

    def log(self, xp: Any, x: Any) -> Any:
        """See `Group.log`."""
        q, u = parts(x, 4, 3)
        w, rest = ROTATION.log_rest(xp, q)
        first = cross(xp, w, u)
        return xp.concat([u - first / 2 + rest[..., None] * cross(xp, w, first), w], axis=-1)

    def compose(self, xp: Any, x: Any, y: Any) -> Any:
        """See `Group.compose`."""
        (q, u), (r, v) = parts(x, 4, 3), parts(y, 4, 3)
        return xp.concat([ROTATION.compose(xp, q, r), u + ROTATION.act(xp, q, v)], axis=-1)

    def inverse(self, xp: Any, x: Any) -> Any:
        """See `Group.inverse`."""
        q, u = parts(x, 4, 3)
        back = ROTATION.inverse(xp, q)
        return xp.concat([back, -ROTATION.act(xp, back, u)], axis=-1)

    def act(self, xp: Any, x: Any, p: Any) -> Any:
        """See `Group.act`."""
        return ROTATION.act(xp, x[..., :4], p) + x[..., 4:]

    def matrix(self, xp: Any, x: Any) -> Any:
        """See `Group.matrix`."""
        q, u = parts(x, 4, 3)
        top = xp.concat([ROTATION.matrix(xp, q), u[..., None]], axis=-1)
        zero = xp.zeros_like(top[..., :1, :])
        return xp.concat([top, xp.concat([zero[..., :3], zero[..., 3:] + 1], axis=-1)], axis=-2)

    def adjoint(self, xp: Any, x: Any) -> Any:
        """See `Group.adjoint`."""
        R = ROTATION.matrix(xp, x[..., :4])
        return _corner(xp, R, xp.matmul(hat(xp, x[..., 4:]), R))

    def bracket(self, xp: Any, u: Any, v: Any) -> Any:
        """See `Group.bracket`."""
        (a, p), (b, q) = parts(u, 3, 3), parts(v, 3, 3)
        return xp.concat([cross(xp, p, b) + cross(xp, a, q), cross(xp, p, q)], axis=-1)

    def jacobian(self, xp: Any, v: Any) -> Any:
        """See `Group.jacobian`."""
        return _corner(xp, ROTATION.jacobian(xp, v[..., 3:]), _coupling(xp, -v))

    def inverse_jacobian(self, xp: Any, v: Any) -> Any:
        """See `Group.inverse_jacobian`."""
        J = ROTATION.inverse_jacobian(xp, v[..., 3:])
        return _corner(xp, J, -xp.matmul(xp.matmul(J, _coupling(xp, -v)), J))

    def normalize(self, xp: Any, x: Any) -> Any:
        """Its rotation of length one."""
        return xp.concat([ROTATION.normalize(xp, x[..., :4]), x[..., 4:]], axis=-1)

    def invalid(self, xp: Any, x: Any) -> Any:
        """Its rotation not of length one to six digits."""
        return ROTATION.invalid(xp, x[..., :4])


def _corner(xp: Any, diagonal: Any, off: Any) -> Any:
    """[[diagonal, off], [0, diagonal]]."""
    below = xp.concat([xp.zeros_like(off), diagonal], axis=-1)
    return xp.concat([xp.concat([diagonal, off], axis=-1), below], axis=-2)


def _coupling(xp: Any, v: Any) -> Any:
    """The upper right block of the left Jacobian. Source: Barfoot, "State Estimation for Robotics", 2017, equation 7.86."""
    U, W = hat(xp, v[..., :3]), hat(xp, v[..., 3:])
    t = square(xp, v[..., 3:])
    b, c = third(xp, t), versine(xp, t)
    fourth, fifth = _remainders(xp, t, c, b)
    WU, UW = xp.matmul(W, U), xp.matmul(U, W)
    WUW = xp.matmul(WU, W)
    two = xp.matmul(W, WU) + xp.matmul(UW, W) - 3 * WUW
    three = xp.matmul(WUW, W) + xp.matmul(W, WUW)
    b, fourth, fifth = (a[..., None, None] for a in (b, fourth, fifth))
    return U / 2 + b * (WU + UW + WUW) + fourth * two + (fourth - 3 * fifth) / 2 * three


def _remainders(xp: Any, t: Any, c: Any, b: Any) -> tuple[Any, Any]:
    """(t^2/2 + cos t - 1) / t^4 and (t^3/6 - t + sin t) / t^5 by t^2, whose cancellation grows below one radian."""
    from math import factorial

    near = t < 1.0
    one = xp.ones_like(t)
    s = xp.where(near, t, one)
    fourth = sum((-1) ** k / factorial(2 * k + 4) * s**k for k in range(11))
    fifth = sum((-1) ** k / factorial(2 * k + 5) * s**k for k in range(11))
    far = xp.where(near, one, t)
    return xp.where(near, fourth, (0.5 - c) / far), xp.where(near, fifth, (1 / 6 - b) / far)


ROTATION = Rotation3()
