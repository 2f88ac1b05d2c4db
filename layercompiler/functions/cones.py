"""Projections onto the second-order cone and the cone of positive semidefinite matrices; spectral projections."""

from __future__ import annotations

from typing import Any

from layercompiler.functions.operands import norm, operands, square_matrices, transposed


def project_second_order(x: Any) -> Any:
    """Nearest point of {(t, v): |v|_2 <= t} to x = (t, v) (..., 1 + n).

    Differentiability: not on the boundary of the cone nor of its polar; on both, the derivative with the point inside.
    Source: Boyd, Vandenberghe 2004, section 8.1.
    """
    xp, x = operands(x)
    t, v = x[..., :1], x[..., 1:]
    size = norm(xp, v)
    inside, polar = size <= t, size <= -t
    between = 0.5 * (t + size)
    way = v / xp.where(size > 0, size, xp.ones_like(size))
    edge = xp.concat([between, between * way], axis=-1)
    return xp.where(inside, x, xp.where(polar, xp.zeros_like(x), edge))


def project_psd(X: Any, level: Any = 0.0) -> Any:
    """Nearest positive semidefinite matrix to the symmetric part of X (..., n, n).

    With a level, eigenvalues w become max(w - level, 0).

    Differentiability: smooth where no eigenvalue equals the level, repeated eigenvalues included; derivatives are exact to second order.
        Where one does, the derivative with that eigenvalue below.
    Cost: O(n^3), value and derivatives.
    Source: Malick, Sendov 2006 (the derivative); see `above` for how it is obtained.
    """
    xp, X, level = operands(X, level)
    order = square_matrices(X)
    X = 0.5 * (X + transposed(xp, X)) - level[..., None, None] * xp.eye_like(X, order)
    projector = above(xp, X)
    return xp.matmul(projector, xp.matmul(X, projector))


def above(xp: Any, X: Any) -> Any:
    """Orthogonal projector onto the span of the eigenvectors of X (..., n, n), symmetric, with positive eigenvalues.

    In the basis of the eigenvectors, split by sign, the span is that of (I, Y) with 0 = B + W2 Y - Y W1 - Y B'Y, where B couples the
    parts: 0 in value, not in its derivative. Two steps Y <- Y - residual / (w2 - w1) give Y exactly to second order, and the gaps are
    sums of sizes: no difference of equal eigenvalues occurs.
    """
    w, Q = xp.linalg.eigh(xp.stop_gradient(X))
    w, Q = xp.stop_gradient(w), xp.stop_gradient(Q)
    rounding = 1e-15 if "64" in str(w.dtype) else 1e-6
    return graph(xp, X, w, Q, w > rounding * xp.max(xp.abs(w), axis=-1, keepdims=True))


def graph(xp: Any, X: Any, w: Any, Q: Any, chosen: Any) -> Any:
    """The projector onto chosen eigenvectors (..., n) of X, whose value has eigenvalues w and eigenvectors Q."""
    one = xp.where(chosen, xp.ones_like(w), xp.zeros_like(w))
    across = (1.0 - one)[..., :, None] * one[..., None, :]  # rows that are not chosen, columns that are
    gap = w[..., :, None] - w[..., None, :]
    step = xp.where(across > 0, across / xp.where(across > 0, gap, xp.ones_like(gap)), xp.zeros_like(gap))
    inner = one[..., :, None] * one[..., None, :]
    outer = (1.0 - one)[..., :, None] * (1.0 - one)[..., None, :]
    T = rotated(xp, X, w, Q)
    Y = -step * T
    Y = Y - step * (T + xp.matmul(outer * T, Y) - xp.matmul(Y, inner * T) - xp.matmul(Y, xp.matmul(transposed(xp, across * T), Y)))
    V = xp.eye_like(X, X.shape[-1]) * one[..., None, :] + Y
    middle = inner * (xp.eye_like(X, X.shape[-1]) - xp.matmul(transposed(xp, Y), Y))  # (V'V)^-1 to third order
    V = xp.matmul(Q, V)
    return xp.matmul(V, xp.matmul(middle, transposed(xp, V)))


def rotated(xp: Any, X: Any, w: Any, Q: Any) -> Any:
    """Q'XQ, with value diag(w) exactly: what rounding leaves beside the diagonal would be divided by small gaps."""
    T = xp.matmul(transposed(xp, Q), xp.matmul(X, Q))
    return T - xp.stop_gradient(T) + w[..., None] * xp.eye_like(X, X.shape[-1])
