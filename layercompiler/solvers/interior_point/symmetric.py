"""Products of the nonnegative orthant and second-order cones, in array functions: projections, steps, Nesterov-Todd scaling.

A second-order cone of dimension k is {(t, u): |u| <= t}; its Jordan product is a o b = (a'b, a_0 b_1 + b_0 a_1), with identity e = (1, 0).
The projection onto the cone is, in the eigenbasis of its argument, a function of the eigenvalues t -+ |u| alone, and so is its
derivative D: eigenvalues d1 and d2 along (1, -+u/|u|) / sqrt 2 and d0 on the rest. Functions of D, such as its root, are those of d.

Source: Alizadeh and Goldfarb 2003, section 4; Vandenberghe 2010 (CVXOPT's cone programs), sections 5 and 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from layercompiler.cones import Product
from layercompiler.cones.base import KINK

TINY = 1e-300
APART = 0.6


@dataclass(frozen=True)
class Spectral:
    """The derivative D of the projection at a batch of points, or a function of it.

    Attributes:
        linear: (B, l), its diagonal on the orthant.
        groups: Per group of second-order cones (d0, d1, d2, unit), each (B, count, 1) but unit (B, count, dim - 1).
    """

    linear: Any
    groups: tuple[tuple[Any, Any, Any, Any], ...] = ()

    def map(self, function: Callable[[Any], Any]) -> Spectral:
        """The same function of every eigenvalue."""
        return Spectral(function(self.linear), tuple((function(a), function(b), function(c), u) for a, b, c, u in self.groups))


@dataclass(frozen=True)
class Scaling:
    """Nesterov-Todd scaling W, symmetric, with W z = W^-1 s.

    Attributes:
        square: (B, l), W^2 on the orthant.
        groups: Per group (eta, w): W^2 = eta^2 (2 w w' - J), W = eta (2 v v' - J) with v = (w + e) / sqrt(2 w_0 + 2).
    """

    square: Any
    groups: tuple[tuple[Any, Any], ...] = ()


@dataclass(frozen=True)
class Symmetric:
    """R_+^linear times groups of equal second-order cones.

    Attributes:
        linear: Rows of the orthant, which come first.
        groups: (count, dim) of the groups, in the order of their rows.
    """

    linear: int
    groups: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, cones: Product) -> tuple[int, Symmetric] | None:
        """(number of equality rows, the cone of the others), or None where there are other cones."""
        equalities, linear, groups = 0, 0, []
        for cone, count in cones.blocks:
            if cone.name == "zero":
                equalities += count
            elif cone.name == "nonnegative" or (cone.name == "second_order" and cone.dim == 1 and not groups):
                linear += count
            elif cone.name == "second_order":
                groups.append((count, cone.dim))
            else:
                return None
        return equalities, cls(linear, tuple(groups))

    @cached_property
    def m(self) -> int:
        """Number of rows."""
        return self.linear + sum(count * dim for count, dim in self.groups)

    @cached_property
    def degree(self) -> int:
        """Rank of the Jordan algebra; the central path has s'z = degree mu."""
        return self.linear + sum(count for count, _ in self.groups)

    @cached_property
    def identity(self) -> np.ndarray:
        """E, (m,)."""
        return np.concatenate([np.ones(self.linear), *(np.tile(np.eye(1, dim)[0], count) for count, dim in self.groups)])

    @cached_property
    def _same(self) -> np.ndarray:
        """(m, m), one where two rows belong to the same second-order cone."""
        labels = np.concatenate(
            [np.arange(self.linear), *(self.linear + 1000 * g + np.repeat(np.arange(c), d) / c for g, (c, d) in enumerate(self.groups))]
        )
        same = (labels[:, None] == labels[None, :]).astype(float)
        same[: self.linear, : self.linear] = 0.0
        return same

    def split(self, x: Any) -> tuple[Any, list[Any]]:
        """(B, m, ...) into (B, linear, ...) and (B, count, dim, ...) per group."""
        parts, at = [], self.linear
        for count, dim in self.groups:
            parts.append(x[:, at : at + count * dim].reshape(x.shape[0], count, dim, *x.shape[2:]))
            at += count * dim
        return x[:, : self.linear], parts

    def join(self, xp: Any, linear: Any, parts: list[Any]) -> Any:
        """The inverse of `split`."""
        flat = [p.reshape(p.shape[0], p.shape[1] * p.shape[2], *p.shape[3:]) for p in parts]
        return xp.concat([linear, *flat], axis=1) if flat else linear

    # Position --------------------------------------------------------------------------------------------------------------

    def shift(self, xp: Any, v: Any) -> Any:
        """(B,), the smallest t with v + t e in the cone."""
        linear, parts = self.split(v)
        found = [xp.max(-linear, axis=1)] if self.linear else []
        found += [xp.max(_norm(xp, p[..., 1:]) - p[..., 0], axis=1) for p in parts]
        return _largest(xp, found)

    def inverse_step(self, xp: Any, v: Any, dv: Any) -> Any:
        """(B,), one over the largest t with v + t dv in the cone, for v inside; not positive where every t will do."""
        if not self.groups:
            return xp.max(-dv / v, axis=1)
        (linear, parts), (d_linear, d_parts) = self.split(v), self.split(dv)
        found = [xp.max(-d_linear / linear, axis=1)] if self.linear else []
        for x, y in zip(parts, d_parts, strict=True):
            a = xp.sqrt(xp.clip(_det(xp, x), TINY, None))[..., None]
            unit = x / a
            along = unit[..., :1] * y[..., :1] - xp.sum(unit[..., 1:] * y[..., 1:], axis=-1, keepdims=True)
            rest = y[..., 1:] - (along + y[..., :1]) / (unit[..., :1] + 1.0) * unit[..., 1:]
            found.append(xp.max((_norm(xp, rest) - along[..., 0]) / a[..., 0], axis=1))
        return _largest(xp, found)

    def settled(self, xp: Any, z_ratio: Any, s_ratio: Any) -> Any:
        """(B,), where the ratios of new and old z and s (B, m), up to a constant, show on the orthant which of the two vanishes.

        The ratio of what vanishes tends to zero, that of what does not to one.
        """
        if not self.linear:
            return xp.sum(z_ratio, axis=1) * 0.0 == 0.0
        apart = xp.abs(z_ratio - s_ratio)
        return xp.min(apart[:, : self.linear] if self.groups else apart, axis=1) > APART

    def join_parts(self, xp: Any, z: Any, s: Any, active: Any) -> Any:
        """V = z - s, where on the orthant `active` (B, m) tells which of the two vanishes.

        Which of two small numbers is the smaller depends on units; the caller knows the right ones.
        """
        if not self.groups:
            return xp.where(active, z, -s)
        return xp.concat([xp.where(active, z, -s)[:, : self.linear], (z - s)[:, self.linear :]], axis=1)

    # Projection ------------------------------------------------------------------------------------------------------------

    def project(self, xp: Any, v: Any) -> Any:
        """Projection of v (B, m)."""
        if not self.groups:
            return xp.where(v > 0, v, xp.zeros_like(v))  # whose derivative at zero is that of `derivative`
        linear, parts = self.split(v)
        out = []
        for p in parts:
            t, u = p[..., :1], p[..., 1:]
            length = _norm(xp, u, True)
            unit = u / xp.where(length > 0, length, xp.ones_like(length))
            high, low = xp.clip(t + length, 0.0, None), xp.clip(t - length, 0.0, None)
            out.append(0.5 * xp.concat([high + low, (high - low) * unit], axis=-1))
        return self.join(xp, xp.where(linear > 0, linear, xp.zeros_like(linear)), out)

    def derivative(self, xp: Any, v: Any) -> Spectral:
        """Derivative of the projection at v (B, m); within a relative `KINK` of a kink, the one inside the cone or its negative.

        The same point in other units is on the same side: on which side rounding puts it must not decide.
        """
        if not self.groups:
            return Spectral(xp.astype(v > 0, v.dtype))
        linear, parts = self.split(v)
        groups = []
        for p in parts:
            t, u = p[..., :1], p[..., 1:]
            length = _norm(xp, u, True)
            some = xp.where(length > 0, length, xp.ones_like(length))
            one, zero = xp.ones_like(t), xp.zeros_like(t)
            between = xp.clip(0.5 * (1.0 + t / some), 0.0, 1.0)
            inside, outside = length <= t + KINK * length, length <= -t + KINK * length
            d0 = xp.where(inside, one, xp.where(outside, zero, between))
            d1 = xp.where(inside, one, zero)
            d2 = xp.where(outside & ~inside, zero, one)
            groups.append((d0, d1, d2, u / some))
        return Spectral(xp.astype(linear > 0, v.dtype), tuple(groups))

    def traceable(self, xp: Any, v: Any) -> Any:
        """The projection, for code that the framework differentiates: its derivative is `derivative`, at kinks too."""
        if not self.groups:
            return self.project(xp, v)
        moving = self.apply(xp, self.derivative(xp, v), v)  # equal to the projection up to rounding, or to `KINK` near a kink
        return xp.stop_gradient(self.project(xp, v) - moving) + moving

    def apply(self, xp: Any, f: Spectral, x: Any) -> Any:
        """F x for x (B, m) or (B, m, k)."""
        if not self.groups:
            return (f.linear if x.ndim == 2 else f.linear[..., None]) * x
        vector = x.ndim == 2
        linear, parts = self.split(x[..., None] if vector else x)
        out = []
        for p, (d0, d1, d2, unit) in zip(parts, f.groups, strict=True):
            d0, d1, d2, unit = d0[..., None], d1[..., None], d2[..., None], unit[..., None]
            t, u = p[..., :1, :], p[..., 1:, :]
            along = xp.sum(unit * u, axis=2, keepdims=True)
            plus, minus = 0.5 * d2 * (t + along), 0.5 * d1 * (t - along)
            out.append(xp.concat([plus + minus, d0 * (u - along * unit) + (plus - minus) * unit], axis=2))
        joined = self.join(xp, f.linear[..., None] * linear, out)
        return joined[..., 0] if vector else joined

    def second(self, xp: Any, v: Any, a: Any, b: Any) -> Any:
        """Second derivative of the projection at v along a and b, (B, m) each."""
        if not self.groups:
            return xp.zeros_like(a * b)
        (_, parts), (a_linear, a_parts), (b_linear, b_parts) = self.split(v), self.split(a), self.split(b)
        out = []
        for p, x, y in zip(parts, a_parts, b_parts, strict=True):
            t, u = p[..., :1], p[..., 1:]
            length = _norm(xp, u, True)
            some = xp.where(length > 0, length, xp.ones_like(length))
            unit = u / some
            x1, y1 = x[..., 1:], y[..., 1:]
            x_along, y_along = xp.sum(unit * x1, axis=-1, keepdims=True), xp.sum(unit * y1, axis=-1, keepdims=True)
            x_rest, y_rest = (x1 - x_along * unit) / some, (y1 - y_along * unit) / some
            dot = xp.sum(x_rest * y_rest, axis=-1, keepdims=True) * some
            top = 0.5 * dot
            ratio = t / some
            bottom = 0.5 * ((x[..., :1] - ratio * x_along) * y_rest + (y[..., :1] - ratio * y_along) * x_rest - ratio * dot * unit)
            value = xp.concat([top, bottom], axis=-1)
            out.append(xp.where(length * (1.0 - KINK) > xp.abs(t), value, xp.zeros_like(value)))
        return self.join(xp, xp.zeros_like(a_linear * b_linear), out)

    # Scaling ---------------------------------------------------------------------------------------------------------------

    def scaling(self, xp: Any, s: Any, z: Any) -> Scaling:
        """Nesterov-Todd scaling of s and z, both inside the cone."""
        if not self.groups:
            return Scaling(s / z)
        (s_linear, s_parts), (z_linear, z_parts) = self.split(s), self.split(z)
        groups = []
        for x, y in zip(s_parts, z_parts, strict=True):
            a, b = (xp.sqrt(xp.clip(_det(xp, p), TINY, None))[..., None] for p in (x, y))
            x, y = x / a, y / b
            gamma = xp.sqrt(xp.clip(0.5 * (1.0 + xp.sum(x * y, axis=-1, keepdims=True)), TINY, None))
            groups.append((xp.sqrt(a / b), (x + _mirror(xp, y)) / (2.0 * gamma)))
        return Scaling(s_linear / z_linear, tuple(groups))

    def square(self, xp: Any, W: Scaling, x: Any, inverse: bool = False) -> Any:
        """W^2 x or W^-2 x for x (B, m) or (B, m, k)."""
        vector = x.ndim == 2
        if not self.groups:
            w2 = W.square if vector else W.square[..., None]
            return x / w2 if inverse else w2 * x
        linear, parts = self.split(x[..., None] if vector else x)
        w2 = W.square[..., None]
        out = []
        for p, (eta, w) in zip(parts, W.groups, strict=True):
            w = _mirror(xp, w)[..., None] if inverse else w[..., None]
            eta = 1.0 / eta[..., None] if inverse else eta[..., None]
            along = xp.sum(w * p, axis=2, keepdims=True)
            out.append(eta**2 * (2.0 * w * along - xp.concat([p[..., :1, :], -p[..., 1:, :]], axis=2)))
        joined = self.join(xp, linear / w2 if inverse else w2 * linear, out)
        return joined[..., 0] if vector else joined

    def add_square(self, xp: Any, R: Any, W: Scaling) -> Any:
        """R + W^2 for R (B, m, m)."""
        if not self.groups:
            return xp.add_diagonal(R, W.square)
        B = W.square.shape[0]
        zero = xp.zeros_like(W.square)
        diagonal, vectors = [], []
        for eta, w in W.groups:
            minus = -(eta**2) * xp.concat([xp.ones_like(w[..., :1]), -xp.ones_like(w[..., 1:])], axis=-1)
            diagonal.append(minus.reshape(B, -1))
            vectors.append((1.4142135623730951 * eta * w).reshape(B, -1))
        u = xp.concat([zero, *vectors], axis=1)
        return xp.add_diagonal(R + u[:, :, None] * u[:, None, :] * xp.new(self._same, R), xp.concat([W.square, *diagonal], axis=1))

    def corrector(self, xp: Any, W: Scaling, s: Any, z: Any, ds: Any, dz: Any, target: Any) -> Any:
        """W (lambda \\ (lambda o lambda + (W^-1 ds) o (W dz) - target e)) for target (B, 1)."""
        if not self.groups:
            return (s * z + ds * dz - target) / z
        (s_l, _), (z_l, z_p), (ds_l, ds_p), (dz_l, dz_p) = (self.split(a) for a in (s, z, ds, dz))
        out = []
        for (eta, w), z_, ds_, dz_ in zip(W.groups, z_p, ds_p, dz_p, strict=True):
            e = xp.concat([xp.ones_like(w[..., :1]), xp.zeros_like(w[..., 1:])], axis=-1)
            v = (w + e) / xp.sqrt(2.0 * (w[..., :1] + 1.0))
            lam = _turn(xp, eta, v, z_)
            right = _product(xp, lam, lam) + _product(xp, _turn(xp, 1.0 / eta, _mirror(xp, v), ds_), _turn(xp, eta, v, dz_))
            right = right - target[:, :, None] * e
            out.append(_turn(xp, eta, v, _divide(xp, lam, right)))
        return self.join(xp, (s_l * z_l + ds_l * dz_l - target) / z_l, out)


