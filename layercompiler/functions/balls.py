"""Projections onto balls and spheres of the l1, l2 and maximum norm."""

from __future__ import annotations

from math import sqrt
from typing import Any

from layercompiler.functions.operands import infeasible, norm, operands
from layercompiler.functions.sets import project_box
from layercompiler.functions.simplex import project_simplex


def project_l1_ball(x: Any, radius: Any = 1.0) -> Any:
    """Nearest point with sum(|y|) <= radius; NaN where radius < 0.

    Args:
        x: (..., n).
        radius: (...), differentiated too.

    Differentiability: not on the sphere (there, the derivative of the inside) nor where an entry meets the threshold.
    Source: Duchi, Shalev-Shwartz, Singer, Chandra 2008.
    """
    xp, x, radius = operands(x, radius)
    inside = xp.sum(xp.abs(x), axis=-1, keepdims=True) <= radius[..., None]
    sphere = project_l1_sphere(x, radius)
    return xp.where(inside, x + xp.zeros_like(sphere), sphere)


def project_l1_sphere(x: Any, radius: Any = 1.0) -> Any:
    """Nearest point with sum(|y|) = radius; entries that are 0 count as positive.

    Args:
        x: (..., n).
        radius: (...), differentiated too.
    """
    xp, x, radius = operands(x, radius)
    side = xp.where(x < 0, -xp.ones_like(x), xp.ones_like(x))
    return side * project_simplex(side * x, radius)


def project_l2_ball(x: Any, radius: Any = 1.0) -> Any:
    """Nearest point with |y|_2 <= radius; NaN where radius < 0.

    Args:
        x: (..., n).
        radius: (...), differentiated too.

    Differentiability: not on the sphere; there, the derivative of the inside.
    """
    xp, x, radius = operands(x, radius)
    radius, size = radius[..., None], norm(xp, x)
    outside = size > radius
    shrunk = x * (radius / xp.where(outside, size, xp.ones_like(size)))
    return infeasible(xp, radius < 0, xp.where(outside, shrunk, x))


def project_l2_sphere(x: Any, radius: Any = 1.0) -> Any:
    """Nearest point with |y|_2 = radius.

    Args:
        x: (..., n).
        radius: (...), differentiated too.

    Differentiability: smooth but at x = 0, where every point of the sphere is as near: the one with equal entries is returned, with a
        derivative of 0 with respect to x.
    """
    xp, x, radius = operands(x, radius)
    radius, size = radius[..., None], norm(xp, x)
    somewhere = size > 0
    way = xp.where(somewhere, x / xp.where(somewhere, size, xp.ones_like(size)), xp.ones_like(x) / sqrt(x.shape[-1]))
    return infeasible(xp, radius < 0, radius * way)


def project_linf_ball(x: Any, radius: Any = 1.0) -> Any:
    """Nearest point with max(|y|) <= radius.

    Args:
        x: (..., n).
        radius: (...), differentiated too.
    """
    _, x, radius = operands(x, radius)
    return project_box(x, -radius[..., None], radius[..., None])


def project_linf_sphere(x: Any, radius: Any = 1.0) -> Any:
    """Nearest point with max(|y|) = radius: inside, the largest entry moves (the first of equals, zeros upwards).

    Args:
        x: (..., n).
        radius: (...), differentiated too.
    """
    xp, x, radius = operands(x, radius)
    radius = radius[..., None]
    size = xp.stop_gradient(xp.abs(x))
    largest = size == xp.max(size, axis=-1, keepdims=True)
    count = xp.cumulative_sum(xp.where(largest, xp.ones_like(size), xp.zeros_like(size)), axis=-1)
    first = largest & (count == 1.0) & (size < radius)
    bound = xp.where(x < 0, -radius, radius)
    return xp.where(first, bound, project_box(x, -radius, radius))
