"""Robust pooling: the value nearest to many under a penalty that outliers cannot pull."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from layercompiler.errors import OptionError
from layercompiler.functions.iteration import iterate
from layercompiler.functions.operands import operands

STARTS, CANDIDATES = 8, 256
_CONVEX = ("quadratic", "pseudo-huber", "huber")
_Penalty = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]


def robust_pool(x: Any, penalty: str = "huber", width: Any = 1.0) -> Any:
    """argmin over y of sum over i of penalty(y - x_i), over the last axis.

    | penalty | of a residual z at width a | convex |
    |---|---|---|
    | quadratic | z^2 / 2 | yes |
    | pseudo-huber | a^2 (sqrt(1 + (z/a)^2) - 1) | yes |
    | huber | z^2 / 2 for abs(z) <= a, else a abs(z) - a^2 / 2 | yes |
    | welsch | a^2 (1 - exp(-(z/a)^2 / 2)) | no |
    | truncated-quadratic | min(z^2, a^2) / 2 | no |

    Reweighting from the best of the x_i, then Newton's method. Where the penalty is not convex, eight such starts (of at most 256
    candidates) find the global minimum in all but contrived cases. The derivative is that of the stationarity equation, exact to second
    order.

    Args:
        x: (..., n).
        penalty: See the table.
        width: (...), positive, differentiated too.

    Returns:
        (...).
    Differentiability: huber and truncated-quadratic not where a residual equals the width; truncated-quadratic and welsch not where
        the best point changes. Where every residual of huber is an outlier, any point between the middle values is optimal and the
        derivative is 0.
    Source: Gould, Hartley, Campbell 2021 (deep declarative networks), section 5.
    """
    if penalty not in _PENALTIES:
        raise OptionError("unknown penalty", expected=f"one of {sorted(_PENALTIES)}", got=repr(penalty))
    xp, x, width = operands(x, width)
    if penalty == "quadratic":
        return xp.mean(x, axis=-1)
    _, slope, curvature = _PENALTIES[penalty]
    width = width[..., None]
    x0, a0 = xp.stop_gradient(x), xp.stop_gradient(width)
    y = xp.stop_gradient(_best(xp, x0, a0, _PENALTIES[penalty], 1 if penalty in _CONVEX else STARTS))
    for _ in range(2):
        z = y[..., None] - x
        bend = xp.sum(curvature(xp, z, width), axis=-1)
        sound = bend > 0
        step = xp.sum(slope(xp, z, width), axis=-1) / xp.where(sound, bend, xp.ones_like(bend))
        y = y - xp.where(sound, step, xp.zeros_like(step))
    return y


def _best(xp: Any, x: Any, a: Any, penalty: _Penalty, starts: int) -> Any:
    """The best of the points reached from several starts, (...)."""
    value, slope, curvature = penalty
    n = x.shape[-1]
    order = xp.sort(x + xp.zeros_like(a), axis=-1)
    count = min(n, CANDIDATES)
    candidates = xp.stack([order[..., (2 * k + 1) * n // (2 * count)] for k in range(count)], axis=-1) if count < n else order
    cost = xp.sum(value(xp, candidates[..., :, None] - x[..., None, :], a[..., None]), axis=-1)
    best = xp.argsort(cost, axis=-1)[..., : min(starts, count)]
    points = xp.take_along_axis(candidates, best, axis=-1)[..., None]
    x, a = x[..., None, :], a[..., None, :]
    scale = xp.max(xp.abs(x), axis=-1, keepdims=True) + a

    def reweight(y: Any, moved: Any) -> tuple[Any, Any]:
        z = y - x
        # weight = slope / z, in the limit the curvature at 0, which is 1 for every penalty
        away = xp.abs(z) > 1e-9 * a
        w = xp.where(away, slope(xp, z, a) / xp.where(away, z, xp.ones_like(z)), xp.ones_like(z))
        total = xp.sum(w, axis=-1, keepdims=True)
        after = xp.where(total > 0, xp.sum(w * x, axis=-1, keepdims=True) / xp.where(total > 0, total, xp.ones_like(total)), y)
        return after, xp.abs(after - y) / scale

    def newton(y: Any, moved: Any) -> tuple[Any, Any]:
        z = y - x
        bend = xp.sum(curvature(xp, z, a), axis=-1, keepdims=True)
        pull = xp.sum(slope(xp, z, a), axis=-1, keepdims=True)
        after = y - xp.where(bend > 0, pull / xp.where(bend > 0, bend, xp.ones_like(bend)), xp.zeros_like(bend))
        # kept only where it does not worsen stationarity
        better = xp.abs(xp.sum(slope(xp, after - x, a), axis=-1, keepdims=True)) < xp.abs(pull)
        after = xp.where(better & (bend > 0), after, y)
        return after, xp.abs(after - y) / scale

    far = xp.ones_like(points)
    y, _ = iterate(xp, lambda y, moved: xp.any(moved > 1e-6), reweight, (points, far), 100)
    y, _ = iterate(xp, lambda y, moved: xp.any(moved > 1e-15), newton, (y, far), 50)
    cost = xp.sum(value(xp, y - x, a), axis=-1)
    first = xp.argmin(cost, axis=-1)
    return xp.take_along_axis(y[..., 0], first[..., None], axis=-1)[..., 0]


def _within(xp: Any, z: Any, a: Any, inner: Any, outer: Any) -> Any:
    return xp.where(xp.abs(z) <= a, inner, outer)


def _sign(xp: Any, z: Any) -> Any:
    return xp.where(z < 0, -xp.ones_like(z), xp.ones_like(z))


def _root(xp: Any, z: Any, a: Any) -> Any:
    return xp.sqrt(1.0 + (z / a) ** 2)


_PENALTIES: dict[str, _Penalty] = {
    "quadratic": (
        lambda xp, z, a: 0.5 * z * z,
        lambda xp, z, a: z,
        lambda xp, z, a: xp.ones_like(z),
    ),
    "pseudo-huber": (
        lambda xp, z, a: z * z / (1.0 + _root(xp, z, a)),
        lambda xp, z, a: z / _root(xp, z, a),
        lambda xp, z, a: _root(xp, z, a) ** -3,
    ),
    "huber": (
        lambda xp, z, a: _within(xp, z, a, 0.5 * z * z, a * xp.abs(z) - 0.5 * a * a),
        lambda xp, z, a: _within(xp, z, a, z, a * _sign(xp, z)),
        lambda xp, z, a: _within(xp, z, a, xp.ones_like(z), xp.zeros_like(z)),
    ),
    "welsch": (
        lambda xp, z, a: a * a * (1.0 - xp.exp(-0.5 * (z / a) ** 2)),
        lambda xp, z, a: z * xp.exp(-0.5 * (z / a) ** 2),
        lambda xp, z, a: (1.0 - (z / a) ** 2) * xp.exp(-0.5 * (z / a) ** 2),
    ),
    "truncated-quadratic": (
        lambda xp, z, a: _within(xp, z, a, 0.5 * z * z, 0.5 * a * a + 0.0 * z),
        lambda xp, z, a: _within(xp, z, a, z, xp.zeros_like(z)),
        lambda xp, z, a: _within(xp, z, a, xp.ones_like(z), xp.zeros_like(z)),
    ),
}