def _turn(xp: Any, eta: Any, v: Any, x: Any) -> Any:
    """Eta (2 v v' - J) x."""
    return eta * (2.0 * v * xp.sum(v * x, axis=-1, keepdims=True) - _mirror(xp, x))


def _mirror(xp: Any, x: Any) -> Any:
    """J x = (x_0, -x_1)."""
    return xp.concat([x[..., :1], -x[..., 1:]], axis=-1)


def _product(xp: Any, a: Any, b: Any) -> Any:
    return xp.concat([xp.sum(a * b, axis=-1, keepdims=True), a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:]], axis=-1)


def _divide(xp: Any, a: Any, d: Any) -> Any:
    """The x with a o x = d."""
    a0, a1, d0, d1 = a[..., :1], a[..., 1:], d[..., :1], d[..., 1:]
    det = xp.clip(_det(xp, a)[..., None], TINY, None)
    first = (a0 * d0 - xp.sum(a1 * d1, axis=-1, keepdims=True)) / det
    return xp.concat([first, (d1 - first * a1) / a0], axis=-1)


def _det(xp: Any, x: Any) -> Any:
    """t^2 - |u|^2, as (t - |u|)(t + |u|) so that it keeps its digits near the boundary."""
    length = _norm(xp, x[..., 1:])
    return (x[..., 0] - length) * (x[..., 0] + length)


def _norm(xp: Any, u: Any, keepdims: bool = False) -> Any:
    total = xp.sum(u * u, axis=-1, keepdims=keepdims)
    some = total > 0  # the root has no derivative at zero
    return xp.where(some, xp.sqrt(xp.where(some, total, xp.ones_like(total))), xp.zeros_like(total))


def _largest(xp: Any, values: list[Any]) -> Any:
    out = values[0]
    for value in values[1:]:
        out = xp.maximum(out, value)
    return out
