"""Projections onto the simplex and onto a box cut by a hyperplane; sparsemax.

The active set is found on constants; the threshold is then written as a formula of the differentiable inputs, so the framework's own
differentiation is exact at every order (the projection is piecewise linear).
"""

from __future__ import annotations

from math import ceil, log2
from typing import Any

from layercompiler.functions.operands import infeasible, operands


def project_simplex(x: Any, radius: Any = 1.0) -> Any:
    """Nearest point with y >= 0 and sum(y) = radius; NaN where radius < 0.

    Args:
        x: (..., n).
        radius: (...), differentiated too.

    Differentiability: not where an entry meets the threshold exactly; there, the derivative with that entry at 0.
    Cost: O(n log n).
    Source: Held, Wolfe, Crowder 1974; Duchi, Shalev-Shwartz, Singer, Chandra 2008.
    """
    xp, x, radius = operands(x, radius)
    radius = radius[..., None]
    fixed, level = xp.stop_gradient(x), xp.stop_gradient(radius)
    peak = xp.max(fixed, axis=-1, keepdims=True)
    down = -xp.sort(peak - fixed, axis=-1)
    one = xp.ones_like(down)
    reached = (xp.cumulative_sum(down, axis=-1) - level) < xp.cumulative_sum(one, axis=-1) * down
    # At radius 0 no entry passes; the largest ones are the support all the same.
    reached = reached | (down >= 0)
    count = xp.sum(xp.where(reached, one, 0 * one), axis=-1, keepdims=True)
    threshold = (xp.sum(xp.where(reached, down, 0 * down), axis=-1, keepdims=True) - level) / count
    return infeasible(xp, radius < 0, _on_support(xp, x, radius, (fixed - peak > threshold) | ((fixed == peak) & (level <= 0)), peak))


def _on_support(xp: Any, x: Any, radius: Any, support: Any, peak: Any) -> Any:
    shifted = x - peak  # large numbers leave the sums
    zero = xp.zeros_like(shifted)
    count = xp.sum(xp.where(support, xp.ones_like(shifted), zero), axis=-1, keepdims=True)
    threshold = (xp.sum(xp.where(support, shifted, zero), axis=-1, keepdims=True) - radius) / count
    out = shifted - threshold
    return xp.where(support & (out >= 0), out, xp.zeros_like(out))


def sparsemax(x: Any) -> Any:
    """Nearest probability vector to scores x (..., n): a softmax with exact zeros.

    Source: Martins, Astudillo 2016.
    """
    return project_simplex(x, 1.0)


def project_box_section(x: Any, lower: Any, upper: Any, weights: Any, total: Any) -> Any:
    """Nearest point with lower <= y <= upper and weights'y = total; NaN where there is none.

    The solution is clip(x - t weights, lower, upper), with weights'y a falling piecewise linear function of t: a binary search over its
    2n corners finds the piece, a formula the t.

    Args:
        x: (..., n).
        lower: (..., n) or broadcast; -inf is allowed.
        upper: Likewise; inf is allowed.
        weights: (..., n) of any signs.
        total: (...).

    Differentiability: not where an entry meets its bound exactly; there, the derivative with that entry fixed. Where every entry is at a
        bound, the derivative with respect to total and weights does not exist and 0 is returned.
    Cost: O(n log n).
    """
    xp, x, lower, upper, weights, total = operands(x, lower, upper, weights, total)
    x, lower, upper, weights, total = _alike(xp, x, lower, upper, weights, total[..., None])
    lower0, upper0, x0, w0, c0 = (xp.stop_gradient(v) for v in (lower, upper, x, weights, total))
    flat = w0 == 0
    slope = xp.where(flat, xp.ones_like(w0), w0)
    corners = xp.concat([(x0 - lower0) / slope, (x0 - upper0) / slope], axis=-1)
    useful = xp.isfinite(corners) & ~xp.concat([flat, flat], axis=-1)
    corners = xp.where(useful, corners, xp.zeros_like(corners))  # a point that is no corner does no harm
    corners = xp.sort(corners, axis=-1)
    corners = xp.concat([corners[..., :1] - 1.0, corners, corners[..., -1:] + 1.0], axis=-1)
    last = corners.shape[-1] - 1

    def value(t: Any) -> Any:
        return xp.sum(w0 * _clip(xp, x0 - t * w0, lower0, upper0), axis=-1, keepdims=True)

    # Positions are kept as numbers, and read by comparison: no gather, no integers.
    place = xp.cumulative_sum(xp.ones_like(corners), axis=-1) - 1.0

    def corner(k: Any) -> Any:
        return xp.sum(xp.where(place == k, corners, xp.zeros_like(corners)), axis=-1, keepdims=True)

    low = xp.zeros_like(c0[..., :1])
    high = low + last
    c1 = c0[..., :1]
    for _ in range(ceil(log2(last)) + 1):
        middle = xp.floor(0.5 * (low + high))
        above = value(corner(middle)) > c1
        low, high = xp.where(above, middle, low), xp.where(above, high, middle)
    high = xp.where(high > low, high, low + 1.0)
    inner = 0.5 * (corner(low) + corner(high))
    point = x0 - inner * w0
    at_lower, at_upper = point <= lower0, point >= upper0
    free = ~at_lower & ~at_upper & ~flat
    zero = xp.zeros_like(x)
    bounded = xp.where(at_lower, _finite(xp, lower), xp.where(at_upper, _finite(xp, upper), x))
    curve = xp.sum(xp.where(free, weights * weights, zero), axis=-1, keepdims=True)
    excess = xp.sum(weights * bounded, axis=-1, keepdims=True) - total[..., :1]
    t = xp.where(curve > 0, excess / xp.where(curve > 0, curve, xp.ones_like(curve)), xp.zeros_like(curve))
    out = _clip(xp, xp.where(free, bounded - t * weights, bounded), lower, upper)
    missed = xp.abs(xp.sum(w0 * xp.stop_gradient(out), axis=-1, keepdims=True) - c1)
    size = xp.abs(c1) + xp.sum(xp.abs(w0 * xp.stop_gradient(out)), axis=-1, keepdims=True)
    tolerance = 1e-9 if "64" in str(x.dtype) else 1e-4
    empty = (missed > tolerance * (1e-6 + size)) | xp.any(lower0 > upper0, axis=-1, keepdims=True)
    return infeasible(xp, empty, out)


def _clip(xp: Any, x: Any, lower: Any, upper: Any) -> Any:
    return xp.where(x < lower, lower, xp.where(x > upper, upper, x))


def _finite(xp: Any, bound: Any) -> Any:
    """Infinite bounds as 0: they are never active, and would turn zero derivatives into NaN."""
    return xp.where(xp.isfinite(bound), bound, xp.zeros_like(bound))


def _alike(xp: Any, *values: Any) -> tuple[Any, ...]:
    """All of one shape."""
    total = sum(xp.zeros_like(xp.stop_gradient(v)) for v in values)
    return tuple(xp.broadcast_to(v, total.shape) for v in values)
