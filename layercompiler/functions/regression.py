"""Least squares as a function: weighted, with a ridge, exact at every order."""

from __future__ import annotations

from typing import Any

from layercompiler.functions.operands import operands, product, transposed


def least_squares(A: Any, b: Any, weights: Any = 1.0, ridge: Any = 0.0) -> Any:
    """argmin over x of sum(weights * (A x - b)^2) + ridge * |x|^2.

    Args:
        A: (..., m, n), of full column rank unless ridge > 0.
        b: (..., m).
        weights: (..., m) or broadcast, not negative.
        ridge: (...), not negative.

    Returns:
        (..., n).
    Differentiability: smooth, at every order.
    Cost: O(m n^2 + n^3).
    """
    xp, A, b, weights, ridge = operands(A, b, weights, ridge)
    weighted = A * (weights + xp.zeros_like(b))[..., None]
    back = transposed(xp, weighted)
    ridge = ridge[..., None]
    normal = xp.matmul(back, A) + ridge[..., None] * xp.eye_like(A, A.shape[-1])
    x = xp.linalg.solve(normal, product(xp, back, b)[..., None])[..., 0]
    residual = product(xp, back, b - product(xp, A, x)) - ridge * x
    return x + xp.linalg.solve(normal, residual[..., None])[..., 0]  # takes away most of what squaring the condition cost
