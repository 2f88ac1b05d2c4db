"""Proximal operators: argmin over y of |y - x|^2 / 2 + scaling * penalty(y).

The signature (x, weight, scaling) is that which proximal gradient methods call. Derivatives by the framework's own differentiation are
exact; at a
kink, where an entry (group, singular value) just vanishes, it counts as vanished.
"""

from __future__ import annotations

from typing import Any

from layercompiler.functions.cones import above
from layercompiler.functions.operands import norm, operands, transposed


def prox_none(x: Any, weight: Any = None, scaling: Any = 1.0) -> Any:
    """X itself: no penalty."""
    return x


def prox_lasso(x: Any, weight: Any = 1.0, scaling: Any = 1.0) -> Any:
    """Soft threshold, for the penalty sum(weight * |y|); the weight broadcasts over x of any shape."""
    xp, x, weight, scaling = operands(x, weight, scaling)
    level = weight * scaling
    zero = xp.zeros_like(x + level)
    return xp.where(x > level, x - level, xp.where(x < -level, x + level, zero))


def prox_nonnegative_lasso(x: Any, weight: Any = 1.0, scaling: Any = 1.0) -> Any:
    """max(x - weight, 0), for the penalty sum(weight * y) with y >= 0."""
    xp, x, weight, scaling = operands(x, weight, scaling)
    out = x - weight * scaling
    return xp.where(out > 0, out, xp.zeros_like(out))


def prox_elastic_net(x: Any, lasso: Any = 1.0, ridge: Any = 1.0, scaling: Any = 1.0) -> Any:
    """For the penalty sum(lasso * |y| + ridge * y^2 / 2)."""
    _, x, lasso, ridge, scaling = operands(x, lasso, ridge, scaling)
    return prox_lasso(x, lasso, scaling) / (1.0 + ridge * scaling)


def prox_nonnegative_elastic_net(x: Any, lasso: Any = 1.0, ridge: Any = 1.0, scaling: Any = 1.0) -> Any:
    """For the penalty sum(lasso * y + ridge * y^2 / 2) with y >= 0."""
    _, x, lasso, ridge, scaling = operands(x, lasso, ridge, scaling)
    return prox_nonnegative_lasso(x, lasso, scaling) / (1.0 + ridge * scaling)


def prox_ridge(x: Any, weight: Any = 1.0, scaling: Any = 1.0) -> Any:
    """x / (1 + weight), for the penalty sum(weight * y^2) / 2."""
    _, x, weight, scaling = operands(x, weight, scaling)
    return x / (1.0 + weight * scaling)


def prox_nonnegative_ridge(x: Any, weight: Any = 1.0, scaling: Any = 1.0) -> Any:
    """max(x, 0) / (1 + weight), for the penalty sum(weight * y^2) / 2 with y >= 0."""
    xp, x, weight, scaling = operands(x, weight, scaling)
    return xp.where(x > 0, x, xp.zeros_like(x)) / (1.0 + weight * scaling)


def prox_group_lasso(x: Any, weight: Any = 1.0, scaling: Any = 1.0) -> Any:
    """Shortens groups x (..., n), the last axis, by weight: for the penalty sum(weight * |y|_2).

    Args:
        x: (..., n).
        weight: (...), one for each group.
        scaling: (...).
    """
    xp, x, weight, scaling = operands(x, weight, scaling)
    level, size = (weight * scaling)[..., None], norm(xp, x)
    alive = size > level
    factor = xp.where(alive, 1.0 - level / xp.where(alive, size, xp.ones_like(size)), xp.zeros_like(size))
    return x * factor


def prox_nuclear(X: Any, weight: Any = 1.0, scaling: Any = 1.0) -> Any:
    """Soft threshold of the singular values of X (..., m, n), for the penalty weight * (sum of singular values).

    The singular values are the positive eigenvalues of (0 X; X' 0), so the derivative is that of `project_psd`: repeated and zero
    singular values do no harm, and it is exact to second order.

    Args:
        X: (..., m, n).
        weight: (...), differentiated too.
        scaling: (...).

    Differentiability: smooth where no singular value equals the weight.
    Cost: O((m + n)^3).
    """
    xp, X, weight, scaling = operands(X, weight, scaling)
    m, n = X.shape[-2:]
    level = (weight * scaling)[..., None, None]
    zero = xp.zeros_like(X[..., :1, :1] + level)
    X = X + zero
    rows = xp.concat([xp.broadcast_to(zero, (*X.shape[:-2], m, m)), X], axis=-1)
    columns = xp.concat([transposed(xp, X), xp.broadcast_to(zero, (*X.shape[:-2], n, n))], axis=-1)
    lifted = xp.concat([rows, columns], axis=-2) - level * xp.eye_like(X, m + n)
    projector = above(xp, lifted)
    return 2.0 * xp.matmul(projector, xp.matmul(lifted, projector))[..., :m, m:]
