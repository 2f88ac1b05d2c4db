"""Eigen-decomposition of symmetric matrices whose derivative stays finite where eigenvalues repeat."""

from __future__ import annotations

from typing import Any

from layercompiler.errors import OptionError
from layercompiler.functions.cones import graph, rotated
from layercompiler.functions.operands import operands, square_matrices, transposed


def eigen(X: Any, k: int | None = None) -> tuple[Any, Any]:
    """The k largest eigenvalues, in falling order, and their eigenvectors, of the symmetric part of X (..., n, n).

    Args:
        X: (..., n, n).
        k: How many; None for all.

    Returns:
        Values (..., k) and vectors (..., n, k), in columns; their signs are arbitrary.
    Differentiability: exact to second order where eigenvalues are distinct. Where some are equal (to 1e-10 of the largest), everything
        is finite, and first derivatives of the sum of the equal ones and of the projector V V' onto their eigenvectors V are exact;
        those of single ones, or of their vectors, do not exist, and couplings between equal ones are left out. Second derivatives do not
        exist there. For the projector at both orders use `eigenspace`.
    Cost: O(n^3).
    Source: Magnus 1985.
    """
    xp, X = operands(X)
    n = square_matrices(X)
    count = _count(k, n)
    X = 0.5 * (X + transposed(xp, X))
    w, Q = xp.linalg.eigh(xp.stop_gradient(X))
    w, Q = xp.flip(xp.stop_gradient(w), axis=-1), xp.flip(xp.stop_gradient(Q), axis=-1)
    gap = w[..., :, None] - w[..., None, :]
    largest = xp.max(xp.abs(w), axis=-1)[..., None, None]
    apart = xp.abs(gap) > 1e-10 * largest
    step = xp.where(apart, 1.0 / xp.where(apart, gap, xp.ones_like(gap)), xp.zeros_like(gap))[..., :, :count]
    identity = xp.eye_like(X, n)
    unit = identity[:, :count]
    T = rotated(xp, X, w, Q)
    V = unit + xp.zeros_like(step)
    for _ in range(3):  # T V = V diag(values), with the unit entries of V held at 1: value unchanged, one order a step
        TV = xp.matmul(T, V)
        values = xp.sum(unit * TV, axis=-2)
        V = V - step * (TV - V * values[..., None, :])
    values = xp.sum(unit * xp.matmul(T, V), axis=-2)
    V = V / xp.sqrt(xp.sum(V * V, axis=-2, keepdims=True))
    return values, xp.matmul(Q, V)


def eigenspace(X: Any, k: int) -> Any:
    """Orthogonal projector (..., n, n) onto the span of the eigenvectors of the k largest eigenvalues of symmetric X.

    Differentiability: smooth where the k-th eigenvalue is larger than the next, whether or not others repeat; exact to second order.
    """
    xp, X = operands(X)
    n = square_matrices(X)
    count = _count(k, n)
    X = 0.5 * (X + transposed(xp, X))
    w, Q = xp.linalg.eigh(xp.stop_gradient(X))
    w, Q = xp.stop_gradient(w), xp.stop_gradient(Q)
    place = xp.cumulative_sum(xp.ones_like(w), axis=-1)
    return graph(xp, X, w, Q, place > n - count)


def _count(k: int | None, n: int) -> int:
    if k is not None and not 1 <= k <= n:
        raise OptionError("impossible number of eigenvalues", expected=f"1 to {n}", got=repr(k))
    return n if k is None else k
