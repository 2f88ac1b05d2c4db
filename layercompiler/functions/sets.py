"""Projections onto sets with a closed form: orthant, box, hyperplane, half-space, affine set.

Every function takes tensors of torch, jax, TensorFlow or numpy, any leading batch dimensions (parameters broadcast), and is written so that
the framework's own differentiation of it is exact, at every order where the projection is smooth. At a kink the derivative is that of the
side where the constraint is active.
"""

from __future__ import annotations

from typing import Any

from layercompiler.functions.operands import infeasible, operands, product, transposed


def project_nonnegative(x: Any) -> Any:
    """max(x, 0), elementwise, for x of any shape.

    Differentiability: not at 0, where the derivative is taken as 0.
    """
    xp, x = operands(x)
    return xp.where(x > 0, x, xp.zeros_like(x))


def project_box(x: Any, lower: Any = 0.0, upper: Any = 1.0) -> Any:
    """Nearest point with lower <= y <= upper, elementwise; NaN where lower > upper.

    Args:
        x: Any shape.
        lower: Lower bounds, broadcast; differentiated too. Infinities are allowed.
        upper: Upper bounds, likewise.

    Differentiability: not at a bound, where the derivative is that of the bound.
    """
    xp, x, lower, upper = operands(x, lower, upper)
    out = xp.where(x <= lower, lower, xp.where(x >= upper, upper, x))
    return infeasible(xp, lower > upper, out)


def project_hyperplane(x: Any, normal: Any, offset: Any) -> Any:
    """Nearest point with normal'y = offset: x - normal (normal'x - offset) / |normal|^2.

    Args:
        x: (..., n).
        normal: (..., n), not zero.
        offset: (...).
    """
    xp, x, normal, offset = operands(x, normal, offset)
    step = (xp.sum(normal * x, axis=-1) - offset) / xp.sum(normal * normal, axis=-1)
    return x - step[..., None] * normal


def project_halfspace(x: Any, normal: Any, offset: Any) -> Any:
    """Nearest point with normal'y <= offset.

    Args:
        x: (..., n).
        normal: (..., n), not zero.
        offset: (...).

    Differentiability: not on the hyperplane, where the derivative is that of the inside.
    """
    xp, x, normal, offset = operands(x, normal, offset)
    beyond = xp.sum(normal * x, axis=-1) - offset
    step = xp.where(beyond > 0, beyond, xp.zeros_like(beyond)) / xp.sum(normal * normal, axis=-1)
    return x - step[..., None] * normal


def project_affine(x: Any, A: Any, b: Any) -> Any:
    """Nearest point with A y = b: x - A'(AA')^+ (A x - b).

    Args:
        x: (..., n).
        A: (..., m, n). Rows may be redundant if b agrees; directions of AA' below 1e-12 of its largest eigenvalue count as none.
        b: (..., m).

    Differentiability: smooth where A has full row rank; with redundant rows, the derivative along changes that keep them redundant,
        to second order.
    Cost: O(m^2 n + m^3) per instance.
    """
    xp, x, A, b = operands(x, A, b)
    gram = xp.matmul(A, transposed(xp, A))
    inverse = _pseudoinverse(xp, xp.stop_gradient(gram))
    for _ in range(2):  # Newton's steps for an inverse: value unchanged, derivatives exact to order 3
        inverse = 2 * inverse - xp.matmul(inverse, xp.matmul(gram, inverse))
    back = xp.matmul(transposed(xp, A), inverse)
    for _ in range(2):  # the second pass takes away what rounding left
        x = x - product(xp, back, product(xp, A, x) - b)
    return x


def _pseudoinverse(xp: Any, M: Any) -> Any:
    w, Q = xp.linalg.eigh(M)
    sound = w > 1e-12 * xp.max(xp.abs(w), axis=-1, keepdims=True)
    inverse = xp.where(sound, 1.0 / xp.where(sound, w, xp.ones_like(w)), xp.zeros_like(w))
    return xp.matmul(Q * inverse[..., None, :], transposed(xp, Q))
